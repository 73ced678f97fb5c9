"""The rooms of the house: their order, their doors, their size, and that no circle runs through them.

A room is a folder right below ``cbir.core``, ``cbir.server``, ``cbir.indexer`` or ``cbir.web``, or ``cbir.client.cli``.
What others may use of it is listed in its door, the ``__init__.pyi`` that lies in it; a name is loaded when it is first
asked for.
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
from rooms import ORDER, PICTURE, ROOT, House, drawing

MOST_MODULES = 20
MOST_LINES = 300

HOUSE = House()
MODULES, DOORS, room_of = HOUSE.modules, HOUSE.doors, HOUSE.room_of


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
    assert circles(HOUSE.graph()) == []


def test_rooms_stand_in_order() -> None:
    wrong = []
    for module, targets in HOUSE.graph().items():
        package = ".".join(module.split(".")[:2])
        for target in sorted(targets):
            one, other = room_of(module), room_of(target)
            if one and other and other.startswith(package + "."):
                one, other = one.split(".")[2], other.split(".")[2]
                if ORDER[package].index(one) < ORDER[package].index(other):
                    wrong.append(f"{module} imports {target}, which stands above it")
    assert wrong == []


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {room_of(name) or "" for name in MODULES} - {""}
    there = {package: {room.split(".")[2] for room in rooms if room.startswith(package + ".")} for package in ORDER}
    assert there == {package: set(rooms) for package, rooms in ORDER.items()}


def test_rooms_are_entered_through_their_doors() -> None:
    """A module imports what lies in another room from the room itself, and nothing that its door does not list."""
    wrong = []
    for module, file in MODULES.items():
        for target, name in HOUSE.imported(module, file):
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
        for target, name in HOUSE.imported(module, file)
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


def test_the_drawing_shows_the_house_as_it_is() -> None:
    assert PICTURE.read_text() == drawing(), "the rooms have changed: run python scripts/rooms.py"


@pytest.mark.parametrize("document", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_paths_and_modules_that_documents_name_are_there(document: str) -> None:
    text = (ROOT / document).read_text()
    paths = re.findall(r"(?:client|indexer|server|shared|web)/cbir/[\w/.]*[\w/]", text)
    names = re.findall(r"`(cbir\.[\w.]+)`", text)
    gone = [path for path in paths if not (ROOT / path).exists()]
    gone += [
        name for name in names
        if name not in MODULES and name.rpartition(".")[0] not in MODULES and name.split(".")[1] != "v1"
    ]  # fmt: skip
    assert paths or names
    assert gone == []
