"""Crop: finds the content of an image, such as the picture inside a screenshot, without uniform borders."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["CROP_VERSION", "Box", "Crop", "find_content"]

#: Part of every member's fingerprint, because embeddings of differently cropped images must not be mixed.
CROP_VERSION = 1

#: The content is searched on a copy whose longer side has at most this many pixels.
_WORK_SIDE = 320
#: Largest difference from the border's colour, of 255, that still counts as border.
_BORDER_TOLERANCE = 10.0
#: Borders that would take a larger share of the area are not trimmed.
_MAX_TRIM = 0.7
#: Share of a trimmed picture's edge that must differ from the border.
_STRAIGHT_EDGE = 0.6


class Crop(StrEnum):
    """How images are cropped before they are embedded; see :func:`find_content`."""

    NONE = "none"
    BORDER = "border"
    CONTENT = "content"


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels; ``right`` and ``bottom`` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.bottom - self.top

    def scaled(self, x: float, y: float) -> Box:
        """The same rectangle on an image ``x`` times as wide and ``y`` times as high."""
        return Box(round(self.left * x), round(self.top * y), round(self.right * x), round(self.bottom * y))


def find_content(pixels: NDArray[np.uint8], crop: Crop) -> Box:
    """Find the part of an image to embed.

    ``CONTENT`` looks for the largest picture with flat surroundings (Canny edges, dilation, contours) and then trims
    uniform borders; ``BORDER`` only trims.  Where nothing is found, and for ``NONE``, the box is the whole image.

    Args:
        pixels: (H, W, 3) uint8 RGB.

    Returns:
        A box of at least one pixel inside the image.
    """
    height, width = pixels.shape[:2]
    whole = Box(0, 0, width, height)
    if crop is Crop.NONE or min(height, width) < 16:
        return whole
    scale = min(1.0, _WORK_SIDE / max(height, width))
    small = pixels
    if scale < 1.0:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    box = Box(0, 0, small.shape[1], small.shape[0])
    if crop is Crop.CONTENT:
        box = _largest_picture(small) or box
    box = _trim_borders(small, box)
    if (box.left, box.top, box.right, box.bottom) == (0, 0, small.shape[1], small.shape[0]):
        return whole
    found = box.scaled(width / small.shape[1], height / small.shape[0])
    left, top = min(found.left, width - 1), min(found.top, height - 1)
    return Box(left, top, max(left + 1, min(found.right, width)), max(top + 1, min(found.bottom, height)))


def _largest_picture(small: NDArray[np.uint8]) -> Box | None:
    """The box of the largest textured rectangle with flat surroundings, or None."""
    height, width = small.shape[:2]
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    edges = cv2.Canny(grey, 40, 120)
    joined = cv2.dilate(edges, np.ones((5, 5), np.uint8))
    contours, _ = cv2.findContours(joined, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    best: Box | None = None
    best_area = 0.0
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        area = w * h
        aspect = w / h
        if area < 0.12 * width * height or area > 0.97 * width * height or not 0.25 <= aspect <= 4:
            continue
        # The contour of a picture fills its box; that of an object on a plain background does not.
        if cv2.contourArea(contour) < 0.9 * area or area <= best_area:
            continue
        # Undo the dilation, which moved the edges out by two pixels on every side.
        box = Box(min(x + 2, width - 1), min(y + 2, height - 1), max(x + w - 2, x + 3), max(y + h - 2, y + 3))
        if _framed_by_flat(grey, box):
            best, best_area = box, float(area)
    return best


def _framed_by_flat(grey: NDArray[np.uint8], box: Box) -> bool:
    """Whether at least two sides of the box lie inside the image, and the strip outside each of these is flat."""
    height, width = grey.shape
    strips = []
    if box.left > 4:
        strips.append(grey[box.top : box.bottom, max(0, box.left - 6) : box.left - 2])
    if box.right < width - 4:
        strips.append(grey[box.top : box.bottom, box.right + 2 : box.right + 6])
    if box.top > 4:
        strips.append(grey[max(0, box.top - 6) : box.top - 2, box.left : box.right])
    if box.bottom < height - 4:
        strips.append(grey[box.bottom + 2 : box.bottom + 6, box.left : box.right])
    return len(strips) >= 2 and all(float(s.std()) < 12.0 for s in strips if s.size)


def _trim_borders(small: NDArray[np.uint8], box: Box) -> Box:
    """Trim rows and columns of uniform colour, where they look like a frame."""
    region = small[box.top : box.bottom, box.left : box.right]
    if region.shape[0] < 8 or region.shape[1] < 8:
        return box

    def straight_run(lines: NDArray[np.uint8], run: int) -> int:
        # A framed picture begins along its whole edge.  An object on a plain background touches its bounding box only
        # here and there, and the background belongs to it.
        if run == 0 or run == len(lines):
            return run
        colour = _median(lines[0])
        edge = lines[run : run + 3]
        begins = (np.abs(edge - colour).max(axis=2) > _BORDER_TOLERANCE).any(axis=0).mean()
        return run if begins >= _STRAIGHT_EDGE else 0

    height, width = region.shape[:2]
    top, bottom = _flat_run(region), _flat_run(region[::-1])
    if top == height:
        return box
    columns = region.transpose(1, 0, 2)[:, top : height - bottom]
    left, right = _flat_run(columns), _flat_run(columns[::-1])
    inner = region[:, left : width - right]
    top, bottom = straight_run(inner, top), straight_run(inner[::-1], bottom)
    left, right = straight_run(columns, left), straight_run(columns[::-1], right)
    trimmed = Box(box.left + left, box.top + top, box.right - right, box.bottom - bottom)
    if trimmed.width * trimmed.height < (1 - _MAX_TRIM) * box.width * box.height:
        # A small object on a plain background is a product photo: the background is no frame.
        return box
    return trimmed


def _flat_run(lines: NDArray[np.uint8]) -> int:
    """How many lines, from the first on, are uniform and of the first one's colour.

    A line is where the 0.98 quantile of its pixels' distances to the colour is within the tolerance.

    Args:
        lines: (L, N, 3).
    """
    colour = _median(lines[0])
    least = tuple(math.ceil(c - _BORDER_TOLERANCE) for c in colour)
    most = tuple(math.floor(c + _BORDER_TOLERANCE) for c in colour)
    # The quantile is within the tolerance if at least so many pixels are, which is faster to find out than by sorting.
    # Only with exactly so many does it depend on the values, because the quantile is interpolated.
    below = int(0.98 * (lines.shape[1] - 1)) + 1
    # Most pictures have no border, so the first blocks of lines are small.
    start, step = 0, 1
    while start < len(lines):
        block = np.ascontiguousarray(lines[start : start + step])
        counts = cv2.reduce(cv2.inRange(block, least, most), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
        for place, near in enumerate(counts[:, 0].tolist()):
            if near < 255 * below or (near == 255 * below and not _quantile_is_near(block[place], colour)):
                return start + place
        start, step = start + step, 2 * step
    return len(lines)


def _median(line: NDArray[np.uint8]) -> list[float]:
    """The median of each channel of an (N, 3) line; for bytes, several times as fast as :func:`numpy.median`."""
    middle = [(len(line) - 1) // 2, len(line) // 2]
    return [(low + high) / 2 for low, high in np.partition(line.T, middle, axis=1)[:, middle].tolist()]


def _quantile_is_near(line: NDArray[np.uint8], colour: list[float]) -> bool:
    far = np.abs(line - np.array(colour)).max(axis=1)
    return bool(np.quantile(far, 0.98) <= _BORDER_TOLERANCE)
