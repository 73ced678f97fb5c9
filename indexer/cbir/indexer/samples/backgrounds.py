"""Backgrounds: each fills the whole picture, and the subject is drawn on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from cbir.indexer.samples.canvas import Canvas, Color, darker, lighter, mix

__all__ = ["BACKGROUNDS", "pick"]

_SKIES: tuple[tuple[Color, Color], ...] = (
    ((86, 165, 222), (205, 232, 243)),
    ((64, 132, 205), (178, 218, 240)),
    ((120, 178, 214), (240, 232, 214)),
    ((244, 150, 110), (253, 220, 160)),
    ((150, 118, 180), (250, 196, 176)),
    ((150, 168, 186), (218, 224, 228)),
)
_GREENS: tuple[Color, ...] = ((122, 176, 84), (98, 158, 88), (150, 186, 92), (84, 142, 96), (176, 178, 98))
_WALLS: tuple[Color, ...] = (
    (236, 220, 196),
    (196, 214, 206),
    (224, 196, 186),
    (188, 204, 222),
    (214, 204, 224),
    (240, 232, 222),
    (120, 142, 150),
    (170, 126, 110),
)
_WOODS: tuple[Color, ...] = ((156, 108, 72), (184, 138, 96), (118, 82, 62), (206, 172, 132), (232, 228, 222))


def pick(rng: np.random.Generator, options: Sequence[Color]) -> Color:
    """Choose a colour from a list and vary it a little, so that pictures seldom share one exactly."""
    color = options[int(rng.integers(len(options)))]
    red, green, blue = (int(np.clip(part + rng.integers(-14, 15), 0, 255)) for part in color)
    return red, green, blue


def _sky(c: Canvas, rng: np.random.Generator, *, clouds: int = 3) -> None:
    top, bottom = _SKIES[int(rng.integers(len(_SKIES)))]
    c.whole()
    c.rectangle(0, 0, 1, 1, (top, bottom))
    for _ in range(int(rng.integers(0, clouds + 1))):
        _cloud(c, rng, rng.uniform(0.05, 0.95), rng.uniform(0.06, 0.38), rng.uniform(0.05, 0.11))


def _cloud(c: Canvas, rng: np.random.Generator, x: float, y: float, size: float) -> None:
    tone = lighter((225, 232, 240), rng.uniform(0.2, 0.9))
    for _ in range(5):
        dx, dy = rng.uniform(-1.3, 1.3) * size, rng.uniform(-0.25, 0.2) * size
        radius = size * rng.uniform(0.5, 0.9) * (1 - abs(dx) / size / 2.4)
        c.ellipse(x + dx, y + dy, radius * 1.2, radius * 0.7, tone, alpha=215)


def _hills(c: Canvas, rng: np.random.Generator, level: float, color: Color, height: float = 0.08) -> None:
    phase, waves = rng.uniform(0, 6.3, 2), rng.uniform(3, 8, 2)
    xs = np.linspace(0, 1, 30)
    ys = level - height * (0.5 + 0.3 * np.sin(xs * waves[0] + phase[0]) + 0.2 * np.sin(xs * waves[1] * 2 + phase[1]))
    line = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
    c.polygon([(0, 1), *line, (1, 1)], (color, darker(color, 0.25)))


def meadow(c: Canvas, rng: np.random.Generator) -> None:
    """Hills and grass below the sky; the ground begins at about two thirds of the height."""
    _sky(c, rng)
    green = pick(rng, _GREENS)
    _hills(c, rng, rng.uniform(0.58, 0.66), mix(green, (150, 180, 200), 0.5), 0.14)
    _hills(c, rng, 0.68, mix(green, (150, 180, 190), 0.2))
    _hills(c, rng, 0.76, green, 0.04)
    for _ in range(int(rng.integers(10, 36))):
        x, y = rng.uniform(0, 1), rng.uniform(0.78, 1)
        for lean in (-0.008, 0.0, 0.009):
            c.stroke([(x, y), (x + lean, y - rng.uniform(0.015, 0.04))], 0.004, darker(green, 0.3))
    if rng.random() < 0.5:
        bloom = pick(rng, ((250, 240, 240), (250, 210, 80), (230, 110, 130), (170, 130, 220)))
        for _ in range(int(rng.integers(6, 22))):
            c.ellipse(rng.uniform(0, 1), rng.uniform(0.78, 1), 0.008, 0.006, bloom)


def forest(c: Canvas, rng: np.random.Generator) -> None:
    """Trunks in mist."""
    c.whole()
    deep = pick(rng, ((58, 96, 78), (92, 108, 66), (66, 88, 98), (120, 104, 68)))
    c.rectangle(0, 0, 1, 1, (lighter(deep, 0.65), lighter(deep, 0.2)))
    for layer in range(3):
        tone = lighter(darker(deep, 0.25), 0.5 - 0.22 * layer)
        for _ in range(int(rng.integers(3, 6))):
            x, width = rng.uniform(0, 1), rng.uniform(0.012, 0.03) * (1 + layer * 0.6)
            c.rectangle(x - width, 0, x + width, 0.8, tone)
    ground = mix(deep, (120, 110, 60), 0.4)
    _hills(c, rng, 0.76, ground, 0.05)
    for _ in range(26):
        x, y = rng.uniform(0, 1), rng.uniform(0.76, 1)
        c.ellipse(x, y, 0.014, 0.007, mix(ground, (190, 120, 60), rng.uniform(0, 0.6)), turn=rng.uniform(0, 180))


def street(c: Canvas, rng: np.random.Generator) -> None:
    """House fronts above a road that begins at about 70 % of the height."""
    _sky(c, rng, clouds=2)
    x = -rng.uniform(0, 0.15)
    while x < 1:
        width, top = rng.uniform(0.13, 0.28), rng.uniform(0.18, 0.48)
        wall = mix(pick(rng, _WALLS), (190, 205, 220), 0.35)
        c.rectangle(x, top, x + width, 0.75, wall)
        lit = pick(rng, ((110, 136, 160), (250, 226, 150), (86, 104, 128)))
        for row in np.arange(top + 0.04, 0.64, 0.09):
            for column in np.arange(x + 0.025, x + width - 0.04, 0.06):
                c.rectangle(column, row, column + 0.03, row + 0.045, lit, alpha=170)
        x += width + (rng.uniform(0, 0.05) if rng.random() < 0.4 else 0)
    c.rectangle(0, 0.72, 1, 0.77, (186, 182, 176))
    asphalt = pick(rng, ((96, 98, 104), (120, 118, 116), (84, 88, 98)))
    c.rectangle(0, 0.77, 1, 1, (asphalt, darker(asphalt, 0.3)))
    for dash in np.arange(rng.uniform(-0.2, 0), 1, 0.25):
        c.polygon([(dash, 0.93), (dash + 0.12, 0.93), (dash + 0.13, 0.95), (dash, 0.95)], (230, 226, 210))


def sea(c: Canvas, rng: np.random.Generator) -> None:
    """Open water; the horizon lies at about 60 % of the height."""
    _sky(c, rng)
    if rng.random() < 0.5:
        x, y = rng.uniform(0.1, 0.9), rng.uniform(0.12, 0.4)
        c.glow(x, y, 0.2, (255, 246, 214), 0.7)
        c.ellipse(x, y, 0.05, 0.05, (255, 244, 208))
    if rng.random() < 0.5:
        _hills(c, rng, 0.62, mix(pick(rng, _GREENS), (150, 176, 205), 0.6), 0.12)
    water = pick(rng, ((46, 116, 166), (40, 140, 160), (70, 100, 150), (60, 150, 170)))
    c.rectangle(0, 0.6, 1, 1, (lighter(water, 0.35), darker(water, 0.3)))
    for _ in range(40):
        x, y = rng.uniform(0, 1), rng.uniform(0.61, 1)
        width = 0.01 + (y - 0.6) * 0.18
        c.stroke(
            [(x, y), (x + width / 2, y - 0.006), (x + width, y)], 0.004, lighter(water, 0.5), alpha=120, smooth=True
        )


def underwater(c: Canvas, rng: np.random.Generator) -> None:
    """Blue water with rays of light, weed, sand and bubbles."""
    c.whole()
    water = pick(rng, ((30, 120, 170), (24, 140, 150), (40, 90, 160), (60, 160, 190)))
    c.rectangle(0, 0, 1, 1, (lighter(water, 0.5), darker(water, 0.45)))
    for _ in range(4):
        x = rng.uniform(0, 1)
        c.polygon([(x, 0), (x + 0.06, 0), (x + rng.uniform(0, 0.3), 1), (x - 0.15, 1)], (255, 255, 255), alpha=18)
    sand = pick(rng, ((214, 190, 140), (190, 180, 150), (150, 150, 140)))
    _hills(c, rng, 0.95, mix(sand, water, 0.35), 0.08)
    for _ in range(int(rng.integers(3, 9))):
        x, height = rng.uniform(0, 1), rng.uniform(0.12, 0.4)
        weed = pick(rng, ((50, 130, 90), (90, 150, 70), (150, 80, 90), (40, 100, 90)))
        sway = rng.uniform(-0.04, 0.04)
        path = [(x, 0.97), (x + sway, 0.97 - height / 3), (x - sway, 0.97 - height / 1.5), (x + sway, 0.97 - height)]
        c.stroke(path, 0.016, weed, smooth=True)
    for _ in range(int(rng.integers(3, 14))):
        x, y, radius = rng.uniform(0, 1), rng.uniform(0, 0.9), rng.uniform(0.005, 0.018)
        c.ellipse(x, y, radius, radius, (230, 246, 252), alpha=120)


def room(c: Canvas, rng: np.random.Generator) -> None:
    """A papered wall and a table whose edge lies at about 70 % of the height."""
    wall(c, rng)
    wood = pick(rng, _WOODS)
    level = rng.uniform(0.66, 0.72)
    c.rectangle(0, level, 1, 1, (lighter(wood, 0.15), darker(wood, 0.2)))
    for _ in range(7):
        y = rng.uniform(level + 0.02, 1)
        c.stroke(
            [(0, y), (0.4, y + rng.uniform(-0.01, 0.01)), (1, y)], 0.003, darker(wood, 0.25), alpha=110, smooth=True
        )
    c.rectangle(0, level, 1, level + 0.008, lighter(wood, 0.35))


def wall(c: Canvas, rng: np.random.Generator) -> None:
    """Wallpaper: plain, stripes, dots or bricks, sometimes with a picture frame or a window."""
    c.whole()
    paint = pick(rng, _WALLS)
    c.rectangle(0, 0, 1, 1, (lighter(paint, 0.12), darker(paint, 0.1)))
    mark = mix(paint, lighter(paint, 0.6) if rng.random() < 0.5 else darker(paint, 0.5), 0.35)
    kind, step = rng.integers(4), rng.uniform(0.07, 0.14)
    if kind == 1:
        for x in np.arange(0, 1, step):
            c.rectangle(x, 0, x + step / 2, 1, mark)
    elif kind == 2:
        for row, y in enumerate(np.arange(0, 1.1, step)):
            for x in np.arange((row % 2) * step / 2, 1.1, step):
                c.ellipse(x, y, step / 7, step / 7, mark)
    elif kind == 3:
        for row, y in enumerate(np.arange(0, 1, step / 2)):
            c.stroke([(0, y), (1, y)], 0.005, mark)
            for x in np.arange((row % 2) * step / 2, 1, step):
                c.stroke([(x, y), (x, y + step / 2)], 0.005, mark)
    if rng.random() < 0.4:
        x, y = float(rng.choice([0.02, 0.74])), rng.uniform(0.04, 0.2)
        c.rectangle(x, y, x + 0.24, y + 0.3, pick(rng, _WOODS))
        inside = pick(rng, _GREENS + _WALLS)
        c.rectangle(x + 0.02, y + 0.02, x + 0.22, y + 0.28, (lighter(inside, 0.5), inside))


def night(c: Canvas, rng: np.random.Generator) -> None:
    """Stars, sometimes a planet."""
    c.whole()
    deep = pick(rng, ((18, 22, 58), (38, 20, 66), (12, 36, 62), (50, 30, 60)))
    c.rectangle(0, 0, 1, 1, (deep, lighter(deep, 0.28)))
    c.glow(rng.uniform(0, 1), rng.uniform(0, 1), 0.5, pick(rng, ((120, 80, 180), (60, 120, 190), (190, 90, 130))), 0.4)
    for _ in range(int(rng.integers(30, 80))):
        radius = rng.uniform(0.0015, 0.005)
        c.ellipse(
            rng.uniform(0, 1), rng.uniform(0, 1), radius, radius, (250, 246, 225), alpha=int(rng.integers(120, 255))
        )
    if rng.random() < 0.6:
        x, y, radius = float(rng.choice([0.13, 0.87])), rng.uniform(0.1, 0.85), rng.uniform(0.06, 0.12)
        planet = pick(rng, ((214, 150, 96), (150, 190, 210), (200, 200, 190), (170, 120, 180)))
        c.ellipse(x, y, radius, radius, (lighter(planet, 0.2), darker(planet, 0.4)))
        if rng.random() < 0.5:
            c.ellipse(x, y, radius * 1.7, radius * 0.25, lighter(planet, 0.4), alpha=130, turn=-18)


def sky(c: Canvas, rng: np.random.Generator) -> None:
    """Sky above distant hills."""
    _sky(c, rng, clouds=6)
    _hills(c, rng, 0.95, mix(pick(rng, _GREENS), (150, 180, 205), 0.35), 0.1)
    for _ in range(int(rng.integers(0, 6))):
        x, y, size = rng.uniform(0.05, 0.95), rng.uniform(0.1, 0.7), rng.uniform(0.008, 0.018)
        wings = [(x - size, y - size / 2), (x, y), (x + size, y - size / 2)]
        c.stroke(wings, 0.004, (70, 76, 96), smooth=True)


def bokeh(c: Canvas, rng: np.random.Generator) -> None:
    """Blurred garden with discs of light."""
    c.whole()
    base = pick(rng, (*_GREENS, (90, 120, 140), (170, 120, 110), (110, 100, 140)))
    c.rectangle(0, 0, 1, 1, (lighter(base, 0.35), darker(base, 0.3)))
    for _ in range(int(rng.integers(10, 26))):
        radius = rng.uniform(0.02, 0.1)
        disc = mix(base, pick(rng, ((255, 240, 190), (200, 230, 160), (250, 200, 200))), rng.uniform(0.2, 0.7))
        c.ellipse(rng.uniform(0, 1), rng.uniform(0, 1), radius, radius, disc, alpha=110)
    c.blur(0.012)


def rain(c: Canvas, rng: np.random.Generator) -> None:
    """A wet street."""
    street(c, rng)
    c.blur(0.008)
    c.rectangle(0, 0, 1, 1, (90, 104, 128), alpha=110)
    slant = rng.uniform(-0.03, 0.03)
    for _ in range(70):
        x, y = rng.uniform(0, 1), rng.uniform(0, 1)
        c.stroke([(x, y), (x + slant, y + 0.05)], 0.003, (214, 226, 238), alpha=140)


def studio(c: Canvas, rng: np.random.Generator) -> None:
    """A sheet of coloured paper, lit from one side."""
    c.whole()
    paper = pick(rng, (*_WALLS, (244, 208, 120), (240, 150, 130), (120, 190, 190), (150, 130, 190)))
    c.rectangle(0, 0, 1, 1, (lighter(paper, 0.25), paper))
    level = rng.uniform(0.66, 0.76)
    c.rectangle(0, level, 1, 1, (darker(paper, 0.1), lighter(paper, 0.1)))
    side = math.copysign(0.45, rng.uniform(-1, 1))
    c.glow(0.5 + side, 0.2, 0.6, (255, 255, 255), 0.4)


BACKGROUNDS: dict[str, Callable[[Canvas, np.random.Generator], None]] = {
    "meadow": meadow,
    "forest": forest,
    "street": street,
    "sea": sea,
    "underwater": underwater,
    "room": room,
    "wall": wall,
    "night": night,
    "sky": sky,
    "bokeh": bokeh,
    "rain": rain,
    "studio": studio,
}
