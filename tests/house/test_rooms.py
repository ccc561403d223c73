"""Who may import whom, what the pure rooms may touch, and what every module says of itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.rooms import PACKAGE, PURE, ROOT, imports, layers, modules, project_files, room_of, table, tree

#: What would let the world into a pure room: I/O, clocks, threads, processes, logs, hidden randomness.
WORLD = {
    "asyncio", "concurrent", "ctypes", "datetime", "fcntl", "glob", "io", "logging", "multiprocessing", "os", "pathlib",
    "pyroute2", "secrets", "select", "selectors", "shutil", "signal", "socketserver", "ssl", "subprocess", "tempfile",
    "threading", "time", "urllib", "uuid", "uvloop", "yaml",
}  # fmt: skip

#: The exceptions: pure functions that happen to live in modules of the world.
ALLOWED = {("net", "socket"): {"inet_ntop", "inet_pton", "AF_INET", "AF_INET6"}, ("errors", "os"): {"strerror"}}

#: And functions: methods of dataclasses are compiled from text, as by the standard library.
BUILT_IN = {"values": {"exec"}}

#: The module-level functions of `random` share one hidden generator; a generator that is passed in is fine.
RANDOM = {"Random"}

#: Lines after which a module must say why it is one idea.
LONG = 600


def uses(path: Path, module: str) -> set[str]:
    """Names of a module that are used, as in `socket.inet_pton`."""
    return {
        node.attr
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module
    }


def test_the_line_inside_the_dataplane_is_where_the_map_draws_it() -> None:
    """What decides there knows no world and nobody who does."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn = re.search(r"the line is drawn once\s+more: (.*?)\s+take netlink bytes", text, re.DOTALL)
    assert drawn is not None
    pure = set(re.findall(r"`(\w+)`", drawn[1]))
    assert len(pure) >= 10
    for name in pure:
        path = PACKAGE / "dataplane" / f"{name}.py"
        for module, imported in imports(path):
            if module == "routed.dataplane" or module.startswith("routed.dataplane."):
                assert {module.rpartition(".")[2], imported} & pure, f"{path.name}: {module}"
            assert module.partition(".")[0] not in WORLD - {"os"}, f"{path.name}: {module}"
        assert uses(path, "os") <= {"strerror"}, path.name


@pytest.mark.parametrize("path", modules(*PURE), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_pure_rooms_touch_no_world(path: Path) -> None:
    room = room_of(path)
    for module, name in imports(path):
        first = module.partition(".")[0]
        allowed = ALLOWED.get((room, first))
        if allowed is not None:
            assert not name, f"import {first} itself, so that what is used of it can be seen"
            assert uses(path, first) <= allowed
        elif first == "random":
            assert not name
            assert uses(path, "random") <= RANDOM
        else:
            assert first != "socket", "only net/ may use socket, for inet_pton and inet_ntop"
            assert first not in WORLD, f"{module} does not belong above the purity line"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            banned = {"open", "print", "input", "exec", "eval"} - BUILT_IN.get(room, set())
            assert node.func.id not in banned, f"line {node.lineno}"
        assert not isinstance(node, ast.Await | ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith)


def test_rooms_import_only_rooms_above_them() -> None:
    order = layers()
    depth = {room: index for index, layer in enumerate(order) for room in layer}
    for path in modules():
        if path == PACKAGE / "__init__.py":
            continue
        room = room_of(path)
        for module, name in imports(path):
            parts = module.split(".")
            if parts[0] != "routed":
                continue
            other = parts[1] if len(parts) > 1 else name
            if other not in (room, "__version__"):
                assert depth[other] > depth[room], f"{path.relative_to(ROOT)} imports {module}"


def test_the_import_contracts_hold() -> None:
    pytest.importorskip("importlinter")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_room_is_in_the_contract_and_in_the_architecture() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    rooms.discard("__init__")
    assert {room for layer in layers() for room in layer} == rooms
    rows = table((ROOT / "ARCHITECTURE.md").read_text(), "room", "its one job")
    listed = [cell.strip("`").removesuffix("/").removesuffix(".py") for cell, *_ in rows]
    line = next(index for index, name in enumerate(listed) if name.startswith("─"))
    assert set(listed[:line]) == set(PURE)
    assert {*listed[:line], *listed[line + 1 :]} == rooms
    depth = {room: -index for index, layer in enumerate(layers()) for room in layer}
    places = [depth[name] for name in listed if name in depth]
    assert places == sorted(places), "the table is in the order in which rooms may import"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    text = ast.get_docstring(tree(path)) or ""
    assert text.partition("\n")[0].strip().endswith((".", ":"))
    assert not text.endswith(": to be written.")
    if len(path.read_text().splitlines()) > LONG:
        assert "one idea" in text, f"more than {LONG} lines: the docstring must say why it is one idea"


def test_every_test_module_says_what_it_holds() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        assert re.match(r'r?"""\S', path.read_text()), path.relative_to(ROOT)


def test_nothing_in_the_project_depends_on_where_it_is() -> None:
    """No file names this checkout's folder, the one around it, or somebody's home."""
    common = {Path("/"), Path("/opt"), Path("/srv"), Path("/src"), Path("/tmp"), Path("/root"), Path("/home")}
    places = [str(ROOT), str(Path.home()), *([] if ROOT.parent in common else [f"{ROOT.parent}/"])]
    places = [place for place in places if Path(place) not in {Path("/"), Path("/root"), Path("/tmp")}]
    for path in project_files():
        data = path.read_bytes()
        if b"\0" in data:
            continue
        for place in [*places, *(f"/{home}/" for home in ("home", "Users", "root"))]:
            assert place.encode() not in data, f"{path.relative_to(ROOT)} names {place}"


def test_nothing_is_left_for_later() -> None:
    words = ["TO" + "DO", "FIX" + "ME", "XX" + "X"]
    for path in project_files():
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".c", ".sh"} or path.name == "Makefile":
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not any(word in text for word in words), path.relative_to(ROOT)


def test_helpers_have_names_that_say_something() -> None:
    for path in modules():
        assert not {"utils", "util", "common", "helper", "helpers", "misc"} & set(path.with_suffix("").parts)


@pytest.mark.parametrize("room", ["datastore", "dataplane", "control", "observe", "cli"])
def test_rooms_that_touch_the_world_are_strangers_to_each_other(room: str) -> None:
    known = {"cli": {"control", "observe", "datastore"}, "observe": set()}.get(room, set())
    siblings = {"datastore", "dataplane", "control", "observe", "cli", "daemon"} - {room} - known
    for path in modules(room):
        for module, _ in imports(path):
            parts = module.split(".")
            assert not (parts[0] == "routed" and len(parts) > 1 and parts[1] in siblings), path


def test_the_command_line_imports_no_engine() -> None:
    values = ("errors", "net", "model")
    for path in modules("cli"):
        # these work offline, with the pure rooms and what reads and writes resources; they are loaded when they run
        if path.name in ("check.py", "policy.py", "allocations.py"):
            continue
        for module, _ in imports(path):
            assert not module.startswith(tuple(f"routed.{room}" for room in PURE if room not in values)), path


def test_dataclasses_are_those_that_cost_nothing_at_import() -> None:
    for path in modules():
        if room_of(path) != "values":
            assert ("dataclasses", "dataclass") not in set(imports(path)), f"{path}: take it from routed.values"
