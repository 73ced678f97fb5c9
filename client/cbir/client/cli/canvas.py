"""A canvas with two things that Pillow lacks: smooth rounded corners, and text that is cut to fit."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps

__all__ = ["Area", "Canvas", "backdrop", "contain", "save_picture"]

#: Left, top, right, bottom in pixels; right and bottom are exclusive.
Area = tuple[int, int, int, int]

#: Rounded corners are drawn so many times larger and scaled down, for smooth edges.
_FINE = 8


#: A sheet with more pixels is made smaller before it is written, so that it can be opened and sent.
_MOST_PIXELS = 12_000_000
#: PNGs with more pixels are written with 256 colours: photos without loss take two bytes a pixel.
_TRUE_COLOUR_PIXELS = 4_000_000


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture by its file's extension, at most some megabytes of it.

    Raises:
        OSError: The file cannot be written.
    """
    scale = (_MOST_PIXELS / (image.width * image.height)) ** 0.5
    if scale < 1:
        image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.LANCZOS)
    if path.suffix.lower() == ".png":
        if image.width * image.height > _TRUE_COLOUR_PIXELS:
            image = image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        image.save(path, optimize=True)
    else:
        image.save(path, quality=90)


class Canvas:
    """An RGB picture to draw on.

    Args:
        size: Width and height in pixels.
        colour: Colour of the background.
    """

    def __init__(self, size: tuple[int, int], colour: str) -> None:
        self.image = Image.new("RGB", size, colour)
        self._draw = ImageDraw.Draw(self.image)

    def panel(self, area: Area, colour: str, radius: int = 0) -> None:
        """Fill a rectangle with rounded corners."""
        self.image.paste(Image.new("RGB", _size(area), colour), area[:2], _mask(_size(area), radius))

    def frame(self, area: Area, colour: str, radius: int, width: int) -> None:
        """Draw the outline of a rectangle with rounded corners, ``width`` pixels wide and inside of it."""
        outer = _mask(_size(area), radius)
        hole = Image.new("L", outer.size, 0)
        inner = (outer.width - 2 * width, outer.height - 2 * width)
        hole.paste(_mask(inner, max(radius - width, 0)), (width, width))
        self.image.paste(Image.new("RGB", outer.size, colour), area[:2], ImageChops.subtract(outer, hole))

    def picture(self, picture: Image.Image, at: tuple[int, int], radius: int = 0) -> None:
        """Paste a picture with rounded corners."""
        self.image.paste(picture.convert("RGB"), at, _mask(picture.size, radius))

    def bar(self, area: Area, parts: list[tuple[float, str]], track: str) -> None:
        """Draw a horizontal stacked bar with rounded ends.

        Args:
            area: The whole bar.
            parts: Fractions of its width and their colours, from the left; negative ones are left out.
            track: Colour of the rest of the bar.
        """
        width, height = _size(area)
        strip = Image.new("RGB", (width, height), track)
        draw, end = ImageDraw.Draw(strip), 0.0
        for fraction, colour in parts:
            start, end = end, min(end + max(fraction, 0.0), 1.0)
            # Edges are rounded, not widths, so that rounding errors do not add up.
            if round(end * width) > round(start * width):
                draw.rectangle((round(start * width), 0, round(end * width) - 1, height), fill=colour)
        self.picture(strip, area[:2], height // 2)

    def text(
        self,
        at: tuple[float, float],
        text: str,
        size: int,
        colour: str,
        *,
        anchor: str = "ls",
        room: float | None = None,
        strong: bool = False,
        keep_end: bool = False,
    ) -> float:
        """Write one line and return its width in pixels.

        Args:
            at: The anchor point; by default the left end of the baseline.
            text: The text; shortened with "…" to fit.
            size: Font size in pixels.
            colour: Colour of the text.
            anchor: The anchor, as in Pillow.
            room: Most pixels that it may take.
            strong: Whether strokes are thicker.
            keep_end: Shorten at the start instead of the end, as for paths.
        """
        line = _fit(_drawable(text), size, room, keep_end)
        self._draw.text(at, line, colour, _font(size), anchor=anchor, stroke_width=size / 50 if strong else 0)
        return _font(size).getlength(line)

    def paragraph(self, at: tuple[int, int], text: str, size: int, colour: str, room: int, lines: int) -> None:
        """Write text in at most ``lines`` lines of at most ``room`` pixels, the first baseline at ``at``."""
        broken = _broken(text, size, room)
        if len(broken) > lines:
            broken[lines - 1 :] = [" ".join(broken[lines - 1 :])]
        for number, line in enumerate(broken):
            self.text((at[0], at[1] + number * size * 1.4), line, size, colour, room=room)

    def line_count(self, text: str, size: int, room: int) -> int:
        """Number of lines that :meth:`paragraph` needs for the whole text."""
        return len(_broken(text, size, room))


def contain(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the picture scaled to fit within the size, without cropping or distortion, at most threefold."""
    scale = min(size[0] / picture.width, size[1] / picture.height, 3.0)
    fitted = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    return picture.convert("RGB").resize(fitted, Image.Resampling.LANCZOS, reducing_gap=3.0)


def backdrop(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a pale blur of the picture in the given size, as a background for a picture of another shape."""
    # Shrinking to a few pixels and stretching them is a cheap blur.
    few = ImageOps.fit(picture.convert("RGB"), (5, 4), Image.Resampling.BOX)
    return Image.blend(few.resize(size, Image.Resampling.BICUBIC), Image.new("RGB", size, "white"), 0.62)


def _size(area: Area) -> tuple[int, int]:
    return area[2] - area[0], area[3] - area[1]


def _mask(size: tuple[int, int], radius: int) -> Image.Image:
    mask = Image.new("L", size, 255)
    radius = min(radius, size[0] // 2, size[1] // 2)
    if radius > 0:
        disc, side = _disc(radius), 2 * radius
        right, bottom = size[0] - radius, size[1] - radius
        mask.paste(disc.crop((0, 0, radius, radius)), (0, 0))
        mask.paste(disc.crop((radius, 0, side, radius)), (right, 0))
        mask.paste(disc.crop((0, radius, radius, side)), (0, bottom))
        mask.paste(disc.crop((radius, radius, side, side)), (right, bottom))
    return mask


@lru_cache(maxsize=64)
def _disc(radius: int) -> Image.Image:
    side = 2 * radius * _FINE
    disc = Image.new("L", (side, side), 0)
    ImageDraw.Draw(disc).ellipse((0, 0, side - 1, side - 1), fill=255)
    return disc.resize((2 * radius, 2 * radius), Image.Resampling.BOX)


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _drawable(text: str) -> str:
    """Remove accents: the font that comes with Pillow has ASCII letters only."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letter if letter.isprintable() else " " for letter in plain)


def _broken(text: str, size: int, room: float) -> list[str]:
    """Break the text at spaces into lines of at most ``room`` pixels; a longer word has a line of its own."""
    lines: list[str] = []
    for word in _drawable(text).split():
        if lines and _font(size).getlength(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _fit(text: str, size: int, room: float | None, keep_end: bool) -> str:
    font = _font(size)
    if room is None or font.getlength(text) <= room:
        return text
    # Binary search for the longest piece that fits, as measuring text is slow.
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(_cut(text, middle, keep_end)) <= room:
            low = middle
        else:
            high = middle - 1
    return _cut(text, low, keep_end)


def _cut(text: str, length: int, keep_end: bool) -> str:
    return "…" + text[len(text) - length :] if keep_end else text[:length].rstrip() + "…"
