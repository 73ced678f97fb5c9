"""Vehicles: sailboat, car, balloon, rocket, bicycle."""

from __future__ import annotations

import math

import numpy as np

from cbir.indexer.samples.backgrounds import pick
from cbir.indexer.samples.canvas import Canvas, Color, Point, darker, lighter, mix

__all__ = ["balloon", "bicycle", "car", "rocket", "sailboat"]

_PAINTS: tuple[Color, ...] = (
    (206, 58, 54),
    (52, 110, 180),
    (240, 190, 60),
    (74, 150, 110),
    (236, 236, 232),
    (60, 66, 80),
    (226, 120, 60),
    (130, 90, 170),
    (120, 190, 210),
)


def sailboat(c: Canvas, rng: np.random.Generator) -> None:
    """A hull with a mainsail, and mostly a foresail, in waves."""
    hull, sail = (
        pick(rng, _PAINTS),
        pick(rng, ((250, 246, 236), (250, 246, 236), (236, 96, 80), (250, 206, 90), (110, 170, 210))),
    )
    c.shadow(0, 0.86, 1.0, 0.14, 0.35)
    c.stroke([(0, 0.5), (0, -0.98)], 0.045, (120, 88, 62))
    c.polygon([(0, -0.98), (0.26, -0.9), (0, -0.82)], pick(rng, _PAINTS))
    belly, boom = rng.uniform(0.05, 0.18), rng.uniform(0.66, 0.84)
    luff: list[Point] = [(0.05, -0.86), (0.05, 0.34), (boom, 0.34)]
    curve: list[Point] = [
        (boom + (0.05 - boom) * t + belly * math.sin(math.pi * t), 0.34 - 1.2 * t + belly * math.sin(math.pi * t) * 0.4)
        for t in np.linspace(0, 1, 12)[1:-1].tolist()
    ]
    c.polygon(luff + curve, (sail, darker(sail, 0.14)))
    for y in (-0.35, 0.0):
        share = (y + 0.86) / 1.2
        c.stroke([(0.05, y), (0.05 + (boom - 0.05) * share, y + 0.02)], 0.016, darker(sail, 0.25))
    if rng.random() < 0.85:
        jib = sail if rng.random() < 0.6 else pick(rng, _PAINTS)
        c.smooth(
            [(-0.05, -0.72), (-0.06, 0.32), (-0.4, 0.38), (-0.72, 0.36), (-0.36, -0.12)],
            (lighter(jib, 0.1), darker(jib, 0.18)),
        )
    c.smooth(
        [(-0.9, 0.46), (-0.3, 0.5), (0.4, 0.5), (0.92, 0.44), (0.62, 0.8), (0.0, 0.86), (-0.6, 0.8)],
        (hull, darker(hull, 0.35)),
    )
    c.stroke([(-0.82, 0.56), (0.0, 0.6), (0.84, 0.54)], 0.05, lighter(hull, 0.7), smooth=True)
    if rng.random() < 0.6:
        for x in (-0.3, 0.0, 0.3):
            c.ellipse(x, 0.69, 0.05, 0.05, lighter(hull, 0.6))
    for _ in range(9):
        x, y = rng.uniform(-1.1, 0.9), rng.uniform(0.78, 0.95)
        c.stroke([(x, y), (x + 0.12, y - 0.05), (x + 0.26, y)], 0.035, (226, 240, 248), alpha=200, smooth=True)


def car(c: Canvas, rng: np.random.Generator) -> None:
    """Side view: saloon, hatchback or van."""
    paint = pick(rng, _PAINTS)
    c.shadow(0, 0.47, 1.1, 0.12, 0.6)
    roofs: tuple[list[Point], ...] = (
        [(-0.62, -0.02), (-0.38, -0.4), (-0.05, -0.48), (0.22, -0.42), (0.5, -0.02)],
        [(-0.86, -0.02), (-0.76, -0.38), (-0.3, -0.5), (0.1, -0.44), (0.42, -0.02)],
        [(-0.94, 0.0), (-0.92, -0.55), (-0.4, -0.62), (0.34, -0.56), (0.62, -0.04)],
    )
    roof = roofs[int(rng.integers(3))]
    c.smooth([*roof, (0.4, 0.1), (-0.5, 0.1)], (lighter(paint, 0.2), paint))
    body: list[Point] = [
        (-0.98, 0.12),
        (-0.92, -0.06),
        (-0.4, -0.1),
        (0.4, -0.08),
        (0.86, 0.0),
        (1.0, 0.18),
        (0.97, 0.36),
        (-0.96, 0.36),
    ]
    c.smooth(body, (lighter(paint, 0.1), darker(paint, 0.3)))
    top = min(y for _, y in roof)
    left, right = roof[0][0] + 0.17, roof[-1][0] - 0.14
    glass: Color = (176, 214, 230)
    slope = 0.62
    windows: list[Point] = [
        (left, -0.07),
        (left + (roof[1][0] - roof[0][0]) * slope, top + 0.1),
        (roof[3][0] - 0.06, top + 0.11),
        (right, -0.07),
    ]
    c.polygon(windows, (lighter(glass, 0.4), darker(glass, 0.25)))
    middle = (left + right) / 2 + rng.uniform(-0.06, 0.06)
    c.rectangle(middle - 0.03, top + 0.06, middle + 0.03, -0.06, paint)
    c.stroke([(middle, -0.02), (middle, 0.3)], 0.014, darker(paint, 0.4))
    c.stroke([(-0.9, 0.08), (0.9, 0.1)], 0.014, darker(paint, 0.3))
    c.rectangle(middle - 0.2, 0.06, middle - 0.09, 0.09, lighter(paint, 0.5), radius=0.01)
    c.ellipse(0.9, 0.13, 0.08, 0.06, (255, 246, 200))
    c.ellipse(-0.93, 0.12, 0.05, 0.06, (230, 60, 50))
    c.rectangle(-1.0, 0.3, 1.0, 0.38, (70, 74, 84), radius=0.03)
    rim = lighter(pick(rng, ((190, 196, 204), (120, 126, 136), (220, 220, 214))), 0.1)
    for x in (-0.58, 0.6):
        c.ellipse(x, 0.34, 0.27, 0.27, darker(paint, 0.65))
        c.ellipse(x, 0.36, 0.23, 0.23, (36, 38, 44))
        c.ellipse(x, 0.36, 0.13, 0.13, rim)
        for spoke in range(5):
            angle = spoke * 72 + rng.uniform(0, 10)
            end = (x + math.cos(math.radians(angle)) * 0.11, 0.36 + math.sin(math.radians(angle)) * 0.11)
            c.stroke([(x, 0.36), end], 0.025, darker(rim, 0.5))


def balloon(c: Canvas, rng: np.random.Generator) -> None:
    """A hot-air balloon with coloured gores and a basket."""
    first, second = pick(rng, _PAINTS), pick(rng, _PAINTS)
    third = lighter(first, 0.55)
    wide = rng.uniform(0.62, 0.74)

    def half(y: float) -> float:
        """Half the envelope's width at a height."""
        if y < -0.3:
            return wide * math.sqrt(max(0.0, 1 - ((y + 0.3) / 0.68) ** 2))
        return wide * (1 - math.pow((y + 0.3) / 0.78, 1.8) * 0.8)

    ys = np.linspace(-0.98, 0.48, 30).tolist()
    gores, colors = 8, (first, second) if rng.random() < 0.5 else (first, third, second, third)
    # Gore edges as seen on a ball: evenly spaced angles, projected.
    edges = [math.sin(math.pi * (number / gores - 0.5)) for number in range(gores + 1)]
    for number in range(gores):
        left = [(half(y) * edges[number], y) for y in ys]
        right = [(half(y) * edges[number + 1], y) for y in reversed(ys)]
        tone = colors[number % len(colors)]
        c.polygon(left + right, (lighter(tone, 0.15), darker(tone, 0.2)))
    if rng.random() < 0.5:
        band = lighter(second, 0.75)
        low, high = -0.34, -0.16
        c.polygon([(-half(low), low), (half(low), low), (half(high), high), (-half(high), high)], band)
    c.smooth([(-0.4, -0.5), (-0.25, -0.82), (-0.12, -0.85), (-0.3, -0.3)], (255, 255, 255), alpha=70)
    rope: Color = (80, 62, 50)
    for x in (-0.14, -0.05, 0.05, 0.14):
        c.stroke([(x, 0.47), (x * 0.8, 0.74)], 0.014, rope)
    c.ellipse(0, 0.52, 0.05, 0.08, (255, 190, 80))
    basket = pick(rng, ((160, 110, 66), (130, 90, 60), (190, 140, 90)))
    c.rectangle(-0.15, 0.72, 0.15, 0.96, (basket, darker(basket, 0.3)), radius=0.04)
    for y in (0.79, 0.86):
        c.stroke([(-0.14, y), (0.14, y)], 0.014, darker(basket, 0.4))
    c.rectangle(-0.17, 0.7, 0.17, 0.75, darker(basket, 0.25), radius=0.02)


def rocket(c: Canvas, rng: np.random.Generator) -> None:
    """A pointed rocket with fins, a porthole and fire."""
    body, trim = pick(rng, ((240, 240, 238), (200, 210, 220), (246, 220, 160), (170, 190, 210))), pick(rng, _PAINTS)
    wide, long = rng.uniform(0.24, 0.34), rng.uniform(0.28, 0.42)
    c.glow(0, 0.85, 0.6, (255, 180, 90), 0.6)
    for flame, size in (((240, 90, 50), 1.0), ((255, 170, 60), 0.7), ((255, 240, 170), 0.4)):
        w = wide * 0.8 * size
        c.smooth(
            [
                (-w, 0.52),
                (-w * 0.8, 0.62),
                (rng.uniform(-0.05, 0.05), 0.6 + long * size * 1.25),
                (w * 0.8, 0.62),
                (w, 0.52),
            ],
            flame,
        )
    fin = rng.uniform(0.3, 0.42)
    for side in (-1, 1):
        c.smooth(
            [
                (side * wide * 0.8, 0.05),
                (side * (wide + fin), 0.45),
                (side * (wide + fin * 0.9), 0.66),
                (side * wide * 0.6, 0.48),
            ],
            (trim, darker(trim, 0.35)),
        )
    hull: list[Point] = [
        (0, -0.98),
        (wide * 0.62, -0.66),
        (wide, -0.15),
        (wide * 0.72, 0.5),
        (-wide * 0.72, 0.5),
        (-wide, -0.15),
        (-wide * 0.62, -0.66),
    ]
    c.smooth(hull, (lighter(body, 0.3), darker(body, 0.18)))
    c.smooth(
        [(0, -0.98), (wide * 0.6, -0.62), (0, -0.56), (-wide * 0.6, -0.62)], (lighter(trim, 0.1), darker(trim, 0.15))
    )
    c.smooth(
        [(wide * 0.4, -0.55), (wide * 0.85, -0.1), (wide * 0.6, 0.45), (wide * 0.35, 0.45), (wide * 0.5, -0.1)],
        darker(body, 0.35),
        alpha=110,
    )
    windows = int(rng.integers(1, 3))
    for number in range(windows):
        y = -0.28 + number * 0.3
        c.ellipse(0, y, 0.13, 0.13, darker(trim, 0.2))
        c.ellipse(0, y, 0.09, 0.09, ((150, 210, 236), (60, 110, 160)))
        c.ellipse(-0.03, y - 0.03, 0.025, 0.025, (255, 255, 255))
    c.rectangle(-wide * 0.74, 0.3, wide * 0.74, 0.38, trim)
    c.smooth([(-0.05, 0.15), (0.05, 0.15), (0.06, 0.66), (-0.06, 0.66)], darker(trim, 0.25))
    c.rectangle(-wide * 0.6, 0.48, wide * 0.6, 0.56, (90, 96, 108), radius=0.02)


def bicycle(c: Canvas, rng: np.random.Generator) -> None:
    """Side view, facing right."""
    paint = pick(rng, _PAINTS)
    tyre: Color = (44, 46, 52)
    steel: Color = (150, 156, 166)
    c.shadow(0, 0.72, 1.1, 0.08, 0.5)
    radius = rng.uniform(0.36, 0.42)
    rear, front = (-0.58, 0.3), (0.6, 0.3)
    for x, y in (rear, front):
        start = rng.uniform(0, 30)
        for spoke in range(12):
            angle = math.radians(start + spoke * 30)
            c.stroke([(x, y), (x + math.cos(angle) * radius, y + math.sin(angle) * radius)], 0.009, lighter(steel, 0.3))
        c.ring(x, y, radius, 0.055, tyre)
        c.ring(x, y, radius - 0.045, 0.02, lighter(steel, 0.2))
        c.ellipse(x, y, 0.045, 0.045, steel)
    crank, seat, head = (-0.08, 0.34), (-0.26, -0.3), (0.4, -0.34)
    step_through = rng.random() < 0.35
    tube = 0.062
    c.stroke([rear, (seat[0] + 0.03, seat[1] + 0.06)], tube * 0.7, darker(paint, 0.15))
    c.stroke([rear, crank], tube * 0.7, darker(paint, 0.15))
    c.stroke([crank, seat], tube, paint)
    c.stroke([crank, head], tube, paint)
    c.stroke(
        [(-0.16, 0.06) if step_through else (seat[0] + 0.02, seat[1] + 0.06), (head[0], head[1] + 0.06)], tube, paint
    )
    c.stroke([head, (0.47, -0.05), front], tube, paint, smooth=True)
    c.stroke([head, (head[0] - 0.03, -0.5)], tube * 0.8, steel)
    if rng.random() < 0.5:
        c.stroke([(head[0] - 0.03, -0.5), (0.5, -0.54), (0.62, -0.44), (0.54, -0.32)], 0.05, tyre, smooth=True)
    else:
        c.stroke([(head[0] - 0.03, -0.5), (0.26, -0.56), (0.12, -0.52)], 0.05, tyre, smooth=True)
    c.stroke([seat, (seat[0] - 0.03, -0.44)], tube * 0.7, steel)
    c.smooth(
        [(-0.48, -0.5), (-0.26, -0.5), (-0.06, -0.47), (-0.26, -0.41), (-0.46, -0.41)], mix(tyre, (120, 70, 40), 0.4)
    )
    c.ring(crank[0], crank[1], 0.1, 0.03, darker(steel, 0.3))
    turn = rng.uniform(0, math.pi)
    arm = (math.cos(turn) * 0.2, math.sin(turn) * 0.2)
    for sign in (-1, 1):
        end = (crank[0] + sign * arm[0], crank[1] + sign * arm[1])
        c.stroke([crank, end], 0.03, steel)
        c.stroke([(end[0] - 0.07, end[1]), (end[0] + 0.07, end[1])], 0.035, tyre)
    if rng.random() < 0.4:
        c.stroke([(head[0], head[1] + 0.04), (0.56, -0.26)], 0.03, steel)
        wicker = pick(rng, ((190, 140, 90), (150, 110, 74)))
        c.polygon([(0.46, -0.5), (0.86, -0.5), (0.8, -0.2), (0.52, -0.2)], (wicker, darker(wicker, 0.3)))
