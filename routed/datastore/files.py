"""Single files, as the kernel has them: read, written and named, what tells their states apart, and who else has one open.

Who else has a file open is told by whether the kernel would grant a lease on it, which is given back at once: it grants one
only where nobody's use of the file conflicts with it.

Several files come and go with each pod, and a call that lets go of the interpreter waits to get it back from the loop: there
are no more of them than needed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal

#: Lets go of the interpreter, and (for what never waits for a disk) does not.
_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_ONCE = ctypes.PyDLL(None, use_errno=True)
_RENAMEAT2 = getattr(_LIBC, "renameat2", None)
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def signature_of(status: os.stat_result) -> tuple[int, ...]:
    """What is another one once a file was changed, replaced or named anew: device, inode, mode, size, times."""
    return (status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def signature_at(path: str) -> tuple[int, ...]:
    """The same of a path; where nobody can look, why."""
    try:
        status = os.stat(path)
    except OSError as error:
        return (error.errno or 0,)
    return signature_of(status)


def read_whole(path: str, limit: int) -> bytes:
    """What is in a file, `limit` octets at most. Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        left = min(os.fstat(file).st_size, limit)
        data = os.read(file, left)
        while len(data) < left and (more := os.read(file, left - len(data))):
            data += more
        return data
    finally:
        os.close(file)


def write_whole(file: int, data: bytes) -> None:
    """Raises OSError."""
    written = os.write(file, data)
    while written < len(data):
        written += os.write(file, data[written:])


def name_anew(path: str, new: str) -> None:
    """Give a file another name, which nothing may have. Raises OSError."""
    number = errno.ENOSYS
    if _RENAMEAT2 is not None:
        ends = (_AT_FDCWD, os.fsencode(path), _AT_FDCWD, os.fsencode(new))
        number = ctypes.get_errno() if _RENAMEAT2(*ends, _RENAME_NOREPLACE) else 0
    if not number:
        return
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, os.strerror(number), new)
    os.link(path, new)  # a kernel or file system that cannot do both in one step
    os.unlink(path)


def is_open_elsewhere(file: int) -> bool:
    """Whether anybody else has it open, or that cannot be told."""
    return _refused(file, fcntl.F_WRLCK) is not None


def is_being_written(file: int) -> bool:
    """Whether somebody has a file, which is open to be read here, open for writing; False where that cannot be told."""
    return _refused(file, fcntl.F_RDLCK) == errno.EAGAIN


def _refused(file: int, lease: int) -> int | None:
    """Why a lease is not granted; None: it would be."""
    # asking the holder to give it up is SIGIO, which would end the process, unless another signal is named
    steps = ((fcntl.F_SETSIG, signal.SIGURG), (fcntl.F_SETLEASE, lease), (fcntl.F_SETLEASE, fcntl.F_UNLCK))
    for command, value in steps:
        if _AT_ONCE.fcntl(file, command, int(value)) < 0:
            return ctypes.get_errno()
    return None
