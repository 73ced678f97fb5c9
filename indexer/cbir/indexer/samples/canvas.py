"""Drawing with Pillow in a subject's own coordinates; edges are smoothed by drawing larger and shrinking at the end.

A subject is drawn with x to the right and y downwards, each about -1..1; a :class:`Pose` places it in the picture.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["Canvas", "Color", "Fill", "Point", "Pose", "darker", "lighter", "mix", "smooth_path"]

Point = tuple[float, float]
Color = tuple[int, int, int]
#: One colour, or two for a gradient from the top of the shape to its bottom.
Fill = Color | tuple[Color, Color]

#: Pixels drawn for one pixel of the finished picture, in each direction.
SUPERSAMPLING = 2


@dataclass(frozen=True)
class Pose:
    """Where and how a subject stands in the picture.

    Attributes:
        x: Its centre, as a fraction of the picture's width.
        y: Its centre, as a fraction of the picture's height.
        size: Half the subject's height, as a fraction of the picture.
        turn: Rotation in degrees, clockwise.
        flip: Whether it is mirrored.
        stretch: Factor of its width.
    """

    x: float = 0.5
    y: float = 0.5
    size: float = 0.5
    turn: float = 0.0
    flip: bool = False
    stretch: float = 1.0


def mix(a: Color, b: Color, share: float) -> Color:
    """Blend two colours; ``share`` is that of the second."""
    red, green, blue = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


def lighter(color: Color, share: float = 0.3) -> Color:
    """Blend with white."""
    return mix(color, (255, 255, 255), share)


def darker(color: Color, share: float = 0.3) -> Color:
    """Blend with a dark blue, which looks more like shade than black does."""
    return mix(color, (18, 20, 45), share)


def smooth_path(points: Sequence[Point], *, closed: bool = True, steps: int = 8) -> list[Point]:
    """Points of a Catmull-Rom curve through the given ones, ``steps`` for each of its segments."""
    p = np.asarray(points, np.float64)
    around = np.vstack([p[-1:], p, p[:2]]) if closed else np.vstack([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None, None]
    a, b, c, d = around[:-3], around[1:-2], around[2:-1], around[3:]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    path = [(float(x), float(y)) for x, y in curve.transpose(1, 0, 2).reshape(-1, 2)]
    return path if closed else [*path, points[-1]]


class Canvas:
    """A square picture that is being drawn."""

    def __init__(self, size: int = 256) -> None:
        self.size = size
        self.pixels = size * SUPERSAMPLING
        self._image = Image.new("RGB", (self.pixels, self.pixels))
        # A drawing context in RGBA mode blends colours that carry an alpha into an RGB picture.
        self._draw = ImageDraw.Draw(self._image, "RGBA")
        self.place(Pose())

    def place(self, pose: Pose) -> None:
        """Draw everything that follows in this pose."""
        self.pose = pose
        angle = math.radians(pose.turn)
        self._unit = pose.size * self.pixels
        sx = self._unit * pose.stretch * (-1 if pose.flip else 1)
        sy = self._unit
        self._matrix = np.array(
            [[math.cos(angle) * sx, -math.sin(angle) * sy], [math.sin(angle) * sx, math.cos(angle) * sy]]
        )
        self._offset = np.array([pose.x, pose.y]) * self.pixels

    def whole(self) -> None:
        """Draw everything that follows with (0, 0) at the top left and (1, 1) at the bottom right of the picture."""
        self.place(Pose(0.0, 0.0, 1.0))

    def polygon(self, points: Sequence[Point], fill: Fill, alpha: int = 255) -> None:
        """Fill a polygon; ``alpha`` is 0 (invisible) to 255 and does not apply to gradients."""
        corners = self._to_pixels(points)
        if len(fill) == 2:
            self._gradient(corners, *fill)
        else:
            self._draw.polygon(corners, (*fill, alpha))

    def smooth(self, points: Sequence[Point], fill: Fill, alpha: int = 255) -> None:
        """Fill the shape that a closed smooth curve through the points bounds."""
        self.polygon(smooth_path(points), fill, alpha)

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        fill: Fill,
        *,
        alpha: int = 255,
        turn: float = 0.0,
        span: tuple[float, float] = (0.0, 360.0),
    ) -> None:
        """Fill an ellipse, or the part of it between two angles in degrees (clockwise from the right)."""
        start, end = (math.radians(angle) for angle in span)
        t = np.linspace(start, end, 48)
        cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        ex, ey = np.cos(t) * rx, np.sin(t) * ry
        xs, ys = x + ex * cos - ey * sin, y + ex * sin + ey * cos
        self.polygon([(float(a), float(b)) for a, b in zip(xs, ys, strict=True)], fill, alpha)

    def rectangle(
        self, left: float, top: float, right: float, bottom: float, fill: Fill, *, alpha: int = 255, radius: float = 0.0
    ) -> None:
        """Fill a rectangle with corners rounded by a radius."""
        if radius <= 0:
            self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], fill, alpha)
            return
        points: list[Point] = []
        corners = [(right - radius, top + radius), (right - radius, bottom - radius)]
        corners += [(left + radius, bottom - radius), (left + radius, top + radius)]
        for quarter, (x, y) in enumerate(corners):
            for step in range(7):
                angle = math.radians(-90 + 90 * quarter + 15 * step)
                points.append((x + math.cos(angle) * radius, y + math.sin(angle) * radius))
        self.polygon(points, fill, alpha)

    def stroke(
        self, points: Sequence[Point], width: float, color: Color, *, alpha: int = 255, smooth: bool = False
    ) -> None:
        """Draw a line with round ends; the width is in the subject's units."""
        path = self._to_pixels(smooth_path(points, closed=False) if smooth else points)
        thick = max(1, round(width * self._unit))
        ink = (*color, alpha)
        self._draw.line(path, fill=ink, width=thick, joint="curve")
        if thick > 3 and alpha == 255:
            r = thick / 2
            for x, y in (path[0], path[-1]):
                self._draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)

    def ring(self, x: float, y: float, radius: float, width: float, color: Color) -> None:
        """Draw the outline of a circle."""
        t = np.linspace(0, 2 * math.pi, 49)
        self.stroke(
            [(x + math.cos(a) * radius, y + math.sin(a) * radius) for a in t.tolist()], width, color, smooth=False
        )

    def shadow(self, x: float, y: float, rx: float, ry: float, strength: float = 0.45) -> None:
        """Darken a soft ellipse, such as the ground below something."""
        self._blend_soft(
            [(x - rx, y - ry), (x + rx, y - ry), (x + rx, y + ry), (x - rx, y + ry)], (15, 18, 40), strength
        )

    def glow(self, x: float, y: float, radius: float, color: Color, strength: float = 0.7) -> None:
        """Lighten a soft disc, such as the air around a lamp."""
        box = [(x - radius, y - radius), (x + radius, y - radius), (x + radius, y + radius), (x - radius, y + radius)]
        self._blend_soft(box, color, strength)

    def blur(self, radius: float) -> None:
        """Blur everything drawn so far; the radius is a fraction of the picture's width."""
        # Blurring a shrunken picture is faster and looks the same.
        small = self._image.reduce(4).filter(ImageFilter.GaussianBlur(radius * self.pixels / 4))
        self._image.paste(small.resize(self._image.size, Image.Resampling.BILINEAR))

    def finish(self, rng: np.random.Generator) -> Image.Image:
        """Shrink the drawing, light it unevenly like a photo, add a little grain, and return it."""
        pixels = np.asarray(self._image.reduce(SUPERSAMPLING), np.float32)
        axis = np.linspace(-1, 1, self.size, dtype=np.float32)
        slope = rng.uniform(-0.09, 0.09, 2)
        light = 1 + slope[0] * axis[None, :] + slope[1] * axis[:, None]
        light -= rng.uniform(0.02, 0.09) * (axis[None, :] ** 2 + axis[:, None] ** 2)
        tint = rng.uniform(0.96, 1.04, 3)
        pixels = pixels * (light[:, :, None] * tint).astype(np.float32)
        grain = rng.normal(0, rng.uniform(1.0, 3.0), (self.size, self.size, 1)).astype(np.float32)
        return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))

    def _to_pixels(self, points: Sequence[Point]) -> list[Point]:
        moved: NDArray[np.float64] = np.asarray(points, np.float64) @ self._matrix.T + self._offset
        return [(x, y) for x, y in moved.tolist()]

    def _gradient(self, corners: list[Point], top: Color, bottom: Color) -> None:
        xs, ys = [x for x, _ in corners], [y for _, y in corners]
        left, right = max(0, math.floor(min(xs))), min(self.pixels, math.ceil(max(xs)) + 1)
        upper, lower = math.floor(min(ys)), math.ceil(max(ys)) + 1
        high, low = max(0, upper), min(self.pixels, lower)
        if left >= right or high >= low:
            return
        shares = (np.arange(high, low) - upper) / max(1, lower - upper)
        rows = np.asarray(top) + (np.asarray(bottom) - np.asarray(top)) * shares[:, None]
        column = Image.fromarray(rows.astype(np.uint8)[:, None, :])
        strip = column.resize((right - left, low - high), Image.Resampling.NEAREST)
        mask = Image.new("L", strip.size)
        ImageDraw.Draw(mask).polygon([(x - left, y - high) for x, y in corners], 255)
        self._image.paste(strip, (left, high), mask)

    def _blend_soft(self, box: Sequence[Point], color: Color, strength: float) -> None:
        corners = self._to_pixels(box)
        xs, ys = [x for x, _ in corners], [y for _, y in corners]
        left, top = round(min(xs)), round(min(ys))
        width, height = max(2, round(max(xs)) - left), max(2, round(max(ys)) - top)
        spot = _soft_spot().point(lambda value: value * strength).resize((width, height), Image.Resampling.BILINEAR)
        self._image.paste(color, (left, top, left + width, top + height), spot)


@functools.cache
def _soft_spot() -> Image.Image:
    axis = np.linspace(-1, 1, 64)
    distance = np.sqrt(axis[None, :] ** 2 + axis[:, None] ** 2)
    return Image.fromarray((np.clip(1 - distance, 0, 1) ** 1.5 * 255).astype(np.uint8))
