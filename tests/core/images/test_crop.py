"""The content crop finds pictures in frames and leaves everything else alone."""

from __future__ import annotations

import numpy as np
import pytest
from images import pattern

from cbir.core.images import Box, Crop, find_content


def photo(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Noise with structure, textured up to its edges."""
    rng = np.random.default_rng(seed)
    image = np.asarray(pattern(1, seed, 64).resize((width, height)))
    return np.clip(image + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)


def close(box: Box, expected: tuple[int, int, int, int], slack: int) -> bool:
    return all(abs(a - b) <= slack for a, b in zip((box.left, box.top, box.right, box.bottom), expected, strict=True))


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (30, 90, 160)])
def test_uniform_borders_are_trimmed(colour: tuple[int, int, int]) -> None:
    canvas = np.full((240, 320, 3), colour, np.uint8)
    canvas[40:200, 60:260] = photo(200, 160)
    for crop in (Crop.BORDER, Crop.CONTENT):
        assert close(find_content(canvas, crop), (60, 40, 260, 200), 3), crop


def test_a_picture_in_a_screenshot_is_found() -> None:
    screen = np.full((480, 800, 3), 245, np.uint8)
    screen[:40] = (60, 60, 70)  # a title bar, which keeps plain trimming from working
    screen[120:420, 200:600] = photo(400, 300)
    for row in range(140, 400, 30):  # lines of text beside it
        screen[row : row + 6, 30:150:3] = 40
    assert close(find_content(screen, Crop.CONTENT), (200, 120, 600, 420), 8)


@pytest.mark.parametrize(("width", "height"), [(321, 241), (641, 479), (963, 723)])
def test_boxes_are_told_in_pixels_of_the_picture(width: int, height: int) -> None:
    """However often the draft was halved: a letterbox goes from edge to edge, a frame is found to a draft's pixel."""
    step = max(1, width // 300)
    bars = np.zeros((height, width, 3), np.uint8)
    bars[height // 4 : -height // 4] = photo(width, height - height // 4 + -height // 4)
    box = find_content(bars, Crop.CONTENT)
    assert (box.left, box.right) == (0, width)
    assert abs(box.top - height // 4) <= 2 * step
    assert abs(box.bottom - (height + -height // 4)) <= 2 * step
    frame = np.full((height, width, 3), 240, np.uint8)
    left, top, right, bottom = width // 5, height // 6, width - width // 7, height - height // 8
    frame[top:bottom, left:right] = photo(right - left, bottom - top)
    assert close(find_content(frame, Crop.BORDER), (left, top, right, bottom), 2 * step)
    assert close(find_content(frame, Crop.CONTENT), (left, top, right, bottom), 2 * step)


@pytest.mark.parametrize("background", [245, 18])
@pytest.mark.parametrize("gap", [40, 56])
def test_a_picture_between_columns_of_text_is_found(background: int, gap: int) -> None:
    """A page with a photo: lines of letters on both sides, and a noise such as JPEG leaves on flat ground."""
    rng = np.random.default_rng(gap)
    page = np.full((640, 900, 3), background, np.uint8)
    left, top, right, bottom = 260, 160, 660, 460
    for y in range(20, 620, 18):
        for x in (*range(20, left - gap - 5, 7), *range(right + gap, 880, 7)):
            if rng.random() < 0.7:
                page[y : y + 6, x : x + 5] = 255 - background
    noisy = np.clip(page + rng.normal(0, 1.5, page.shape), 0, 255).astype(np.uint8)
    noisy[top:bottom, left:right] = photo(right - left, bottom - top)
    assert close(find_content(noisy, Crop.CONTENT), (left, top, right, bottom), 10)


def test_a_plain_photo_is_left_whole() -> None:
    for seed in range(5):
        image = photo(200, 150, seed)
        assert find_content(image, Crop.CONTENT) == Box(0, 0, 200, 150)


def test_a_small_thing_on_a_plain_ground_keeps_its_surroundings() -> None:
    image = np.full((200, 200, 3), 250, np.uint8)
    image[90:120, 80:125] = photo(45, 30)
    assert find_content(image, Crop.BORDER) == Box(0, 0, 200, 200)


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (16, 16), (2000, 17)])
@pytest.mark.parametrize("value", [0, 128])
def test_degenerate_images_give_a_box_inside(shape: tuple[int, int], value: int) -> None:
    image = np.full((*shape, 3), value, np.uint8)
    for crop in Crop:
        box = find_content(image, crop)
        assert 0 <= box.left < box.right <= shape[1]
        assert 0 <= box.top < box.bottom <= shape[0]


def test_none_changes_nothing() -> None:
    canvas = np.zeros((100, 100, 3), np.uint8)
    canvas[20:80, 20:80] = photo(60, 60)
    assert find_content(canvas, Crop.NONE) == Box(0, 0, 100, 100)
