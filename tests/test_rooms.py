"""The rooms of the house: their order, their doors, their size, and that no circle runs through them.

A room is a folder right below ``cbir.core``, ``cbir.server`` or ``cbir.indexer``, or ``cbir.client.cli``.  What others
may use of it is listed in its door, the ``__init__.pyi`` that lies in it; a name is loaded when it is first asked for.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import ROOT, modules

MOST_MODULES = 20
MOST_LINES = 300

#: From the floor up; a room imports only from what stands before it in its own column and in the columns it rests on.
ORDER = {
    "cbir.core": (
        "errors", "version", "machine", "files", "images", "vector_index", "ensemble", "metric", "vote", "artifacts",
        "search", "evaluation",
    ),
    "cbir.server": ("limits", "engine", "queue", "deployment", "observe", "transport", "bench", "commands"),
    "cbir.indexer": ("samples", "sources", "build", "evaluate", "tune", "train", "dedup", "commands"),
}  # fmt: skip

#: Modules and the lines they have, as they are now: generated stubs are counted by nobody.
MODULES = {name: file for name, file in modules().items() if not name.startswith("cbir.v1")}


def room_of(module: str) -> str | None:
    """The room a module lies in, None for what lies in none."""
    parts = module.split(".")
    if parts[:3] == ["cbir", "client", "cli"]:
        return "cbir.client.cli"
    return ".".join(parts[:3]) if ".".join(parts[:2]) in ORDER and len(parts) > 2 else None


def door(room: str) -> dict[str, str]:
    """What a room's door lists: name -> the module that defines it."""
    file = MODULES[room].with_suffix(".pyi") if room in MODULES else None
    if file is None or not file.exists():
        return {}
    listed = {}
    for node in ast.parse(file.read_text()).body:
        assert isinstance(node, ast.ImportFrom), f"{file}: a door holds nothing but imports"
        assert node.level == 1, f"{file}: a door opens its own room only"
        for alias in node.names:
            assert alias.asname == alias.name, f"{file}: write {alias.name} as {alias.name}"
            listed[alias.name] = f"{room}.{node.module}"
    return listed


DOORS = {room: door(room) for room in sorted({room_of(name) or "" for name in MODULES} - {""})}


def imported(module: str, file: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of everything of ours that a module imports, at whatever depth."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cbir.") and not node.level:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole, "") if whole in MODULES else (str(node.module), alias.name)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.startswith("cbir."))


def behind(module: str, name: str) -> str:
    """The module that an import really loads: what lies behind a door is looked up in it."""
    return DOORS.get(module, {}).get(name, module)


def between_modules() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports."""
    return {
        module: {found for target, name in imported(module, file) if (found := behind(target, name)) in MODULES}
        for module, file in MODULES.items()
    }


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Paths that come back to where they began, one for each circle that a walk through the graph meets."""
    found, done = [], set()

    def walk(node: str, path: list[str]) -> None:
        if node in path:
            found.append([*path[path.index(node) :], node])
            return
        if node in done:
            return
        for other in sorted(graph.get(node, ())):
            walk(other, [*path, node])
        done.add(node)

    for node in sorted(graph):
        walk(node, [])
    return found


def test_the_search_for_circles_finds_one() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_circle_among_modules() -> None:
    assert circles(between_modules()) == []


def test_rooms_stand_in_order() -> None:
    wrong = []
    for module, targets in between_modules().items():
        package = ".".join(module.split(".")[:2])
        for target in sorted(targets):
            if target.startswith(package + ".") and package in ORDER:
                one, other = module.split(".")[2], target.split(".")[2]
                if ORDER[package].index(one) < ORDER[package].index(other):
                    wrong.append(f"{module} imports {target}, which stands above it")
    assert wrong == []


def test_every_room_has_its_place_in_the_order() -> None:
    there = {package: {name.split(".")[2] for name in MODULES if name.startswith(package + ".")} for package in ORDER}
    assert there == {package: set(rooms) for package, rooms in ORDER.items()}


def test_rooms_are_entered_through_their_doors() -> None:
    """A module imports what lies in another room from the room itself, and nothing that its door does not list."""
    wrong = []
    for module, file in MODULES.items():
        for target, name in imported(module, file):
            room = room_of(target)
            if room is None or room == room_of(module) or room not in DOORS or not DOORS[room]:
                continue
            if target != room or name not in DOORS[room]:
                wrong.append(f"{module}: {target} {name}")
    assert wrong == []


@pytest.mark.parametrize("room", [room for room, listed in DOORS.items() if listed])
def test_doors_open(room: str) -> None:
    """Each name that a door lists is there, is public where it is defined, and hides no module of the room."""
    package = importlib.import_module(room)
    assert sorted(package.__all__) == sorted(DOORS[room])
    for name, module in DOORS[room].items():
        home = importlib.import_module(module)
        assert getattr(package, name) is getattr(home, name)
        assert name in home.__all__, f"{module}.{name} is in the door, so it belongs into __all__"
        assert f"{room}.{name}" not in MODULES, f"{name} is a name in the door of {room} and a module of it"


def test_doors_list_what_is_used() -> None:
    """What nobody outside asks for is taken out of the door; tests and benchmarks count as outside."""
    outside = {
        f"outside.{file.stem}": file for folder in ("tests", "benchmarks") for file in (ROOT / folder).rglob("*.py")
    }
    used = {
        (target, name)
        for module, file in {**MODULES, **outside}.items()
        for target, name in imported(module, file)
        if room_of(module) != target
    }
    idle = [f"{room}: {name}" for room, listed in DOORS.items() for name in listed if (room, name) not in used]
    assert idle == []


def test_rooms_are_said_in_a_sentence() -> None:
    folders = {file for name, file in MODULES.items() if file.name == "__init__.py" and room_of(name)}
    assert [str(file) for file in folders if not (ast.get_docstring(ast.parse(file.read_text())) or "").strip()] == []


def test_folders_and_modules_are_small() -> None:
    folders: dict[Path, int] = {}
    for file in MODULES.values():
        folders[file.parent] = folders.get(file.parent, 0) + (file.name != "__init__.py")
    assert {str(f): n for f, n in folders.items() if n > MOST_MODULES} == {}
    lines = {name: len(file.read_text().splitlines()) for name, file in MODULES.items()}
    assert {name: n for name, n in lines.items() if n > MOST_LINES} == {}
