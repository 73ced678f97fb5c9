"""Animals: fish, cat."""

from __future__ import annotations

import math

import numpy as np

from cbir.indexer.samples.backgrounds import pick
from cbir.indexer.samples.canvas import Canvas, Color, darker, lighter, mix

__all__ = ["cat", "fish"]

_FISH: tuple[Color, ...] = (
    (240, 130, 50),
    (250, 200, 70),
    (220, 80, 90),
    (120, 200, 190),
    (150, 120, 210),
    (190, 200, 215),
)
_FURS: tuple[Color, ...] = (
    (230, 150, 80),
    (120, 120, 128),
    (70, 66, 74),
    (240, 228, 212),
    (170, 130, 100),
    (200, 170, 140),
)


def fish(c: Canvas, rng: np.random.Generator) -> None:
    """Side view, swimming to the right."""
    body = pick(rng, _FISH)
    second = lighter(pick(rng, _FISH), 0.3)
    deep = rng.uniform(0.38, 0.6)
    sway = rng.uniform(-0.12, 0.12)
    fin = mix(body, second, 0.6)
    c.smooth(
        [(-0.55, 0.0), (-0.98, -0.48 + sway), (-0.84, sway), (-0.98, 0.48 + sway)],
        (lighter(fin, 0.2), darker(fin, 0.2)),
    )
    c.smooth([(-0.3, -deep * 0.8), (0.0, -deep - 0.3), (0.35, -deep * 0.95), (0.1, -deep * 0.6)], darker(fin, 0.1))
    c.smooth([(-0.1, deep * 0.7), (0.0, deep + 0.2), (0.25, deep * 0.8)], darker(fin, 0.15))
    outline = [(-0.7, sway / 2), (-0.35, -deep * 0.75), (0.15, -deep), (0.65, -deep * 0.62), (0.92, 0.04)]
    outline += [(0.65, deep * 0.62), (0.15, deep * 0.95), (-0.35, deep * 0.7)]
    c.smooth(outline, (body, mix(body, (255, 250, 235), 0.65)))
    pattern = rng.integers(3)
    if pattern == 0:
        for x in (-0.3, 0.02, 0.34):
            half = deep * math.sqrt(max(0.1, 1 - ((x - 0.1) / 0.9) ** 2)) * 0.82
            c.smooth([(x - 0.07, -half), (x + 0.07, -half), (x + 0.1, 0), (x + 0.05, half), (x - 0.07, half)], second)
    elif pattern == 1:
        for _ in range(14):
            x, y, radius = rng.uniform(-0.4, 0.4), rng.uniform(-0.6, 0.6) * deep, rng.uniform(0.03, 0.07)
            c.ellipse(x, y, radius, radius, second)
    else:
        for row in range(3):
            for x in np.arange(-0.35, 0.42, 0.15):
                y = (row - 1) * deep * 0.42
                c.stroke([(x, y - 0.07), (x + 0.07, y), (x, y + 0.07)], 0.025, darker(body, 0.25), smooth=True)
    c.stroke([(0.5, -deep * 0.6), (0.42, 0), (0.5, deep * 0.6)], 0.03, darker(body, 0.3), smooth=True)
    c.smooth([(0.18, 0.08), (-0.1, 0.3 + sway), (0.08, 0.02)], darker(fin, 0.1))
    c.ellipse(0.66, -0.1, 0.11, 0.11, (252, 252, 250))
    c.ellipse(0.69, -0.1, 0.06, 0.06, (24, 26, 34))
    c.ellipse(0.71, -0.12, 0.02, 0.02, (255, 255, 255))
    c.stroke([(0.9, 0.1), (0.8, 0.16), (0.72, 0.14)], 0.025, darker(body, 0.5), smooth=True)


def cat(c: Canvas, rng: np.random.Generator) -> None:
    """A cat's face from the front, above its chest."""
    fur = pick(rng, _FURS)
    light, dark = lighter(fur, 0.5), darker(fur, 0.35)
    c.smooth([(-0.62, 1.3), (-0.5, 0.6), (0.0, 0.4), (0.5, 0.6), (0.62, 1.3)], (darker(fur, 0.12), darker(fur, 0.25)))
    c.smooth([(-0.26, 1.3), (-0.22, 0.75), (0.22, 0.75), (0.26, 1.3)], light)
    tall = rng.uniform(0.85, 1.02)
    for side in (-1, 1):
        c.polygon([(side * 0.72, -0.1), (side * 0.7, -tall), (side * 0.12, -0.56)], fur)
        c.polygon([(side * 0.62, -0.3), (side * 0.62, -tall + 0.2), (side * 0.26, -0.52)], (232, 160, 160))
    face = [
        (-0.82, 0.12),
        (-0.66, -0.42),
        (0, -0.62),
        (0.66, -0.42),
        (0.82, 0.12),
        (0.5, 0.58),
        (0, 0.72),
        (-0.5, 0.58),
    ]
    c.smooth(face, (lighter(fur, 0.08), darker(fur, 0.1)))
    kind = rng.integers(3)
    if kind == 0:
        for x in (-0.2, 0.0, 0.2):
            c.smooth([(x - 0.05, -0.57), (x + 0.05, -0.57), (x * 0.8, -0.28)], dark)
        for side in (-1, 1):
            for y in (0.05, 0.25):
                c.smooth([(side * 0.84, y - 0.06), (side * 0.5, y + 0.06), (side * 0.82, y + 0.08)], dark)
    elif kind == 1:
        c.smooth([(-0.7, -0.4), (-0.2, -0.58), (-0.1, -0.1), (-0.4, 0.2), (-0.78, 0.05)], dark)
    c.ellipse(-0.17, 0.36, 0.27, 0.22, light)
    c.ellipse(0.17, 0.36, 0.27, 0.22, light)
    iris = pick(rng, ((120, 180, 80), (230, 180, 60), (90, 160, 210), (190, 130, 50)))
    open_ = rng.uniform(0.12, 0.2)
    for side in (-1, 1):
        c.ellipse(side * 0.36, -0.06, 0.19, open_ + 0.03, darker(fur, 0.6), turn=side * -10)
        c.ellipse(side * 0.36, -0.06, 0.165, open_, (lighter(iris, 0.2), iris), turn=side * -10)
        c.ellipse(side * 0.36, -0.06, rng.uniform(0.04, 0.09), open_ * 0.92, (20, 22, 28))
        c.ellipse(side * 0.36 + 0.05, -0.12, 0.035, 0.035, (255, 255, 255))
        for lift in (-0.1, 0.02, 0.14):
            c.stroke([(side * 0.3, 0.34 + lift * 0.4), (side * 0.98, 0.28 + lift * 1.6)], 0.014, (248, 246, 240))
    c.smooth([(-0.1, 0.2), (0.1, 0.2), (0.0, 0.31)], (224, 120, 124))
    for side in (-1, 1):
        c.stroke([(0, 0.3), (side * 0.05, 0.42), (side * 0.18, 0.43)], 0.025, darker(fur, 0.6), smooth=True)
