"""Crop: finds the content of an image, such as the picture inside a screenshot, without uniform borders."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import cv2
import numpy as np
from numpy.typing import NDArray

from cbir.core.images.halving import halved

__all__ = ["CROP_VERSION", "Box", "Crop", "find_content"]

#: Part of every member's fingerprint, because embeddings of differently cropped images must not be mixed, nor of images
#: that are decoded at different scales.  2: gradients in place of Canny's edges, on a draft that was halved.
CROP_VERSION = 2

#: The content is searched on a draft whose longer side has at most this many pixels, and more than half of them.
_DRAFT_SIDE = 320
#: Neighbouring greys, of 255, that differ by more than this are an edge.
_EDGE = 12
_SQUARE = np.ones((3, 3), np.uint8)
#: How far the gradient and the dilation move edges out.
_GROWTH = 2
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

    ``CONTENT`` looks for the largest picture with flat surroundings (edges, dilation, contours) and then trims
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
    small, scale = pixels, 1
    while max(small.shape[:2]) > _DRAFT_SIDE and min(small.shape[:2]) > 1:
        small, scale = halved(small), 2 * scale
    grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)
    draft = Box(0, 0, small.shape[1], small.shape[0])
    box = (_largest_picture(grey) if crop is Crop.CONTENT else None) or draft
    box = _trim_borders(small, grey, box)
    # Halving left out up to ``scale - 1`` of the last columns and rows, which belong to what reaches the draft's edge.
    right = width if box.right == draft.right else scale * box.right
    bottom = height if box.bottom == draft.bottom else scale * box.bottom
    return Box(scale * box.left, scale * box.top, right, bottom)


def _largest_picture(grey: NDArray[np.uint8]) -> Box | None:
    """The box of the largest textured rectangle with flat surroundings, or None."""
    height, width = grey.shape
    # Canny's edges take ten times as long, and join into pictures less often.
    gradient = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, _SQUARE)
    _, edges = cv2.threshold(gradient, _EDGE, 255, cv2.THRESH_BINARY)
    contours, _ = cv2.findContours(cv2.dilate(edges, _SQUARE), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    best: Box | None = None
    best_area = 0
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        area = w * h
        if area <= best_area or not 0.12 * width * height <= area <= 0.97 * width * height or not 0.25 <= w / h <= 4:
            continue
        # The contour of a picture fills its box; that of an object on a plain background does not.
        if cv2.contourArea(contour) < 0.9 * area:
            continue
        # What reaches the edge of the image could not grow beyond it.
        left, top = x and min(x + _GROWTH, width - 1), y and min(y + _GROWTH, height - 1)
        right = width if x + w == width else max(x + w - _GROWTH, left + 1)
        bottom = height if y + h == height else max(y + h - _GROWTH, top + 1)
        box = Box(left, top, right, bottom)
        if _framed_by_flat(grey, box):
            best, best_area = box, area
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


def _trim_borders(small: NDArray[np.uint8], grey: NDArray[np.uint8], box: Box) -> Box:
    """Trim rows and columns of uniform colour, where they look like a frame."""
    region = small[box.top : box.bottom, box.left : box.right]
    height, width = region.shape[:2]
    if height < 8 or width < 8:
        return box
    outline = grey[box.top : box.bottom, box.left : box.right]

    top, bottom = _flat_run(region, outline, 0), _flat_run(region, outline, 0, last=True)
    if top == height:
        return box
    rest = slice(top, height - bottom)
    left, right = _flat_run(region[rest], outline[rest], 1), _flat_run(region[rest], outline[rest], 1, last=True)
    if not (top or bottom or left or right):
        return box
    inner, columns = region[:, left : width - right], region[rest].transpose(1, 0, 2)
    top, bottom = _straight_run(inner, top), _straight_run(inner[::-1], bottom)
    left, right = _straight_run(columns, left), _straight_run(columns[::-1], right)
    trimmed = Box(box.left + left, box.top + top, box.right - right, box.bottom - bottom)
    if trimmed.width * trimmed.height < (1 - _MAX_TRIM) * box.width * box.height:
        # A small object on a plain background is a product photo: the background is no frame.
        return box
    return trimmed


def _flat_run(pixels: NDArray[np.uint8], greys: NDArray[np.uint8], axis: int, *, last: bool = False) -> int:
    """How many lines, from the first on, are uniform and of the first one's colour.

    A line is where the 0.98 quantile of its pixels' distances to the colour is within the tolerance.

    Args:
        pixels: (H, W, 3).
        greys: (H, W), the same as greys.
        axis: 0: lines are rows; 1: columns.
        last: Begin at the last line.
    """
    count, across = int(pixels.shape[axis]), int(pixels.shape[1 - axis])

    def lines(start: int, stop: int) -> tuple[slice, slice]:
        part = slice(count - stop, count - start) if last else slice(start, stop)
        return (part, slice(None)) if axis == 0 else (slice(None), part)

    # The quantile is within the tolerance if at least so many pixels are, which is faster to find out than by sorting.
    # Only with exactly so many does it depend on the values, because the quantile is interpolated.
    below = int(0.98 * (across - 1)) + 1
    # Most pictures have no border: so many pixels that are near one colour in each channel are near one grey, too.
    first = np.sort(greys[lines(0, 1)], axis=None)
    if (first[below - 1 :] - first[: across - below + 1]).min() > 2 * _BORDER_TOLERANCE + 1:
        return 0
    colour = _median(pixels[lines(0, 1)].reshape(across, 3))
    least = tuple(math.ceil(c - _BORDER_TOLERANCE) for c in colour)
    most = tuple(math.floor(c + _BORDER_TOLERANCE) for c in colour)
    start, step = 0, 8
    while start < count:
        block = pixels[lines(start, min(start + step, count))]
        counts = cv2.reduce(cv2.inRange(block, least, most), 1 - axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
        near: list[int] = counts.ravel()[:: -1 if last else 1].tolist()
        for place, pixels_near in enumerate(near):
            if pixels_near > 255 * below:
                continue
            line = pixels[lines(start + place, start + place + 1)].reshape(across, 3)
            if pixels_near < 255 * below or not _quantile_is_near(line, colour):
                return start + place
        start, step = start + step, 2 * step
    return count


def _straight_run(lines: NDArray[np.uint8], run: int) -> int:
    """The run of flat lines, if what is behind it begins along its whole edge, as a framed picture does; else 0.

    An object on a plain background touches its bounding box only here and there, and the background belongs to it.
    """
    if run == 0 or run == len(lines):
        return run
    edge = lines[run : run + 3]
    begins = (np.abs(edge - _median(lines[0])).max(axis=2) > _BORDER_TOLERANCE).any(axis=0).mean()
    return run if begins >= _STRAIGHT_EDGE else 0


def _median(line: NDArray[np.uint8]) -> list[float]:
    """The median of each channel of an (N, 3) line; for bytes, several times as fast as :func:`numpy.median`."""
    middle = [(len(line) - 1) // 2, len(line) // 2]
    return [(low + high) / 2 for low, high in np.partition(line.T, middle, axis=1)[:, middle].tolist()]


def _quantile_is_near(line: NDArray[np.uint8], colour: list[float]) -> bool:
    far = np.sort(np.abs(line - np.array(colour)).max(axis=1))
    # As numpy.quantile interpolates, which takes a tenth of a millisecond.
    whole, part = divmod(0.98 * (len(far) - 1), 1)
    low, high = far[int(whole)], far[min(int(whole) + 1, len(far) - 1)]
    return bool(low + part * (high - low) <= _BORDER_TOLERANCE)
