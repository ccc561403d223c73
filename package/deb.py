"""The Debian package, for the distribution and the Python this runs on.

    python -m package.deb dist

Debian 12 and Ubuntu 24.04 have our Python libraries too old or not at all, so the package brings them, in
/usr/lib/routed, where nothing else looks: exactly the versions of the environment that builds, which is the one the
tests ran in (docs/decisions/0013). Compiled ones among them tie the package to a minor version of Python, which its
dependencies say. What else is in it is what is in the wheel.

Nothing is fetched, and the same sources and environment make the same package.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

from package import completions, wheel
from routed import __version__

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(__file__).parent / "scripts"

MAINTAINER = "routed developers <routed@example.invalid>"
PRIVATE = "usr/lib/routed"

#: Where systemd looks for what the wheel only carries.
SYSTEMD = {
    "routed.service": "usr/lib/systemd/system/routed.service",
    "90-routed.conf": "usr/lib/sysctl.d/90-routed.conf",
    "networkd-routed.conf": "usr/lib/systemd/networkd.conf.d/10-routed.conf",
    "10-routed-pods.network": "usr/lib/systemd/network/10-routed-pods.network",
    "routed.sysusers": "usr/lib/sysusers.d/routed.conf",
}

CONFFILES = ("/etc/routed/routed.yaml",)

#: -I: neither the caller's environment nor its folder says which modules are ours; -S: nor does the system's Python.
LAUNCHER = """\
#!/usr/bin/python3 -IS
import sys

sys.path.insert(0, "/usr/lib/routed")
from {module} import main

sys.exit(main())
"""
#: Where container runtimes look for plugins: Debian's own, and those that come from elsewhere.
PLUGIN_FOLDERS = ("usr/lib/cni", "opt/cni/bin")

PROGRAMS = {"routed": "routed.daemon.main", "routedctl": "routed.cli.main"}

DESCRIPTION = """\
layer-3 networking for a node: BGP and the kernel's routes
 routed speaks BGP to the other nodes, to route reflectors and to top-of-rack
 switches, and makes the kernel's routes equal to what follows from that. What it
 should do is written in Calico's resources. It takes the place of BIRD and confd.
"""


def build(target: Path) -> Path:
    """Build the package into a folder, which is made. Its path."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="routed-deb-") as name:
        tree = Path(name) / "tree"
        tree.mkdir(mode=0o755)
        _unpack(wheel.build(Path(name) / "wheel"), tree)
        for distribution in dependencies("routed"):
            copy(distribution, tree / PRIVATE)
        _compile(tree / PRIVATE)
        _programs(tree)
        _plugin(tree)
        _configuration(tree)
        documentation(tree)
        control = tree / "DEBIAN"
        _control(tree, control, Path(name))
        _settle(tree)
        architecture = _output("dpkg", "--print-architecture")
        package = target / f"routed_{version()}_{architecture}.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zxz", "-z3", "--build", str(tree), str(package)],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "SOURCE_DATE_EPOCH": str(_date())},
        )
        return package


def version() -> str:
    """Ours, and the distribution it is built for: the same sources make one package for each."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines() if "=" in line
    )
    return f"{__version__}-1~{release['ID']}{release.get('VERSION_ID', '')}".replace('"', "")


def dependencies(name: str) -> list[importlib.metadata.Distribution]:
    """What a distribution needs at run time, and what that needs, as installed here; itself excepted."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [Requirement(name)]
    while waiting:
        wanted = waiting.pop()
        installed = importlib.metadata.distribution(wanted.name)
        for text in installed.requires or ():
            needed = Requirement(text)
            extras = wanted.extras or {""}
            if needed.marker is not None and not any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                continue
            if needed.name not in found:
                found[needed.name] = importlib.metadata.distribution(needed.name)
                waiting.append(needed)
    return [found[each] for each in sorted(found)]


def _unpack(file: Path, tree: Path) -> None:
    """The wheel's files to where Debian has such files."""
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            data = f"routed-{__version__}.data/data/share/"
            if name.startswith(f"routed-{__version__}.data/scripts/"):
                continue  # the plugin in Python; here it is the one in C
            if name.startswith(f"{data}man/"):
                place = tree / "usr/share" / f"{name.removeprefix(f'{data}')}.gz"
                _write(place, gzip.compress(archive.read(name), 9, mtime=0))
                continue
            if name == data + completions.PLACES["zsh"]:
                _write(tree / "usr/share" / completions.DEBIAN_ZSH, archive.read(name))
                continue
            inside = name.removeprefix(f"{data}routed/systemd/")
            if inside == name:
                place = tree / "usr/share" / name.removeprefix(data) if name.startswith(data) else tree / PRIVATE / name
            elif inside.startswith("examples/"):
                place = tree / "usr/share/doc/routed/examples/systemd" / inside.removeprefix("examples/")
            else:
                place = tree / SYSTEMD[inside]
            _write(place, archive.read(name))


def copy(distribution: importlib.metadata.Distribution, target: Path) -> None:
    """A distribution's modules and its own record of itself; no programs, nothing compiled for here."""
    for file in distribution.files or ():
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        source = Path(str(distribution.locate_file(file)))
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target / file)


def _compile(folder: Path) -> None:
    """Byte code beside the sources: whom the daemon runs as may not write there, and a restart should be quick."""
    # in a process of its own: how a name is written depends on whether something else in the process has it too
    prepended = ("-s", str(folder), "-p", f"/{PRIVATE}", "--invalidation-mode", "unchecked-hash")
    subprocess.run([sys.executable, "-I", "-m", "compileall", "-q", *prepended, str(folder)], check=True)


def _programs(tree: Path) -> None:
    for name, module in PROGRAMS.items():
        _write(tree / "usr/bin" / name, LAUNCHER.format(module=module).encode())
        (tree / "usr/bin" / name).chmod(0o755)


def _plugin(tree: Path) -> None:
    """The CNI plugin in C. Static: it starts sooner, and runs wherever it is copied to."""
    program = tree / "usr/bin/routed-cni"
    source = ROOT / "routed/cni/routed-cni.c"
    subprocess.run(["cc", "-O2", "-static", "-s", "-Wall", "-Werror", "-o", str(program), str(source)], check=True)
    for folder in PLUGIN_FOLDERS:
        (tree / folder).mkdir(parents=True)
        (tree / folder / "routed-cni").symlink_to("/usr/bin/routed-cni")


def _configuration(tree: Path) -> None:
    """The configuration as shipped is the one to edit; its folder of resources is there, empty."""
    _write(tree / "etc/routed/routed.yaml", (ROOT / "config/routed.yaml").read_bytes())
    (tree / "etc/routed/resources").mkdir()


#: What people read, and what it has links to; config is among the examples.
SHOWN = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs", "containerlab", "systemd")


def documentation(tree: Path) -> None:
    folder = tree / "usr/share/doc/routed"
    changes = (ROOT / "CHANGELOG.md").read_bytes()
    _write(folder / "changelog.gz", gzip.compress(changes, 9, mtime=0))
    licenses = "The libraries in /usr/lib/routed have their licenses beside them, in their *.dist-info folders.\n\n"
    _write(folder / "copyright", licenses.encode() + (ROOT / "LICENSE").read_bytes())
    shown = [path for name in SHOWN for path in (ROOT / name, *sorted((ROOT / name).rglob("*"))) if path.is_file()]
    for path in shown:
        data = path.read_bytes()
        _write(folder / path.relative_to(ROOT), _moved(data) if path.suffix == ".md" else data)


def _moved(page: bytes) -> bytes:
    """A page whose links lead to the configuration where Debian has examples."""
    return re.sub(rb"\]\(((?:\.\./)*)config/", rb"](\1examples/", page)


def _control(tree: Path, control: Path, scratch: Path) -> None:
    control.mkdir(mode=0o755)
    minor = sys.version_info.minor
    depends = [f"python3 (>= 3.{minor}~)", f"python3 (<< 3.{minor + 1}~)", *_libraries(tree, scratch)]
    depends += ["systemd | systemd-standalone-sysusers", "passwd"]
    files = [path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files) // 1024
    fields = {
        "Package": "routed",
        "Version": version(),
        "Section": "net",
        "Priority": "optional",
        "Architecture": _output("dpkg", "--print-architecture"),
        "Maintainer": MAINTAINER,
        "Installed-Size": str(size),
        "Depends": ", ".join(depends),
        "Suggests": "iproute2",
        "Description": DESCRIPTION.rstrip("\n"),
    }
    _write(control / "control", "".join(f"{name}: {value}\n" for name, value in fields.items()).encode())
    _write(control / "conffiles", "".join(f"{name}\n" for name in CONFFILES).encode())
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(tree)}\n"
        for path in files
    ]
    _write(control / "md5sums", "".join(sums).encode())
    for script in sorted(SCRIPTS.iterdir()):
        _write(control / script.name, script.read_bytes())
        (control / script.name).chmod(0o755)


def _libraries(tree: Path, scratch: Path) -> list[str]:
    """The packages that have the shared libraries our compiled modules need, with versions, as dpkg-shlibdeps says."""
    (scratch / "debian").mkdir()
    (scratch / "debian" / "control").write_text("Source: routed\n\nPackage: routed\nArchitecture: any\n")
    compiled = [str(path) for path in (tree / PRIVATE).rglob("*.so*")]
    said = _output(
        *("dpkg-shlibdeps", "-O", "--ignore-missing-info", "--warnings=0", *(f"-e{path}" for path in compiled)),
        folder=scratch,
    )
    return [each for line in said.splitlines() for each in line.partition("shlibs:Depends=")[2].split(", ") if each]


def _settle(tree: Path) -> None:
    """Modes that do not depend on who builds, and times that do not depend on when."""
    date = _date()
    for path in [tree, *tree.rglob("*")]:
        if path.is_symlink():
            os.utime(path, (date, date), follow_symlinks=False)
            continue
        runs = path.is_dir() or (path.stat().st_mode & 0o100 and path.parent.name in ("bin", "DEBIAN"))
        path.chmod(0o755 if runs else 0o644)
        os.utime(path, (date, date))


def _date() -> int:
    """That of the last commit, or SOURCE_DATE_EPOCH."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given.isdigit():
        return int(given)
    said = subprocess.run(
        ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"], capture_output=True, text=True, check=False
    )
    return int(said.stdout) if said.stdout.strip().isdigit() else int((ROOT / "CHANGELOG.md").stat().st_mtime)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _output(*argv: str, folder: Path = ROOT) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, cwd=folder).stdout.strip()


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))  # noqa: T201 - a program for developers
