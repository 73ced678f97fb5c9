"""The contact sheet, pixel by pixel where it matters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from cbir.client._display.palette import LABEL_VOTE, MEMBER_COLOURS, member_colours
from cbir.client._results import Box, Hit, LabelPrediction, Timings, Vote
from cbir.client._search_result import SearchResult
from cbir.client.cli.canvas import Canvas, contain
from cbir.client.cli.pictures import Picture, open_picture
from cbir.client.cli.sheet import SheetRow, draw_sheet

GREEN, RED, NEUTRAL = "#17A673", "#E5484D", "#C9D0DC"


def result(labels: list[str | None], crop: Box | None = None, members: tuple[str, ...] = ("a", "b")) -> SearchResult:
    hits = tuple(
        Hit(
            image_id=f"{place}.png",
            uri="",
            label=label,
            score=0.9,
            fused_score=0.8,
            label_contribution=0.0,
            votes=tuple(Vote(member, 1, 0.5, share) for member, share in zip(members, (0.6, 0.2), strict=False)),
            metadata={},
        )
        for place, label in enumerate(labels)
    )
    return SearchResult(hits, (LabelPrediction("cat", 0.5),), crop, "v1", Timings(0, 0, 0.01, 0, 0))


def picture(colour: str, size: tuple[int, int] = (200, 200)) -> Picture:
    return Picture(Image.new("RGB", size, colour), *size)


def count(image: Image.Image, colour: str, area: tuple[int, int, int, int] | None = None) -> int:
    """Pixels of exactly this colour."""
    return len(places(image, colour, area))


def places(image: Image.Image, colour: str, area: tuple[int, int, int, int] | None = None) -> Any:
    """Row and column of each pixel of exactly this colour."""
    pixels = np.asarray(image.crop(area) if area else image)
    return np.argwhere((pixels == ImageColor.getrgb(colour)).all(axis=-1))


def test_frames_tell_right_from_wrong() -> None:
    outcome = result(["cat", "dog", None])
    sheets = {
        expected: draw_sheet([SheetRow("q", picture("white"), outcome, {}, expected)])
        for expected in (("cat",), ("dog", "cat"), ("emu",), ())
    }
    right = (470, 120, 1712, 500)
    assert count(sheets[("cat",)], GREEN, right) > 2000
    assert count(sheets[("cat",)], RED, right) > 1.8 * count(sheets[("cat",)], GREEN, right)
    assert count(sheets[("dog", "cat")], GREEN, right) > 1.8 * count(sheets[("cat",)], GREEN, right)
    assert count(sheets[("emu",)], GREEN, right) == 0
    assert count(sheets[()], GREEN) == count(sheets[()], RED) == 0
    assert count(sheets[()], NEUTRAL, right) > 1000


def test_thumbnails_lie_in_rank_order() -> None:
    thumbnails = {"0.png": picture("#112233"), "1.png": picture("#445566"), "6.png": picture("#778899")}
    sheet = draw_sheet([SheetRow("q", None, result(["cat"] * 7), thumbnails)])

    def middle(colour: str) -> tuple[float, float]:
        found = places(sheet, colour)
        assert len(found) > 5000
        row, column = found.mean(axis=0)
        return column, row

    first, second, seventh = middle("#112233"), middle("#445566"), middle("#778899")
    assert first[0] < second[0]
    assert first[1] == pytest.approx(second[1], abs=3)
    assert seventh[0] == pytest.approx(second[0], abs=3)
    assert seventh[1] > second[1] + 200


def test_bars_share_out_as_the_votes_do() -> None:
    sheet = draw_sheet([SheetRow("q", None, result(["cat"]))])
    below_the_header = (470, 300, 1712, 500)
    first, second = (count(sheet, colour, below_the_header) for colour in MEMBER_COLOURS[:2])
    assert first == pytest.approx(3 * second, rel=0.1)


def test_the_crop_is_shown_and_the_rest_is_veiled() -> None:
    query = picture("#00FF00", (340, 330))
    whole = draw_sheet([SheetRow("q", query, result(["cat"], Box(0, 0, 340, 330)))])
    half = draw_sheet([SheetRow("q", query, result(["cat"], Box(0, 0, 170, 330)))])
    assert count(half, "#00FF00") == pytest.approx(count(whole, "#00FF00") / 2, rel=0.05)
    assert count(half, "#4C6FE7", (80, 150, 420, 490)) > 1000
    assert count(whole, "#4C6FE7", (80, 150, 420, 490)) == 0


def test_the_crop_is_given_in_pixels_of_the_original() -> None:
    small = Picture(Image.new("RGB", (340, 330), "#00FF00"), 3400, 3300)
    whole = draw_sheet([SheetRow("q", small, result(["cat"], Box(0, 0, 3400, 3300)))])
    half = draw_sheet([SheetRow("q", small, result(["cat"], Box(0, 0, 1700, 3300)))])
    assert count(half, "#00FF00") == pytest.approx(count(whole, "#00FF00") / 2, rel=0.05)


def test_a_query_without_an_answer_is_drawn_with_its_sentence() -> None:
    plain = draw_sheet([SheetRow("q", None, "the bytes are no image")])
    pictured = draw_sheet([SheetRow("q", picture("blue"), "the bytes are no image " * 40)])
    assert plain.height < pictured.height
    assert count(plain, RED) > 100
    assert count(pictured, "#0000FF") > 50_000


def test_examples_are_drawn_below_the_query() -> None:
    thumbnails = {"p": picture("#112233"), "n": picture("#445566"), "0.png": picture("#778899")}
    plain = SheetRow("q", picture("white"), result(["cat"]), thumbnails)
    shown = replace(plain, positives=["p"], negatives=["n", "missing"])
    sheet = draw_sheet([shown])
    assert count(draw_sheet([plain]), "#112233") == 0
    assert sheet.height > draw_sheet([plain]).height
    (p_row, p_column), (n_row, n_column) = (places(sheet, colour).mean(axis=0) for colour in ("#112233", "#445566"))
    assert count(sheet, "#112233") == pytest.approx(76 * 76, rel=0.1)
    assert p_column == pytest.approx(n_column, abs=1)
    assert p_row + 76 < n_row < sheet.height - 38


def test_more_examples_than_there_is_room_for_end_in_a_number() -> None:
    ids = [str(n) for n in range(30)]
    thumbnails = dict.fromkeys(ids, picture("#112233"))
    sheet = draw_sheet([SheetRow("q", None, result(["cat"]), thumbnails, positives=ids)])
    assert count(sheet, "#112233") == pytest.approx(7 * 76 * 76, rel=0.1)


def test_words_take_the_place_of_the_picture() -> None:
    ink, place = "#1A2233", (82, 160, 418, 482)
    plain, short, long = (
        draw_sheet([SheetRow("a red car", None, result(["cat"]), words=words)])
        for words in (None, "a red car", "a red car before a house " * 40)
    )
    assert count(plain, ink, place) == 0
    assert 300 < count(short, ink, place) < count(long, ink, place)
    # The middle of one line is the middle of the place; of many, none leaves it.
    assert places(short, ink, place).mean(axis=0)[0] == pytest.approx(161, abs=12)
    for sheet in (short, long):
        rows, columns = places(sheet, ink, place).T
        assert 15 < rows.min() <= rows.max() < 315
        assert 15 < columns.min() <= columns.max() < 325


def test_every_query_has_its_block() -> None:
    row = SheetRow("q", None, result(["cat"] * 10))
    assert draw_sheet([row, row]).height - draw_sheet([row]).height == pytest.approx(628, abs=60)
    assert draw_sheet([]).width == 1760


def test_more_members_than_colours_and_more_hits_than_a_line() -> None:
    members = tuple(f"member-with-a-long-name-{n}" for n in range(11))
    sheet = draw_sheet([SheetRow("名前" * 90, None, result(["ö" * 90] * 101, members=members))])
    assert sheet.height > 21 * 250


def test_members_keep_their_colours_in_the_ensembles_order() -> None:
    colours = member_colours(result(["cat"], members=("b", "a")).hits)
    assert colours == {"b": MEMBER_COLOURS[0], "a": MEMBER_COLOURS[1]}
    assert LABEL_VOTE not in colours


def test_bars_ignore_what_votes_against() -> None:
    canvas = Canvas((100, 10), "white")
    canvas.bar((0, 0, 100, 10), [(-0.5, "#FF0000"), (0.5, "#00FF00"), (0.8, "#0000FF")], "#EEEEEE")
    assert count(canvas.image, "#FF0000") == 0
    assert count(canvas.image, "#00FF00", (5, 0, 95, 10)) == 450
    assert count(canvas.image, "#0000FF", (5, 0, 95, 10)) == 450


def test_text_is_shortened_to_its_room() -> None:
    canvas = Canvas((400, 40), "white")
    width = canvas.text((0, 30), "a/very/long/path/to/an/image.png", 20, "black", room=150)
    assert 100 < width <= 150
    assert canvas.text((0, 30), "short", 20, "black", room=150) < 60


def test_corners_are_round_and_smooth() -> None:
    canvas = Canvas((40, 40), "#FFFFFF")
    canvas.panel((0, 0, 40, 40), "#000000", 12)
    assert canvas.image.getpixel((0, 0)) == (255, 255, 255)
    assert canvas.image.getpixel((20, 20)) == (0, 0, 0)
    assert len(np.unique(np.asarray(canvas.image))) > 5


def test_pictures_keep_their_shape() -> None:
    assert contain(Image.new("RGB", (400, 100)), (200, 200)).size == (200, 50)
    assert contain(Image.new("RGB", (10, 10)), (200, 200)).size == (30, 30)


def test_pictures_are_opened_upright_small_and_without_fuss(server: Any) -> None:
    opened = open_picture(server.make_png("red", (400, 200)), 100)
    assert opened is not None
    assert (opened.image.size, opened.width, opened.height) == ((100, 50), 400, 200)
    assert open_picture(b"no image", 100) is None
    assert open_picture(server.make_png()[:60], 100) is None
