"""Passwords of BGP sessions: a folder of secrets, looked at while the daemon runs.

The layout is that of Kubernetes Secrets mounted as volumes, `FOLDER/SECRET/KEY`, links followed, names that begin with a
dot not read: a Secret is changed by switching a link. A file's content is the password, without a line break at its end.

Invariants:
- Only this module and the sockets know a password; everybody else has its reference (`SECRET/KEY`) and a generation that
  counts its changes. What goes wrong is said without what the file holds.
- A password that was known stays known: a file that is gone, empty or unreadable is a problem to report, never a reason
  to end a session (a restart forgets it).
- A changed file counts once two looks in a row agree on it, since it may be caught while it is written.
"""

from __future__ import annotations

import os
import stat
from dataclasses import field

from routed.values import dataclass

#: The longest key the kernel takes (TCP_MD5SIG_MAXKEYLEN).
MAX_PASSWORD = 80

#: Seconds between two looks.
LOOK = 0.5

#: Stands for the folder itself where a reference is told of.
THE_FOLDER = ""

_NOT_SET = "secrets.dir, the folder it would be in, is not set in routed's own configuration"

_Signature = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SecretNews:
    """A reference of which something else is known than before."""

    reference: str
    """Or THE_FOLDER."""
    generation: int
    """0: there is no password, and never was."""
    problem: str
    """What is wrong with the file, in words, or empty."""


@dataclass(slots=True)
class _Secret:
    generation: int = 0
    password: bytes = field(default=b"", repr=False)
    problem: str = ""
    seen: _Signature | str | None = None
    """What the last look saw: the file's signature, or why there is none."""
    believed: _Signature | str | None = None
    """What `password` and `problem` follow from."""


class SecretFolder:
    """See the module's docstring. With an empty path there are no secrets."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.problem = ""
        """Why the folder itself can't be read, or empty."""
        self._secrets: dict[str, _Secret] = {}
        self._looked = False
        self._told = ""
        """Of the folder."""

    def password(self, reference: str) -> bytes:
        """The password kept at a reference. Raises KeyError where none is known."""
        secret = self._secrets[reference]
        if not secret.generation:
            raise KeyError(reference)
        return secret.password

    def look(self) -> list[SecretNews]:
        """What changed since the last look. The first look believes what it sees."""
        if not self.path:
            return self._about_the_folder(_NOT_SET)
        files = self._files()
        first, self._looked = not self._looked, True
        news = self._about_the_folder(self.problem)
        for reference in sorted({*files, *self._secrets}):
            secret = self._secrets.setdefault(reference, _Secret())
            seen = self._sign(files.get(reference), reference)
            agreed, secret.seen = seen == secret.seen, seen
            if seen != secret.believed and (first or agreed) and self._believe(secret, seen, reference):
                news.append(SecretNews(reference, secret.generation, secret.problem))
        return news

    def _about_the_folder(self, problem: str) -> list[SecretNews]:
        if problem == self._told:
            return []
        self._told = problem
        return [SecretNews(THE_FOLDER, 0, problem)]

    def _files(self) -> dict[str, str]:
        """The path of the file of each reference."""
        found: dict[str, str] = {}
        try:
            names = os.listdir(self.path)
            self.problem = ""
        except OSError as error:
            self.problem = f"{self.path}: cannot read the folder of secrets: {error.strerror}"
            return found
        for name in names:
            folder = os.path.join(self.path, name)
            if name.startswith(".") or not os.path.isdir(folder):
                continue
            try:
                keys = os.listdir(folder)
            except OSError:
                continue
            for key in keys:
                if not key.startswith("."):
                    found[f"{name}/{key}"] = os.path.join(folder, key)
        return found

    def _sign(self, path: str | None, reference: str) -> _Signature | str:
        if path is None:
            return f"there is no {reference} any more in {self.path}"
        try:
            status = os.stat(path)
        except OSError as error:
            return f"cannot read {path}: {error.strerror}"
        if not stat.S_ISREG(status.st_mode):
            return f"{path} is no file"
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def _believe(self, secret: _Secret, seen: _Signature | str, reference: str) -> bool:
        """Take in what a look saw; whether anybody has to know."""
        before = (secret.generation, secret.problem)
        secret.believed = seen
        if isinstance(seen, str):
            secret.problem = seen
        else:
            path = os.path.join(self.path, reference)
            try:
                with open(path, "rb") as file:
                    content = file.read(MAX_PASSWORD + 3)
            except OSError as error:
                secret.problem = f"cannot read {path}: {error.strerror}"
            else:
                secret.problem = self._take(secret, content, path)
        return (secret.generation, secret.problem) != before

    def _take(self, secret: _Secret, content: bytes, path: str) -> str:
        """A file's content becomes the password; or what is wrong with it."""
        password = content.removesuffix(b"\n").removesuffix(b"\r")
        if not password:
            return f"{path} is empty"
        if len(password) > MAX_PASSWORD:
            return f"{path} holds more than the {MAX_PASSWORD} octets that TCP MD5 takes"
        if password != secret.password:
            secret.password = password
            secret.generation += 1
        return ""
