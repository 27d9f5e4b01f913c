"""Imports between the rooms of the house point one way (CONTRIBUTING.md has the map).

native <- wire <- edge        native <- wire <- broker        hardware.boards <- edge
broker may read a plan and train on its own data: edge.autodiff, edge.training, edge.data
broker/registrar is a process of its own, on another machine perhaps: wire alone
broker/cli, broker/demo and broker/bench may start processes on this machine: hardware.fleet, which is standard library alone
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("native", "wire", "edge", "broker", "hardware")
BETWEEN = {
    "native": (),
    "wire": ("native",),
    "edge": ("native", "wire", "hardware.boards"),
    "broker": ("native", "wire", "edge.autodiff", "edge.training", "edge.data"),
    "hardware": (),
}
STARTS_PROCESSES = ("broker/cli.py", "broker/cli/", "broker/demo.py", "broker/demo/", "broker/bench/")
SHARED_BY_EDGE_AND_BROKER = ("edge/autodiff/", "edge/training/", "edge/data/")  # nothing but native and wire
HEAVY = ("onnxruntime", "onnx", "typer", "rich")  # too much memory for a daemon
DAEMON = "fleetgrad.edge.daemon"


def modules_imported(path: Path, source: str) -> Iterator[str]:
    """Absolute names of all that a file imports, anywhere in it; `from a import b` gives a and a.b."""
    package = ["fleetgrad", *path.parent.parts]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(module: str, room: str) -> bool:
    return module == f"fleetgrad.{room}" or module.startswith(f"fleetgrad.{room}.")


def allowed(path: Path) -> tuple[str, ...]:
    """Rooms, or parts of rooms, that a file may import from beside its own room."""
    name = path.as_posix()
    if name.startswith(SHARED_BY_EDGE_AND_BROKER):
        return ("native", "wire", "edge.autodiff", "edge.training", "edge.data")
    if name.startswith("broker/registrar/"):
        return ("broker.registrar", "wire")
    more = ("hardware.fleet",) if name.startswith(STARTS_PROCESSES) else ()
    return (path.parts[0], *BETWEEN[path.parts[0]], *more)


def wrong_imports(path: Path, source: str) -> list[str]:
    """Modules of other rooms that a file (path relative to the root) imports without being allowed to."""
    wrong = []
    for module in modules_imported(path, source):
        if module.split(".")[0] != "fleetgrad" or module == "fleetgrad":
            continue
        leads_to = any(within(f"fleetgrad.{part}", module.removeprefix("fleetgrad.")) for part in allowed(path))
        if not any(within(module, part) for part in allowed(path)) and not leads_to:
            wrong.append(module)
    return wrong


def sources() -> list[Path]:
    return sorted(p.relative_to(ROOT) for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def test_every_room_has_sources() -> None:
    assert {p.parts[0] for p in sources()} == set(ROOMS)


@pytest.mark.parametrize("path", sources(), ids=str)
def test_a_file_imports_only_from_rooms_below_its_own(path: Path) -> None:
    assert wrong_imports(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("wire/a.py", "import fleetgrad.edge"),
        ("wire/a.py", "from fleetgrad import broker"),
        ("wire/a.py", "from ..edge import daemon"),
        ("native/a.py", "from fleetgrad.wire.plan import ALIGN"),
        ("edge/a.py", "def f():\n    from fleetgrad.broker.rounds import Rounds"),
        ("edge/a.py", "from fleetgrad.hardware import fleet"),
        ("edge/training/a.py", "from fleetgrad.edge import participant"),
        ("broker/a.py", "from fleetgrad.edge import participant"),
        ("broker/rounds.py", "import fleetgrad.hardware.fleet"),
        ("broker/registrar/a.py", "from fleetgrad.broker import roster"),
        ("hardware/fleet.py", "import fleetgrad.wire"),
    ],
)
def test_an_import_against_the_direction_is_found(path: str, source: str) -> None:
    assert wrong_imports(Path(path), source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("wire/a.py", "from fleetgrad.native import kernels\nfrom . import topics\nimport json"),
        ("edge/a.py", "from fleetgrad.hardware import boards\nfrom fleetgrad.wire.plan import decode"),
        ("broker/a.py", "from fleetgrad.edge.training import engine\nfrom fleetgrad.edge import autodiff"),
        ("broker/cli.py", "from fleetgrad.hardware.fleet import Fleet"),
        ("broker/registrar/a.py", "from fleetgrad.broker.registrar import register"),
        ("broker/demo.py", "from fleetgrad.hardware import fleet"),
    ],
)
def test_an_import_in_the_direction_is_fine(path: str, source: str) -> None:
    assert wrong_imports(Path(path), source) == []


def test_the_fleet_starts_processes_with_the_standard_library_alone() -> None:
    path = Path("hardware/fleet.py")
    roots = {m.split(".")[0] for m in modules_imported(path, (ROOT / path).read_text())}
    assert roots <= set(sys.stdlib_module_names), roots - set(sys.stdlib_module_names)


def reached(module: str, seen: set[str]) -> set[str]:
    """All modules that importing `module` loads at once, followed through our own sources."""
    if module in seen:
        return seen
    found: list[Path] = []
    if module.startswith("fleetgrad."):
        path = Path(*module.split(".")[1:])
        found = [p for p in (path.with_suffix(".py"), path / "__init__.py") if (ROOT / p).is_file()]
        if not found:
            return seen  # a name inside a module
    seen.add(module)
    for file in found:
        top = ast.parse((ROOT / file).read_text())
        top.body = [n for n in top.body if not isinstance(n, ast.FunctionDef | ast.ClassDef)]
        for name in modules_imported(file, ast.unparse(top)):
            reached(name, seen)
    return seen


def test_the_edge_daemon_loads_neither_onnxruntime_nor_a_terminal_library() -> None:
    loaded = reached(DAEMON, set())
    assert DAEMON in loaded
    assert not {m.split(".")[0] for m in loaded} & set(HEAVY)
