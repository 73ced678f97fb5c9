"""Buildings and objects: house, clock, umbrella, cup, guitar."""

from __future__ import annotations

import math

import numpy as np

from cbir.indexer.samples.backgrounds import pick
from cbir.indexer.samples.canvas import Canvas, Color, Point, darker, lighter, mix

__all__ = ["clock", "cup", "guitar", "house", "umbrella"]

_COLORS: tuple[Color, ...] = (
    (206, 66, 60),
    (60, 120, 176),
    (240, 194, 80),
    (80, 150, 120),
    (244, 240, 232),
    (70, 76, 92),
    (230, 130, 80),
    (140, 100, 170),
    (236, 150, 170),
    (110, 186, 196),
)


def house(c: Canvas, rng: np.random.Generator) -> None:
    """A cottage with roof, chimney, door and windows."""
    paint = pick(
        rng, ((240, 226, 200), (220, 150, 120), (180, 206, 214), (244, 240, 232), (236, 200, 120), (190, 120, 100))
    )
    roof = pick(rng, ((176, 74, 58), (110, 84, 76), (84, 100, 124), (150, 110, 80), (90, 110, 90)))
    wood = pick(rng, ((120, 76, 50), (60, 100, 120), (150, 50, 50), (70, 110, 80)))
    steep, half = rng.uniform(0.6, 0.85), rng.uniform(0.62, 0.74)
    c.shadow(0.08, 0.86, 1.05, 0.12)
    side = float(rng.choice([-1.0, 1.0]))
    chimney = side * half * 0.55
    c.rectangle(chimney - 0.1, -0.12 - steep * 0.85, chimney + 0.1, 0.0, (lighter(roof, 0.1), darker(roof, 0.3)))
    if rng.random() < 0.5:
        for puff in range(4):
            radius = 0.07 + puff * 0.03
            c.ellipse(
                chimney + side * puff * 0.09,
                -0.2 - steep * 0.85 - puff * 0.13,
                radius,
                radius * 0.8,
                (236, 238, 240),
                alpha=150,
            )
    c.rectangle(-half, -0.12, half, 0.84, (paint, darker(paint, 0.16)))
    c.polygon([(-half, -0.12), (0, -0.12 - steep * 0.9), (half, -0.12)], darker(paint, 0.06))
    c.polygon(
        [
            (-half - 0.2, -0.02),
            (0, -0.2 - steep),
            (half + 0.2, -0.02),
            (half + 0.08, 0.06),
            (0, -steep),
            (-half - 0.08, 0.06),
        ],
        (roof, darker(roof, 0.25)),
    )
    lit: Color = (255, 226, 140) if rng.random() < 0.4 else (160, 200, 220)
    door = float(rng.choice([0.0, -0.32, 0.32]))
    spots = [x for x in (-0.42, 0.0, 0.42) if abs(x - door) > 0.3]
    for x in spots:
        _window(c, x, 0.3, 0.15, lit, wood)
    c.ellipse(0, -0.32, 0.13, 0.13, lighter(wood, 0.7))
    c.ellipse(0, -0.32, 0.1, 0.1, lit)
    c.rectangle(door - 0.16, 0.28, door + 0.16, 0.84, lighter(wood, 0.7))
    c.rectangle(door - 0.13, 0.31, door + 0.13, 0.84, (wood, darker(wood, 0.25)))
    c.ellipse(door + 0.08, 0.6, 0.022, 0.022, (246, 220, 130))
    c.rectangle(door - 0.2, 0.82, door + 0.2, 0.88, (190, 186, 180))
    bush = pick(rng, ((84, 140, 80), (110, 150, 70), (70, 120, 90)))
    for x in (-half - 0.05, -half + 0.14, half - 0.1, half + 0.1):
        if rng.random() < 0.7:
            radius = rng.uniform(0.1, 0.17)
            c.ellipse(x, 0.84 - radius * 0.4, radius, radius, (lighter(bush, 0.15), darker(bush, 0.25)))


def _window(c: Canvas, x: float, y: float, half: float, glass: Color, frame: Color) -> None:
    c.rectangle(x - half, y - half, x + half, y + half, lighter(frame, 0.75))
    c.rectangle(x - half + 0.03, y - half + 0.03, x + half - 0.03, y + half - 0.03, (lighter(glass, 0.3), glass))
    c.rectangle(x - 0.014, y - half, x + 0.014, y + half, lighter(frame, 0.75))
    c.rectangle(x - half, y - 0.014, x + half, y + 0.014, lighter(frame, 0.75))


def clock(c: Canvas, rng: np.random.Generator) -> None:
    """A round dial with hands: on a wall, or an alarm clock with bells and feet."""
    rim, face = pick(rng, _COLORS), pick(rng, ((252, 250, 244), (252, 250, 244), (240, 230, 206), (220, 232, 236)))
    c.shadow(0.06, 0.12, 1.05, 1.05, 0.5)
    radius = 0.9
    cy = 0.0
    if rng.random() < 0.4:
        radius, cy = 0.74, 0.14
        for side in (-1, 1):
            c.stroke([(side * 0.4, 0.7), (side * 0.58, 0.98)], 0.1, darker(rim, 0.3))
            c.ellipse(side * 0.45, -0.6, 0.27, 0.2, (lighter(rim, 0.3), darker(rim, 0.2)), turn=side * 38)
        c.stroke([(0, -0.5), (0, -0.86)], 0.06, darker(rim, 0.3))
        c.ellipse(0, -0.88, 0.09, 0.07, darker(rim, 0.4))
    c.ellipse(0, cy, radius, radius, (lighter(rim, 0.3), darker(rim, 0.25)))
    c.ellipse(0, cy, radius * 0.84, radius * 0.84, darker(face, 0.18))
    c.ellipse(0, cy + 0.015, radius * 0.82, radius * 0.82, face)
    ink: Color = (40, 42, 52)
    for minute in range(60):
        if minute % 5:
            _tick(c, cy, radius, minute, (0.76, 0.79), 0.008, ink)
    dots = rng.random() < 0.3
    for hour in range(12):
        if dots:
            angle = math.radians(hour * 30)
            size = 0.05 if hour % 3 == 0 else 0.03
            c.ellipse(math.cos(angle) * radius * 0.68, cy + math.sin(angle) * radius * 0.68, size, size, ink)
        else:
            _tick(
                c, cy, radius, hour * 5, (0.6 if hour % 3 == 0 else 0.67, 0.77), 0.035 if hour % 3 == 0 else 0.022, ink
            )
    # The hands are turned independently: a time that no clock shows does not matter here.
    for turn, length, width in ((rng.uniform(0, 360), 0.42, 0.06), (rng.uniform(0, 360), 0.64, 0.04)):
        angle = math.radians(turn)
        dx, dy = math.sin(angle), -math.cos(angle)
        c.stroke([(-dx * 0.1, cy - dy * 0.1), (dx * radius * length, cy + dy * radius * length)], width, ink)
    angle = rng.uniform(0, 2 * math.pi)
    dx, dy = math.cos(angle) * radius * 0.7, math.sin(angle) * radius * 0.7
    c.stroke([(-dx * 0.2, cy - dy * 0.2), (dx, cy + dy)], 0.016, (210, 60, 50))
    c.ellipse(0, cy, 0.05, 0.05, (210, 60, 50))


def _tick(
    c: Canvas, cy: float, radius: float, minute: int, span: tuple[float, float], width: float, ink: Color
) -> None:
    angle = math.radians(minute * 6 - 90)
    inner, outer = (radius * share for share in span)
    start = (math.cos(angle) * inner, cy + math.sin(angle) * inner)
    c.stroke([start, (math.cos(angle) * outer, cy + math.sin(angle) * outer)], width, ink)


def umbrella(c: Canvas, rng: np.random.Generator) -> None:
    """Open, from the side, with a curved handle."""
    first, second = pick(rng, _COLORS), pick(rng, _COLORS)
    if rng.random() < 0.35:
        second = lighter(first, 0.12)
    wide, low, high = 0.98, 0.0, rng.uniform(-0.85, -0.72)
    stick: Color = (92, 70, 56)
    hook: list[Point] = [(0, high - 0.12), (0, 0.72), (0.04, 0.9), (0.16, 0.96), (0.27, 0.88), (0.28, 0.76)]
    c.stroke(hook[:2], 0.05, stick)
    c.stroke(hook[1:], 0.07, darker(stick, 0.2), smooth=True)
    panels = int(rng.choice([5, 6, 7]))
    edges = [math.sin(math.pi * (number / panels - 0.5)) * wide for number in range(panels + 1)]
    under = darker(first, 0.55)
    c.smooth(
        [(-wide, low), (-0.4, low - 0.16), (0.4, low - 0.16), (wide, low), (0.5, low + 0.05), (-0.5, low + 0.05)], under
    )
    for number in range(panels):
        left, right = edges[number], edges[number + 1]
        rim = np.linspace(0, 1, 9)
        scallop = [
            (left + (right - left) * t, low - 0.1 * math.sin(math.pi * t) * (right - left) / 0.5) for t in rim.tolist()
        ]
        spine = np.linspace(0, 1, 12).tolist()
        rising = [_rib(left, low, high, t) for t in spine]
        falling = [_rib(right, low, high, t) for t in reversed(spine)]
        tone = (first, second)[number % 2]
        shade = abs((left + right) / 2) * 0.22
        c.polygon(rising + falling + scallop[::-1], (lighter(darker(tone, shade), 0.18), darker(tone, shade + 0.06)))
    for x in edges[1:-1]:
        c.stroke([_rib(x, low, high, t) for t in np.linspace(0, 1, 12).tolist()], 0.012, darker(first, 0.35))
    if rng.random() < 0.3:
        for _ in range(16):
            t, x = rng.uniform(0.15, 0.8), rng.uniform(-0.8, 0.8)
            px, py = _rib(x, low, high, t)
            c.ellipse(px, py, 0.045, 0.04, lighter(second, 0.5))
    c.stroke([(0, high - 0.14), (0, high)], 0.04, stick)


def _rib(x: float, low: float, high: float, t: float) -> Point:
    """A point of the rib that ends at x on the rim; t runs from 0 (the rim) to 1 (the top)."""
    angle = t * math.pi / 2
    return x * math.cos(angle) ** 0.9, low + (high - low) * math.sin(angle)


def cup(c: Canvas, rng: np.random.Generator) -> None:
    """A mug with a handle, sometimes on a saucer, sometimes steaming."""
    glaze, drink = pick(rng, _COLORS), pick(rng, ((92, 58, 40), (150, 100, 60), (190, 120, 60), (226, 214, 196)))
    taper, half = rng.uniform(0.72, 1.0), rng.uniform(0.5, 0.62)
    saucer = rng.random() < 0.5
    c.shadow(0.05, 0.82, 1.0, 0.2, 0.55)
    if saucer:
        plate = lighter(glaze, 0.45)
        c.ellipse(0, 0.8, 0.98, 0.17, darker(plate, 0.25))
        c.ellipse(0, 0.77, 0.98, 0.17, (lighter(plate, 0.2), plate))
        c.ellipse(0, 0.77, 0.62, 0.1, darker(plate, 0.1))
    ear: list[Point] = [
        (half * 0.92, -0.22),
        (half + 0.34, -0.26),
        (half + 0.4, 0.12),
        (half + 0.2, 0.38),
        (half * taper * 0.95, 0.42),
    ]
    c.stroke(ear, 0.13, darker(glaze, 0.18), smooth=True)
    c.stroke(ear, 0.07, lighter(glaze, 0.12), smooth=True)
    low = half * taper
    side: list[Point] = [
        (-half, -0.42),
        (half, -0.42),
        (low + (half - low) * 0.3, 0.5),
        (low * 0.86, 0.76),
        (-low * 0.86, 0.76),
        (-low - (half - low) * 0.3, 0.5),
    ]
    c.polygon(side, (glaze, darker(glaze, 0.22)))
    c.ellipse(0, 0.755, low * 0.86, 0.07, darker(glaze, 0.22))
    kind = rng.integers(4)
    accent = lighter(pick(rng, _COLORS), 0.25)
    if kind == 1:
        for y in (-0.05, 0.2):
            c.polygon([(-half * 0.97, y), (half * 0.97, y), (half * 0.955, y + 0.1), (-half * 0.955, y + 0.1)], accent)
    elif kind == 2:
        for x, y in ((-0.3, 0.0), (0.05, 0.16), (0.32, -0.08), (-0.1, 0.42), (0.26, 0.42), (-0.32, 0.36)):
            c.ellipse(x, y, 0.065, 0.065, accent)
    elif kind == 3:
        c.smooth(
            [
                (0, 0.42),
                (-0.26, 0.12),
                (-0.2, -0.06),
                (-0.04, -0.04),
                (0, 0.04),
                (0.04, -0.04),
                (0.2, -0.06),
                (0.26, 0.12),
            ],
            accent,
        )
    c.polygon(
        [(-half * 0.86, -0.3), (-half * 0.68, -0.3), (-half * 0.66 * taper, 0.6), (-half * 0.8 * taper, 0.6)],
        (255, 255, 255),
        alpha=70,
    )
    c.ellipse(0, -0.42, half, 0.15, lighter(glaze, 0.35))
    c.ellipse(0, -0.41, half * 0.9, 0.115, darker(glaze, 0.45))
    c.ellipse(0, -0.39, half * 0.86, 0.09, (lighter(drink, 0.15), drink))
    if rng.random() < 0.65:
        for x in (-0.2, 0.05, 0.27):
            sway = rng.uniform(0.04, 0.1)
            c.stroke(
                [(x, -0.5), (x + sway, -0.66), (x - sway, -0.82), (x + sway, -1.0)],
                0.045,
                (250, 250, 250),
                alpha=130,
                smooth=True,
            )


def guitar(c: Canvas, rng: np.random.Generator) -> None:
    """An acoustic guitar, upright before it is turned."""
    top = pick(rng, ((222, 160, 90), (196, 116, 60), (150, 80, 50), (236, 200, 140), (180, 60, 50), (70, 80, 110)))
    edge, dark = darker(top, 0.5), mix((70, 48, 38), (40, 34, 36), rng.uniform(0, 1))
    waist, wide = rng.uniform(0.22, 0.28), rng.uniform(0.44, 0.5)
    body: list[Point] = [
        (0, -0.06),
        (0.26, -0.02),
        (0.34, 0.16),
        (waist, 0.36),
        (wide - 0.05, 0.56),
        (wide - 0.06, 0.84),
        (0.2, 0.99),
        (0, 1.0),
    ]
    outline = body + [(-x, y) for x, y in reversed(body[1:-1])]
    c.smooth([(x * 1.07, 0.48 + (y - 0.48) * 1.05) for x, y in outline], edge)
    c.smooth(outline, (lighter(top, 0.12), darker(top, 0.15)))
    c.polygon([(-0.055, -0.72), (0.055, -0.72), (0.07, 0.34), (-0.07, 0.34)], dark)
    c.ellipse(0, 0.42, 0.165, 0.165, lighter(top, 0.5))
    c.ellipse(0, 0.42, 0.14, 0.14, (38, 28, 26))
    c.rectangle(-0.19, 0.74, 0.19, 0.8, dark, radius=0.02)
    for fret in range(9):
        y = -0.68 + 1.0 * (1 - 0.92**fret) * 1.7
        c.stroke([(-0.06, y), (0.06, y)], 0.01, (210, 206, 196))
    head: list[Point] = [(-0.06, -0.7), (-0.11, -0.76), (-0.1, -0.98), (0.1, -0.98), (0.11, -0.76), (0.06, -0.7)]
    c.polygon(head, (lighter(dark, 0.15), dark))
    for y in (-0.93, -0.86, -0.79):
        for side in (-1, 1):
            c.stroke([(side * 0.1, y), (side * 0.16, y)], 0.03, (222, 214, 196))
    for x in (-0.04, -0.024, -0.008, 0.008, 0.024, 0.04):
        c.stroke([(x, -0.72), (x * 1.25, 0.77)], 0.006, (236, 232, 220), alpha=230)
    if rng.random() < 0.5:
        c.smooth([(0.1, 0.55), (0.22, 0.46), (0.3, 0.6), (0.22, 0.72), (0.12, 0.66)], darker(top, 0.6))
    c.smooth([(-0.3, 0.62), (-0.36, 0.75), (-0.26, 0.9), (-0.24, 0.76)], (255, 255, 255), alpha=50)
