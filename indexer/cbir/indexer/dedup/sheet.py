"""A picture of near duplicates: one row for each group, with the image to keep on the left."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from cbir.core.errors import ImageError
from cbir.core.files import read_uri
from cbir.core.images import DecodeLimits, decode_image
from cbir.indexer.dedup.duplicates import Duplicate, ImageGroup, StoredFile

__all__ = ["GROUPS_SHOWN", "draw_duplicates", "size_text"]

#: Most groups that are drawn: a picture of more would be too tall to look at.
GROUPS_SHOWN = 40

_PAPER, _CARD, _MAT = "#EEF1F6", "#FFFFFF", "#F2F4F8"
_INK, _SOFT, _FAINT = "#1A2233", "#5B667A", "#8A94A6"
_KEEP, _EXTRA = "#17A673", "#C9D0DC"

#: Most images in a row (larger groups end in a count of the others), and the fewest columns, which the title needs.
_COLUMNS, _LEAST_COLUMNS = 6, 3
_CELL, _PICTURE, _GAP, _MARGIN, _PADDING = 240, 180, 20, 40, 24
_HEADER = 110
_ROW = _PICTURE + 80 + 2 * _PADDING


def draw_duplicates(groups: Sequence[ImageGroup], heading: str) -> Image.Image:
    """Draw the first :data:`GROUPS_SHOWN` groups.

    Args:
        heading: Text of the line below the title.

    Returns:
        An RGB picture, at most 1668 pixels wide and as high as it needs to be.
    """
    groups = groups[:GROUPS_SHOWN]
    columns = min(max([_LEAST_COLUMNS, *(1 + len(group.extras) for group in groups)]), _COLUMNS)
    width = 2 * (_MARGIN + _PADDING) + columns * _CELL + (columns - 1) * _GAP
    height = _HEADER + max(len(groups), 1) * (_ROW + _GAP) + _MARGIN - _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_MARGIN, 58), "Near duplicates", 36, _INK, width - 2 * _MARGIN)
    _write(draw, (_MARGIN, 90), heading, 18, _FAINT, width - 2 * _MARGIN)
    if not groups:
        _write(draw, (_MARGIN, _HEADER + 40), "There are none.", 24, _SOFT, width - 2 * _MARGIN)
    for place, group in enumerate(groups):
        top = _HEADER + place * (_ROW + _GAP)
        draw.rounded_rectangle((_MARGIN, top, width - _MARGIN, top + _ROW), 18, _CARD)
        _draw_group(sheet, draw, group, top)
    return sheet


def _draw_group(sheet: Image.Image, draw: ImageDraw.ImageDraw, group: ImageGroup, top: int) -> None:
    room = _COLUMNS - 1
    shown = group.extras if len(group.extras) <= room else group.extras[: room - 1]
    cells: list[tuple[StoredFile, str, str]] = [(group.keep, "keep", _KEEP)]
    cells += [(extra.file, _likeness(extra), _EXTRA) for extra in shown]
    for column, (file, caption, colour) in enumerate(cells):
        x, y = _MARGIN + _PADDING + column * (_CELL + _GAP), top + _PADDING
        _draw_picture(sheet, draw, file, (x, y), colour)
        image = file.image
        _write(draw, (x, y + _PICTURE + 26), caption, 18, _INK if column else _KEEP, _CELL)
        facts = f"{image.width} x {image.height} · {size_text(file.bytes)}"
        _write(draw, (x, y + _PICTURE + 50), facts, 16, _SOFT, _CELL)
        _write(draw, (x, y + _PICTURE + 72), image.id, 14, _FAINT, _CELL, keep_end=True)
    if len(shown) < len(group.extras):
        x = _MARGIN + _PADDING + len(cells) * (_CELL + _GAP)
        more = f"+ {len(group.extras) - len(shown)} more"
        _write(draw, (x, top + _PADDING + _PICTURE // 2), more, 24, _SOFT, _CELL)


def _draw_picture(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, file: StoredFile, at: tuple[int, int], colour: str
) -> None:
    area = (at[0], at[1], at[0] + _CELL - 1, at[1] + _PICTURE - 1)
    draw.rectangle(area, _MAT)
    picture = _thumbnail(file)
    if picture is None:
        draw.text((at[0] + _CELL / 2, at[1] + _PICTURE / 2), "no picture", _FAINT, _font(17), anchor="mm")
    else:
        sheet.paste(picture, (at[0] + (_CELL - picture.width) // 2, at[1] + (_PICTURE - picture.height) // 2))
    draw.rectangle(area, outline=colour, width=4 if colour == _KEEP else 2)


def _thumbnail(file: StoredFile) -> Image.Image | None:
    """The image, scaled to fit its cell; None if the file cannot be read any more."""
    try:
        pixels = decode_image(read_uri(file.image.uri), DecodeLimits(draft_side=_PICTURE)).pixels
    except ImageError:
        return None
    return ImageOps.contain(Image.fromarray(pixels), (_CELL - 8, _PICTURE - 8), Image.Resampling.LANCZOS)


def _likeness(extra: Duplicate) -> str:
    if extra.same_bytes:
        return "the same bytes"
    what = f"{extra.bits} {'bit' if extra.bits == 1 else 'bits'}" if extra.symmetry is None else str(extra.symmetry)
    return f"{what} · alike {extra.similarity:.2f}"


def size_text(size: int | None) -> str:
    """A number of bytes in units that are easy to read, such as ``1.5 MiB``; ``gone`` for None."""
    if size is None:
        return "gone"
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    colour: str,
    room: int,
    keep_end: bool = False,
) -> None:
    """Write one line of text, shortened with an ellipsis to ``room`` pixels."""
    font = _font(size)
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    cut = line
    while cut and font.getlength(line) > room:
        cut = cut[1:] if keep_end else cut[:-1]
        line = f"…{cut}" if keep_end else f"{cut}…"
    draw.text(at, line, colour, font, anchor="ls")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
