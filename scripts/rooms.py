"""The rooms of the house, read from the code: what lies where, what each room lets out, and who uses whom.

``python scripts/rooms.py`` draws them to ``docs/images/rooms.svg``.  The tests read the house with the same functions.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.sax.saxutils import escape

__all__ = ["ORDER", "PICTURE", "ROOT", "ROOTS", "House", "drawing", "modules"]

ROOT = Path(__file__).resolve().parents[1]
ROOTS = ("client", "indexer", "server", "shared", "web")
PICTURE = ROOT / "docs/images/rooms.svg"

#: Package -> its rooms from the floor up.  A room imports only from what stands below it.
ORDER = {
    "cbir.core": (
        "errors", "version", "machine", "files", "images", "vector_index", "ensemble", "metric", "vote", "artifacts",
        "search", "milvus", "evaluation",
    ),
    "cbir.server": ("limits", "engine", "queue", "access", "deployment", "observe", "transport", "bench", "commands"),
    "cbir.indexer": ("samples", "sources", "build", "evaluate", "tune", "train", "dedup", "bench", "commands"),
    "cbir.client": ("cli",),
    "cbir.web": ("page", "gateway", "commands"),
}  # fmt: skip


def modules() -> dict[str, Path]:
    """All modules below the five roots, by name."""
    found = {}
    for root in ROOTS:
        for file in sorted((ROOT / root / "cbir").rglob("*.py")):
            parts = file.relative_to(ROOT / root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


class House:
    """The project's own modules, without generated ones, and the imports among them.

    Attributes:
        modules: File by module.
        doors: By room: what its door lists, as name -> the module that defines it.
    """

    def __init__(self) -> None:
        self.modules = {name: file for name, file in modules().items() if not name.startswith("cbir.v1")}
        rooms = sorted({self.room_of(name) or "" for name in self.modules} - {""})
        self.doors = {room: self._door(room) for room in rooms}

    @staticmethod
    def room_of(module: str) -> str | None:
        """The room that a module lies in: a folder, or a module that stands alone; None for what lies in none."""
        parts = module.split(".")
        package = ".".join(parts[:2])
        if package == "cbir.client":
            return "cbir.client.cli" if parts[2:3] == ["cli"] else None
        return ".".join(parts[:3]) if package in ORDER and len(parts) > 2 else None

    def _door(self, room: str) -> dict[str, str]:
        file = self.modules[room].with_suffix(".pyi") if room in self.modules else None
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

    def imported(self, module: str, file: Path) -> Iterator[tuple[str, str]]:
        """(module, name) of everything of ours that a module imports, at whatever depth; no name: all of it."""
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cbir.") and not node.level:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield (whole, "") if whole in self.modules else (str(node.module), alias.name)
            elif isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names if alias.name.startswith("cbir."))

    def graph(self) -> dict[str, set[str]]:
        """Module -> the modules that it imports; what is imported through a door is looked up behind it."""
        found: dict[str, set[str]] = {}
        for module, file in self.modules.items():
            targets = (self.doors.get(t, {}).get(name, t) for t, name in self.imported(module, file))
            found[module] = {target for target in targets if target in self.modules}
        return found

    def uses(self) -> dict[str, set[str]]:
        """Room -> the rooms that it imports from."""
        found: dict[str, set[str]] = {}
        for module, targets in self.graph().items():
            room = self.room_of(module)
            if room is not None:
                others = {self.room_of(target) for target in targets} - {None, room}
                found.setdefault(room, set()).update(other for other in others if other)
        return found

    def sentence(self, room: str) -> str:
        """What a room says it is for."""
        text = ast.get_docstring(ast.parse(self.modules[room].read_text())) or ""
        return " ".join(text.split("\n\n")[0].split()).replace(":class:", "").replace(":mod:", "").replace("`", "")


_WIDTH, _GAP, _LINE, _CHARACTERS = 380, 22, 17, 50
_STYLE = """
  text { font: 13px "DejaVu Sans", Verdana, sans-serif; fill: #1d2733 }
  .name { font-weight: bold; font-size: 15px } .uses { fill: #5a6b7d; font-size: 12px }
  .package { font-weight: bold; font-size: 18px } .box { fill: #fff; stroke: #9fb3c8 }
  .core { fill: #eef5ee } .server { fill: #eef2fa } .indexer { fill: #fbf3e6 } .client { fill: #f6eefa }
"""


def _box(house: House, uses: Mapping[str, set[str]], room: str, x: int, y: int) -> tuple[list[str], int]:
    """The SVG of one room, and its height."""
    # Everything uses the errors: to say so of each room would only hide the rest.
    below = sorted(name for name in uses.get(room, ()) if name != "cbir.core.errors")
    own = [name.split(".")[2] for name in below if name.split(".")[1] == room.split(".")[1]]
    core = [".".join(name.split(".")[1:3]) for name in below if name.split(".")[1] != room.split(".")[1]]
    lines = [(room.split(".")[-1], "name")]
    lines += [(line, "") for line in textwrap.wrap(house.sentence(room), _CHARACTERS)]
    if own or core:
        lines += [(line, "uses") for line in textwrap.wrap(f"uses {', '.join(own + core)}", _CHARACTERS + 4)]
    height = _LINE * len(lines) + 16
    drawn = [f'<rect class="box" x="{x}" y="{y}" width="{_WIDTH}" height="{height}" rx="6"/>']
    for number, (text, kind) in enumerate(lines):
        place = f'x="{x + 12}" y="{y + 22 + number * _LINE}"'
        drawn.append(f'<text {place} class="{kind}">{escape(text)}</text>')
    return drawn, height


def _column(house: House, uses: Mapping[str, set[str]], rooms: list[str], x: int, y: int) -> tuple[list[str], int]:
    """Rooms above one another, and where the column ends."""
    drawn: list[str] = []
    for room in rooms:
        box, height = _box(house, uses, room, x, y)
        drawn += box
        y += height + 8
    return drawn, y


def drawing() -> str:
    """The house as SVG: three packages side by side on the floor that they share, each room with what it is for."""
    house = House()
    uses = house.uses()
    step = _WIDTH + _GAP
    body: list[str] = []
    ends = []
    packages = ("indexer", "server", "client")
    for place, package in enumerate(packages):
        rooms = [f"cbir.{package}.{room}" for room in reversed(ORDER[f"cbir.{package}"])]
        rooms += ["cbir.client"] * (package == "client")
        drawn, end = _column(house, uses, rooms, _GAP + place * step, 62)
        if package == "client":
            # The page stands on the client, and there is room above the floor.
            body.append(f'<text class="package" x="{_GAP + place * step}" y="{end + 30}">cbir.web</text>')
            above = [f"cbir.web.{room}" for room in reversed(ORDER["cbir.web"])]
            more, end = _column(house, uses, above, _GAP + place * step, end + 44)
            drawn += more
        body += [f'<text class="package" x="{_GAP + place * step}" y="48">cbir.{package}</text>', *drawn]
        ends.append(end)
    floor = max(ends) + 24
    rooms = [f"cbir.core.{room}" for room in reversed(ORDER["cbir.core"])]
    third = -(-len(rooms) // 3)
    bottoms = []
    for place in range(3):
        drawn, end = _column(house, uses, rooms[place * third : (place + 1) * third], _GAP + place * step, floor + 44)
        body += drawn
        bottoms.append(end)
    width, height = _GAP + 3 * step, max(bottoms) + 12
    grounds = [
        f'<rect class="{package}" x="{_GAP // 2 + place * step}" y="22" width="{step - 4}" height="{floor - 34}"/>'
        for place, package in enumerate(packages)
    ]
    grounds.append(
        f'<rect class="core" x="{_GAP // 2}" y="{floor}" width="{3 * step - 4}" height="{height - floor - 4}"/>'
    )
    title = f'<text class="package" x="{_GAP}" y="{floor + 28}">cbir.core: what all of them rest on</text>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return "\n".join([head, f"<style>{_STYLE}</style>", *grounds, title, *body, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(drawing())
