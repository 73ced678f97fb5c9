"""Plants, mushrooms and landscape: flower, tree, mushroom, mountains."""

from __future__ import annotations

import math

import numpy as np

from cbir.indexer.samples.backgrounds import pick
from cbir.indexer.samples.canvas import Canvas, Color, Point, darker, lighter, mix

__all__ = ["flower", "mountains", "mushroom", "tree"]

_PETALS: tuple[Color, ...] = (
    (230, 70, 90),
    (245, 160, 190),
    (250, 200, 60),
    (150, 110, 210),
    (250, 246, 240),
    (240, 130, 60),
    (110, 140, 225),
)
_LEAVES: tuple[Color, ...] = (
    (84, 150, 74),
    (120, 168, 60),
    (60, 124, 84),
    (222, 140, 50),
    (196, 80, 60),
    (226, 182, 70),
)
_CAPS: tuple[Color, ...] = ((206, 52, 48), (190, 90, 50), (226, 120, 50), (150, 70, 60), (214, 60, 80))


def flower(c: Canvas, rng: np.random.Generator) -> None:
    """One bloom on a stem with leaves."""
    stem = pick(rng, ((80, 140, 70), (110, 150, 60), (60, 120, 80)))
    lean = rng.uniform(-0.2, 0.2)
    c.stroke([(0.0, -0.3), (lean, 0.4), (lean / 2, 1.3)], 0.075, stem, smooth=True)
    for side, y in ((-1, rng.uniform(0.45, 0.6)), (1, rng.uniform(0.6, 0.85))):
        tip = (lean + side * rng.uniform(0.45, 0.62), y - rng.uniform(0.1, 0.3))
        leaf = [(lean, y + 0.08), (lean + side * 0.25, y - 0.16), tip, (lean + side * 0.3, y + 0.12)]
        c.smooth(leaf, (lighter(stem, 0.25), darker(stem, 0.1)))
        c.stroke([(lean, y + 0.06), tip], 0.018, darker(stem, 0.25))
    petal, core = pick(rng, _PETALS), pick(rng, ((250, 200, 70), (120, 76, 44), (240, 160, 60), (90, 60, 80)))
    count, reach = int(rng.integers(6, 14)), rng.uniform(0.52, 0.66)
    # Many petals are narrow ones; they overlap a little in any case.
    wide = 1.5 * math.pi * reach / count / 1.9
    start = rng.uniform(0, 60)
    for ring, shade in ((1.0, 0.18), (0.76, 0.0)):
        for number in range(count):
            angle = start + 360 * number / count + (180 / count if ring < 1 else 0)
            x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            tone = darker(petal, shade + 0.05 * (number % 2))
            c.ellipse(
                x * reach * 0.55 * ring, -0.35 + y * reach * 0.55 * ring, reach * 0.5 * ring, wide, tone, turn=angle
            )
            if ring < 1:
                tip = (x * reach * 0.6, -0.35 + y * reach * 0.6)
                c.stroke([(x * 0.2, -0.35 + y * 0.2), tip], 0.014, darker(petal, 0.25), alpha=110)
    radius = reach * rng.uniform(0.28, 0.38)
    c.ellipse(0, -0.35, radius, radius, (lighter(core, 0.25), darker(core, 0.2)))
    for _ in range(26):
        angle, far = rng.uniform(0, 2 * math.pi), radius * math.sqrt(rng.uniform(0, 0.85))
        c.ellipse(math.cos(angle) * far, -0.35 + math.sin(angle) * far, 0.02, 0.02, darker(core, 0.4))


def tree(c: Canvas, rng: np.random.Generator) -> None:
    """A broad-leaved tree."""
    leaf, bark = pick(rng, _LEAVES), pick(rng, ((112, 78, 54), (92, 72, 62), (140, 104, 76)))
    c.shadow(0.05, 0.95, 0.75, 0.1)
    lean = rng.uniform(-0.1, 0.1)
    c.smooth(
        [(-0.2, 0.98), (-0.09, 0.5), (lean - 0.08, 0.0), (lean + 0.08, 0.0), (0.1, 0.5), (0.22, 0.98), (0, 0.93)], bark
    )
    c.stroke([(0.0, 0.3), (0.24, 0.02), (0.36, -0.12)], 0.07, bark, smooth=True)
    c.stroke([(0.0, 0.4), (-0.24, 0.08), (-0.34, -0.1)], 0.07, bark, smooth=True)
    c.stroke([(0.06, 0.9), (0.04, 0.4)], 0.03, darker(bark, 0.3))
    wide = rng.uniform(0.62, 0.86)
    blobs: list[tuple[float, float, float]] = []
    for number in range(11):
        angle, far = number * 2.4 + rng.uniform(-0.3, 0.3), math.sqrt((number + 0.5) / 11)
        blobs.append(
            (math.cos(angle) * far * wide * 0.66, -0.38 + math.sin(angle) * far * 0.4, rng.uniform(0.26, 0.36))
        )
    for tone, dx, dy, grow in (
        (darker(leaf, 0.4), 0.0, 0.05, 1.04),
        (leaf, 0.0, 0.0, 1.0),
        (lighter(leaf, 0.22), -0.06, -0.09, 0.62),
    ):
        for x, y, radius in blobs:
            c.ellipse(x + dx, y + dy, radius * grow, radius * grow * 0.92, tone)
    for _ in range(40):
        x, y, radius = blobs[int(rng.integers(len(blobs)))]
        far, angle = radius * 0.9, rng.uniform(0, 2 * math.pi)
        spot = lighter(leaf, 0.35) if rng.random() < 0.5 else darker(leaf, 0.25)
        c.ellipse(
            x + math.cos(angle) * far * 0.7,
            y + math.sin(angle) * far * 0.7,
            0.035,
            0.022,
            spot,
            turn=rng.uniform(0, 180),
        )
    if rng.random() < 0.4:
        fruit = pick(rng, ((214, 52, 48), (250, 190, 60), (250, 230, 240)))
        for _ in range(12):
            x, y, radius = blobs[int(rng.integers(len(blobs)))]
            c.ellipse(x + rng.uniform(-1, 1) * radius * 0.5, y + rng.uniform(-1, 1) * radius * 0.5, 0.05, 0.05, fruit)


def mountains(c: Canvas, rng: np.random.Generator) -> None:
    """A sun over snowy ridges: fills the picture."""
    hour = rng.integers(4)
    skies: tuple[tuple[Color, Color], ...] = (
        ((70, 140, 210), (200, 230, 244)),
        ((90, 80, 150), (250, 170, 130)),
        ((240, 130, 90), (254, 226, 160)),
        ((110, 170, 200), (246, 226, 200)),
    )
    c.whole()
    c.rectangle(0, 0, 1, 1, skies[int(hour)])
    x, y, radius = rng.uniform(0.2, 0.8), rng.uniform(0.12, 0.3), rng.uniform(0.055, 0.085)
    c.glow(x, y, radius * 4, (255, 244, 200), 0.8)
    c.ellipse(x, y, radius, radius, (255, 248, 214))
    rock = pick(rng, ((96, 108, 140), (120, 100, 120), (90, 120, 130), (130, 112, 98)))
    haze = skies[int(hour)][1]
    for layer, (foot, tall) in enumerate(((0.72, 0.4), (0.82, 0.34))):
        tone = mix(rock, haze, 0.45 - 0.4 * layer)
        # A far and wide base, so that no gap opens between the peaks.
        c.rectangle(0, foot - 0.12, 1, 1, tone)
        peaks = int(rng.integers(2, 4))
        for number in range(peaks):
            px = (number + rng.uniform(0.25, 0.75)) / peaks
            height, half = tall * rng.uniform(0.75, 1.15), rng.uniform(0.26, 0.4)
            top = foot - height
            left: Point = (px - half, foot)
            right: Point = (px + half, foot)
            c.polygon([left, (px, top), right], tone)
            c.polygon(
                [(px, top), right, (px + half * 0.1, foot), (px - half * 0.06, top + height * 0.45)], darker(tone, 0.25)
            )
            snow = rng.uniform(0.28, 0.45)
            edge: list[Point] = [(px, top)]
            for step, drop in enumerate((0.0, -0.35, 0.05, -0.4, 0.0)):
                edge.append((px + half * snow * (1 - step / 2), top + height * snow * (1 + drop)))
            c.polygon(edge, (246, 248, 252))
            c.polygon([(px, top), edge[1], edge[2], edge[3]], (206, 216, 232))
    front = pick(rng, ((60, 110, 84), (84, 124, 70), (54, 90, 100), (120, 130, 80)))
    c.rectangle(0, 0.8, 1, 1, (front, darker(front, 0.3)))
    if rng.random() < 0.5:
        lake = mix(haze, (80, 150, 190), 0.5)
        c.ellipse(rng.uniform(0.3, 0.7), 0.93, rng.uniform(0.25, 0.5), 0.06, (lighter(lake, 0.3), lake))
    for _ in range(int(rng.integers(8, 24))):
        fx, size = rng.uniform(0, 1), rng.uniform(0.03, 0.07)
        fy = rng.uniform(0.82, 0.88) if rng.random() < 0.7 else rng.uniform(0.97, 1.02)
        for step in range(3):
            w, h = size * (0.28 + 0.14 * step), fy - size * (1.9 - 0.6 * step)
            c.polygon([(fx - w, h + size * 0.7), (fx, h), (fx + w, h + size * 0.7)], darker(front, 0.35 + 0.08 * step))


def mushroom(c: Canvas, rng: np.random.Generator) -> None:
    """A capped mushroom in grass, sometimes with a small one beside it."""
    cap, stem = pick(rng, _CAPS), pick(rng, ((244, 236, 220), (226, 210, 186)))
    c.shadow(0.05, 0.92, 0.7, 0.12)
    smaller = rng.random() < 0.5
    side = float(rng.choice([-1.0, 1.0]))
    spots = rng.random() < 0.7
    for x, y, size in ([(side * 0.72, 0.5, 0.42)] if smaller else []) + [(0.0, 0.0, 1.0)]:
        _one_mushroom(c, rng, (x, y, size), (cap, stem), spots=spots)
    blade = pick(rng, ((90, 140, 70), (120, 150, 60), (70, 120, 80)))
    for _ in range(int(rng.integers(12, 26))):
        gx = rng.uniform(-1, 1)
        c.stroke(
            [(gx, 1.02), (gx + rng.uniform(-0.1, 0.1), 0.98 - rng.uniform(0.1, 0.3))],
            0.025,
            darker(blade, rng.uniform(0, 0.3)),
        )


def _one_mushroom(
    c: Canvas, rng: np.random.Generator, place: tuple[float, float, float], colors: tuple[Color, Color], *, spots: bool
) -> None:
    x, y, size = place
    cap, stem = colors

    def at(points: list[Point]) -> list[Point]:
        return [(x + px * size, y + py * size) for px, py in points]

    thick, tall = rng.uniform(0.15, 0.24), rng.uniform(0.55, 0.8)
    foot = [
        (-thick, -0.05),
        (-thick * 0.8, 0.4),
        (-thick * 1.5, 0.92),
        (thick * 1.5, 0.92),
        (thick * 0.8, 0.4),
        (thick, -0.05),
    ]
    c.smooth(at(foot), (darker(stem, 0.18), stem))
    c.smooth(at([(-thick * 1.3, 0.18), (0, 0.3), (thick * 1.3, 0.18), (thick, 0.1), (-thick, 0.1)]), darker(stem, 0.08))
    c.ellipse(x, y - 0.05 * size, 0.8 * size, 0.14 * size, darker(mix(stem, cap, 0.25), 0.2))
    dome = [
        (-0.88, -0.02),
        (-0.74, -tall * 0.62),
        (-0.3, -tall * 1.1),
        (0.3, -tall * 1.1),
        (0.74, -tall * 0.62),
        (0.88, -0.02),
    ]
    c.smooth(at([*dome, (0.4, 0.04), (-0.4, 0.04)]), (lighter(cap, 0.15), darker(cap, 0.25)))
    c.smooth(
        at([(-0.6, -tall * 0.5), (-0.3, -tall * 0.95), (-0.1, -tall * 0.98), (-0.4, -tall * 0.6)]),
        (255, 255, 255),
        alpha=60,
    )
    if spots:
        for sx, sy, radius in (
            (-0.42, 0.45, 0.11),
            (0.05, 0.78, 0.12),
            (0.45, 0.5, 0.1),
            (0.02, 0.3, 0.09),
            (-0.68, 0.2, 0.07),
            (0.72, 0.2, 0.07),
        ):
            sx, sy = sx + rng.uniform(-0.06, 0.06), sy + rng.uniform(-0.05, 0.05)
            c.ellipse(x + sx * size, y - sy * tall * 1.15 * size, radius * size, radius * size * 0.8, (250, 244, 232))
