"""A contact sheet: each query beside its hits, with what every member contributed to their scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from cbir.client import Box, SearchResult
from cbir.client._display.palette import contributions, member_colours
from cbir.client.cli.canvas import Canvas, backdrop, contain
from cbir.client.cli.labels import is_expected
from cbir.client.cli.pictures import Picture

__all__ = ["PICTURE_SIDE", "SheetRow", "draw_sheet"]

#: Length in pixels of the longer side of pictures that are drawn sharply.
PICTURE_SIDE = 400

_PAPER, _CARD, _MAT, _TRACK = "#EEF1F6", "#FFFFFF", "#F2F4F8", "#E4E8EF"
_INK, _SOFT, _FAINT = "#1A2233", "#5B667A", "#8A94A6"
_RIGHT, _WRONG, _NEUTRAL = "#17A673", "#E5484D", "#C9D0DC"
_CROP = "#4C6FE7"

_WIDTH, _MARGIN, _PADDING, _GAP = 1760, 48, 32, 20
_HEADER = 124
_QUERY, _QUERY_HEIGHT = 340, 330
_COLUMNS = 5
_CELL = (_WIDTH - 2 * _MARGIN - 2 * _PADDING - _QUERY - 44 - (_COLUMNS - 1) * _GAP) // _COLUMNS
_PICTURE_HEIGHT = 178
_CELL_HEIGHT = _PICTURE_HEIGHT + 84
_PREDICTIONS = 3
_EXAMPLE, _EXAMPLES_A_LINE, _EXAMPLES_SHOWN, _EXAMPLE_CAPTION = 76, 4, 8, 32
_WORDS_MARGIN = 28
#: Height of a row that has neither a picture nor an answer, only the sentence that says why.
_SENTENCE_HEIGHT = 176


@dataclass(frozen=True)
class SheetRow:
    """One query on a sheet.

    Attributes:
        name: Its name.
        picture: The query image, if it is an image.
        outcome: Its result, or the sentence that says why there is none.
        thumbnails: Pictures of hits and examples by id; missing ones are drawn as blanks.
        expected: Labels of which its hits should have one; frames are then green or red.
        positives: Ids of its positive examples.
        negatives: Ids of its negative examples.
        words: The text of a text query, drawn in place of the picture.
    """

    name: str
    picture: Picture | None
    outcome: SearchResult | str
    thumbnails: Mapping[str, Picture] = field(default_factory=dict)
    expected: Sequence[str] = ()
    words: str | None = None
    positives: Sequence[str] = ()
    negatives: Sequence[str] = ()

    @property
    def examples(self) -> list[tuple[str, Sequence[str]]]:
        """The kinds of examples that there are, each with its heading and the ids."""
        return [(name, ids) for name, ids in (("like", self.positives), ("unlike", self.negatives)) if ids]

    @property
    def result(self) -> SearchResult | None:
        """The result, if there is one."""
        return None if isinstance(self.outcome, str) else self.outcome


def draw_sheet(rows: Sequence[SheetRow]) -> Image.Image:
    """Draw the queries one below the other, each with its hits by rank.

    Returns:
        An RGB picture, 1760 pixels wide and as high as it needs to be.
    """
    heights = [_row_height(row) for row in rows]
    canvas = Canvas((_WIDTH, _HEADER + sum(heights) + len(rows) * _GAP + _MARGIN - _GAP), _PAPER)
    colours = member_colours(hit for row in rows if row.result is not None for hit in row.result.hits)
    _draw_header(canvas, rows, colours)
    top = _HEADER
    for row, height in zip(rows, heights, strict=True):
        canvas.panel((_MARGIN, top, _WIDTH - _MARGIN, top + height), _CARD, 20)
        _draw_query(canvas, row, _MARGIN + _PADDING, top + _PADDING)
        _draw_answer(canvas, row, colours, _MARGIN + _PADDING + _QUERY + 44, top + _PADDING)
        top += height + _GAP
    return canvas.image


def _row_height(row: SheetRow) -> int:
    if row.result is None and row.picture is None:
        return _SENTENCE_HEIGHT
    predictions = len(row.result.labels[:_PREDICTIONS]) if row.result is not None else 0
    left = _QUERY_HEIGHT + 66 + 40 * predictions
    if row.result is not None:
        left += sum(_EXAMPLE_CAPTION + _example_lines(ids) * (_EXAMPLE + 8) for _, ids in row.examples)
    lines = math.ceil(len(row.result.hits) / _COLUMNS) if row.result is not None else 0
    return max(left, lines * (_CELL_HEIGHT + _GAP) - _GAP) + 2 * _PADDING


def _draw_header(canvas: Canvas, rows: Sequence[SheetRow], colours: Mapping[str, str]) -> None:
    versions = dict.fromkeys(row.result.index_version for row in rows if row.result is not None)
    title = canvas.text((_MARGIN, 66), "Most similar images", 38, _INK, strong=True)
    facts = [f"{len(rows)} queries"] if len(rows) > 1 else []
    facts += [f"index {version}" for version in versions]
    canvas.text((_MARGIN, 98), " · ".join(facts), 18, _FAINT, room=700)
    # The legend is laid out from the right edge to the left.
    right = float(_WIDTH - _MARGIN)
    for name, colour in reversed(list(colours.items())):
        if right < _MARGIN + title + 120:
            break  # no room for more members on the line
        right -= canvas.text((right, 60), name, 19, _SOFT, anchor="rs", room=220) + 26
        canvas.panel((int(right), 45, int(right) + 16, 61), colour, 5)
        right -= 28
    right = float(_WIDTH - _MARGIN)
    if any(row.expected and row.result is not None for row in rows):
        for name, colour in (("another label", _WRONG), ("the expected label", _RIGHT)):
            right -= canvas.text((right, 98), name, 17, _SOFT, anchor="rs") + 26
            canvas.frame((int(right), 84, int(right) + 16, 100), colour, 5, 3)
            right -= 28


def _draw_query(canvas: Canvas, row: SheetRow, left: int, top: int) -> None:
    if row.result is None and row.picture is None:
        canvas.text((left, top + 30), row.name, 20, _INK, room=_QUERY, strong=True, keep_end=True)
        return
    area = (left, top, left + _QUERY, top + _QUERY_HEIGHT)
    if row.picture is not None:
        mounted = backdrop(row.picture.image, (_QUERY, _QUERY_HEIGHT))
        picture = _with_crop(row.picture, row.result.crop if row.result is not None else None)
        mounted.paste(picture, _centred(picture, (0, 0, *mounted.size)))
        canvas.picture(mounted, area[:2], 14)
        canvas.frame(area, _TRACK, 14, 2)
    else:
        canvas.panel(area, _MAT, 14)
        if row.words is None:
            canvas.text((left + _QUERY / 2, top + _QUERY_HEIGHT / 2), "no picture", 18, _FAINT, anchor="mm")
        else:
            _draw_words(canvas, row.words, area)
    baseline = area[3] + 32
    name = row.name if row.words is None else "search by words"
    canvas.text((left, baseline), name, 20, _INK, room=_QUERY, strong=True, keep_end=True)
    if row.result is None:
        return
    seconds = row.result.timings.total
    facts = [f"expected: {' or '.join(row.expected)}"] if row.expected else []
    facts += [f"{seconds * 1000:.0f} ms"] if seconds > 0 else []
    canvas.text((left, baseline + 26), " · ".join(facts), 16, _FAINT, room=_QUERY)
    baseline += 58
    for prediction in row.result.labels[:_PREDICTIONS]:
        colour = _frame_colour(prediction.label, row.expected)
        colour = _SOFT if colour == _NEUTRAL else colour
        canvas.text((left, baseline), prediction.label, 18, _INK, room=_QUERY - 70)
        canvas.text((left + _QUERY, baseline), f"{prediction.probability:.0%}", 18, _SOFT, anchor="rs")
        canvas.bar((left, baseline + 8, left + _QUERY, baseline + 14), [(prediction.probability, colour)], _TRACK)
        baseline += 40
    _draw_examples(canvas, row, left, baseline - 20)


def _draw_examples(canvas: Canvas, row: SheetRow, left: int, top: int) -> None:
    """Draw small pictures of the examples, positive ones first."""
    for name, ids in row.examples:
        shown = ids if len(ids) <= _EXAMPLES_SHOWN else ids[: _EXAMPLES_SHOWN - 1]
        canvas.text((left, top + 22), name, 16, _FAINT)
        top += _EXAMPLE_CAPTION
        for place, image_id in enumerate(shown):
            line, column = divmod(place, _EXAMPLES_A_LINE)
            x, y = left + column * (_EXAMPLE + 12), top + line * (_EXAMPLE + 8)
            picture = row.thumbnails.get(image_id)
            if picture is None:
                canvas.panel((x, y, x + _EXAMPLE, y + _EXAMPLE), _MAT, 8)
                canvas.text((x + 6, y + _EXAMPLE / 2), image_id, 12, _FAINT, anchor="lm", room=_EXAMPLE - 12)
            else:
                square = ImageOps.fit(picture.image, (_EXAMPLE, _EXAMPLE), Image.Resampling.LANCZOS)
                canvas.picture(square, (x, y), 8)
                canvas.frame((x, y, x + _EXAMPLE, y + _EXAMPLE), _TRACK, 8, 1)
        if len(shown) < len(ids):
            line, column = divmod(len(shown), _EXAMPLES_A_LINE)
            x, y = left + column * (_EXAMPLE + 12), top + line * (_EXAMPLE + 8)
            canvas.text((x + 6, y + _EXAMPLE / 2), f"+ {len(ids) - len(shown)}", 18, _SOFT, anchor="lm")
        top += _example_lines(ids) * (_EXAMPLE + 8)


def _example_lines(ids: Sequence[str]) -> int:
    return math.ceil(min(len(ids), _EXAMPLES_SHOWN) / _EXAMPLES_A_LINE)


def _draw_words(canvas: Canvas, words: str, area: tuple[int, int, int, int]) -> None:
    """Write the text in the middle of the area, as large as fits."""
    room = area[2] - area[0] - 2 * _WORDS_MARGIN
    quoted = f"\u201c{words.strip()}\u201d"
    for size in (40, 32, 26, 21):
        lines = canvas.line_count(quoted, size, room)
        height = lines * size * 1.4
        if height <= area[3] - area[1] - 2 * _WORDS_MARGIN:
            break
    most = int((area[3] - area[1] - 2 * _WORDS_MARGIN) / (size * 1.4))
    shown = min(lines, most)
    baseline = (area[1] + area[3]) / 2 - (shown - 1) * size * 0.7 + size * 0.36
    canvas.paragraph((area[0] + _WORDS_MARGIN, round(baseline)), quoted, size, _INK, room, shown)


def _with_crop(picture: Picture, crop: Box | None) -> Image.Image:
    """Fit the picture into its area, with the crop outlined and the rest dimmed."""
    fitted = contain(picture.image, (_QUERY, _QUERY_HEIGHT))
    if crop is None or (crop.width >= picture.width and crop.height >= picture.height):
        return fitted
    scale = (fitted.width / picture.width, fitted.height / picture.height)
    inside = (
        round(crop.left * scale[0]),
        round(crop.top * scale[1]),
        round(crop.right * scale[0]),
        round(crop.bottom * scale[1]),
    )
    veiled = Image.blend(ImageEnhance.Color(fitted).enhance(0.3), Image.new("RGB", fitted.size, _CARD), 0.72)
    veiled.paste(fitted.crop(inside), inside[:2])
    draw = ImageDraw.Draw(veiled)
    # A light line inside a coloured one is visible on every picture.
    draw.rectangle((inside[0], inside[1], inside[2] - 1, inside[3] - 1), outline=_CROP, width=3)
    draw.rectangle((inside[0] + 3, inside[1] + 3, inside[2] - 4, inside[3] - 4), outline=_CARD, width=1)
    return veiled


def _draw_answer(canvas: Canvas, row: SheetRow, colours: Mapping[str, str], left: int, top: int) -> None:
    room = _WIDTH - _MARGIN - _PADDING - left
    if isinstance(row.outcome, str):
        canvas.text((left, top + 30), "No answer", 24, _WRONG, strong=True)
        canvas.paragraph((left, top + 66), row.outcome, 20, _SOFT, room, 3)
        return
    if not row.outcome.hits:
        canvas.text((left, top + 30), "No hits", 24, _SOFT, strong=True)
        return
    shares = contributions(row.outcome.hits)
    longest = max(sum(max(share, 0.0) for share in hit.values()) for hit in shares) or 1.0
    for place, (hit, share) in enumerate(zip(row.outcome.hits, shares, strict=True)):
        line, column = divmod(place, _COLUMNS)
        x, y = left + column * (_CELL + _GAP), top + line * (_CELL_HEIGHT + _GAP)
        area = (x, y, x + _CELL, y + _PICTURE_HEIGHT)
        colour = _frame_colour(hit.label, row.expected)
        _draw_thumbnail(canvas, row.thumbnails.get(hit.image_id), area, colour)
        _draw_rank(canvas, place + 1, x, y, colour)
        baseline = area[3] + 30
        canvas.text(
            (x, baseline), hit.label or "no label", 21, _INK if hit.label else _FAINT, room=_CELL - 66, strong=True
        )
        canvas.text((x + _CELL, baseline), f"{hit.score:.2f}", 21, _SOFT, anchor="rs")
        parts = [(share.get(name, 0.0) / longest, shade) for name, shade in colours.items()]
        canvas.bar((x, baseline + 13, x + _CELL, baseline + 25), parts, _TRACK)
        canvas.text((x, baseline + 48), hit.image_id, 15, _FAINT, room=_CELL, keep_end=True)


def _draw_thumbnail(canvas: Canvas, picture: Picture | None, area: tuple[int, int, int, int], colour: str) -> None:
    if picture is None:
        canvas.panel(area, _MAT, 14)
        canvas.text(((area[0] + area[2]) / 2, (area[1] + area[3]) / 2), "no preview", 17, _FAINT, anchor="mm")
    else:
        mounted = backdrop(picture.image, (_CELL, _PICTURE_HEIGHT))
        fitted = contain(picture.image, mounted.size)
        mounted.paste(fitted, _centred(fitted, (0, 0, *mounted.size)))
        canvas.picture(mounted, area[:2], 14)
    canvas.frame(area, colour, 14, 2 if colour == _NEUTRAL else 4)


def _draw_rank(canvas: Canvas, rank: int, x: int, y: int, colour: str) -> None:
    dark = _SOFT if colour == _NEUTRAL else colour
    width = 32 if rank < 100 else 46
    canvas.panel((x + 10, y + 10, x + 10 + width, y + 42), _CARD, 16)
    canvas.panel((x + 12, y + 12, x + 8 + width, y + 40), dark, 14)
    canvas.text((x + 10 + width / 2, y + 25.5), str(rank), 17, _CARD, anchor="mm", strong=True)


def _frame_colour(label: str | None, expected: Sequence[str]) -> str:
    if not expected:
        return _NEUTRAL
    return _RIGHT if is_expected(label, expected) else _WRONG


def _centred(picture: Image.Image, area: tuple[int, int, int, int]) -> tuple[int, int]:
    return (area[0] + area[2] - picture.width) // 2, (area[1] + area[3] - picture.height) // 2
