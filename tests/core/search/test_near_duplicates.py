"""Near duplicates: the search for close hashes against brute force, and the groups by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import pattern
from precision import f32

from cbir.core.images import Box, perceptual_hash
from cbir.core.metric import Projection
from cbir.core.search import BITS, Appearance, close_hashes, confirmed, group_near_duplicates
from cbir.core.search.near_duplicates import DuplicateGroup, close_pairs


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def brute_force(hashes: np.ndarray, bits: int) -> set[tuple[int, int]]:
    near = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= bits
    return {(int(i), int(j)) for i, j in np.argwhere(np.triu(near, 1))}


def test_pairs_by_hand() -> None:
    #                 0       1        2 (1 bit off 0)  3 (4 off 0, 3 off 2)  4: all others
    hashes = numbers(0b0000, 1 << 63, 0b0001, 0b1111, 2**64 - 1)
    assert close_pairs(hashes, 0).tolist() == []
    assert close_pairs(hashes, 1).tolist() == [[0, 1], [0, 2]]
    assert close_pairs(hashes, 2).tolist() == [[0, 1], [0, 2], [1, 2]]
    assert close_pairs(hashes, 3).tolist() == [[0, 1], [0, 2], [1, 2], [2, 3]]
    assert close_pairs(hashes, 4).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [2, 3]]
    for empty in (numbers(), numbers(7)):
        assert close_pairs(empty).shape == (0, 2)


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(2, 300),
    planted=st.integers(0, 60),
    bits=st.integers(0, 12),
    random_bits=st.sampled_from((8, 20, 64)),
)
@settings(max_examples=60, deadline=None)
def test_pairs_are_those_of_brute_force(seed: int, count: int, planted: int, bits: int, random_bits: int) -> None:
    rng = np.random.default_rng(seed)
    # Of few random bits, so that very many hashes agree in most of the bands.
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64) >> np.uint64(64 - random_bits)
    flips = np.zeros(planted, np.uint64)
    for row, off in enumerate(rng.integers(0, bits + 3, planted)):
        for bit in rng.choice(64, off, replace=False):
            flips[row] |= np.uint64(1) << np.uint64(bit)
    hashes = np.unique(np.concatenate([hashes, rng.choice(hashes, planted) ^ flips]))
    rng.shuffle(hashes)
    assert {tuple(pair) for pair in close_pairs(hashes, bits).tolist()} == brute_force(hashes, bits)


def test_many_hashes_take_seconds() -> None:
    rng = np.random.default_rng(0)
    hashes = np.unique(rng.integers(0, 2**64, 200_000, dtype=np.uint64))
    near = hashes[:500] ^ np.uint64(0b1000_0001 << 20)
    begun = time.process_time()
    found = close_pairs(np.concatenate([hashes, near]))
    planted = {(i, len(hashes) + i) for i in range(500)}
    assert planted <= {tuple(pair) for pair in found.tolist()}
    assert time.process_time() - begun < 30


def test_close_hashes_tell_the_bits() -> None:
    rows, bits = close_hashes(numbers(0b11, 0, 0b11111, 2**63 | 1), 0)
    assert (rows.tolist(), bits.tolist()) == ([0, 1, 3], [2, 0, 2])


def test_the_more_bits_differ_the_more_alike_the_members_must_find_them() -> None:
    bits = np.array([0, 0, 2, 2, 4, 4, 12, 12], np.uint8)
    cosines = np.array([0.89, 0.87, 0.93, 0.91, 0.97, 0.95, 0.98, 0.96], np.float32)
    assert confirmed(bits, cosines).tolist() == [True, False] * 4


def test_pixels_decide_where_members_are_unsure() -> None:
    bits = np.array([0, 4, 4, 4, 4, 0], np.uint8)
    cosines = np.array([0.99, 0.75, 0.75, 0.75, 0.4, 0.75], np.float32)
    likeness = np.array([0.1, 0.97, 0.93, np.nan, 0.99, 0.95], np.float32)
    assert confirmed(bits, cosines, likeness).tolist() == [True, True, False, False, False, True]
    assert confirmed(bits, cosines).tolist() == [True, False, False, False, False, False]


def test_pixels_are_asked_of_pairs_that_members_are_unsure_of() -> None:
    hashes = numbers(0b0, 0b1, 0b11, 0b111)
    # Alike to the first: certainly, perhaps, not at all.
    vectors = np.array([[1, 0], [0.99, 0.14], [0.8, 0.6], [0.1, 0.99]], np.float32)
    asked: list[tuple[int, list[int]]] = []

    def likeness(row: int, others: np.ndarray) -> np.ndarray:
        asked.append((row, others.tolist()))
        return np.full(len(others), 0.99, np.float32)

    found = group_near_duplicates(hashes, str, lambda rows: vectors[rows], lambda row: row, 4, likeness)
    assert found[0].keep == 0
    assert found[0].extras == (1, 2)
    assert asked[0] == (0, [2])


def test_appearance_is_the_weighted_cosine() -> None:
    plain = Projection(np.zeros(2, np.float32), None, None)
    vectors = np.array([[1, 0, 0.6, 0.8], [0, 1, 0.8, 0.6]], np.float32)
    seen = Appearance([plain, plain], np.array([1, 3], np.float32)).vectors(vectors)
    # 0.25·0 + 0.75·(0.48 + 0.48)
    assert seen[0] @ seen[1] == pytest.approx(0.72)
    assert seen[0] @ seen[0] == pytest.approx(1)


def test_appearance_undoes_the_metric() -> None:
    rng = np.random.default_rng(0)
    mean, basis = rng.normal(size=8).astype(np.float32), np.eye(8, 4, dtype=np.float32)
    # The metric all but hides the direction that tells the two images apart.
    metric = np.diag([1, 0.9, 0.05, 0.8]).astype(np.float32)
    raw = mean + np.array([[3, 1, 2, 0], [3, 1, -2, 0]], np.float32) @ basis.T
    projected, principal = (Projection(mean, basis, m).apply(raw) for m in (metric, None))
    assert projected[0] @ projected[1] > 0.99
    seen = Appearance([Projection(mean, basis, metric)], np.ones(1, np.float32)).vectors(projected)
    assert seen[0] @ seen[1] == pytest.approx(principal[0] @ principal[1], abs=f32(2048))
    assert principal[0] @ principal[1] < 0.5


def group(
    hashes: list[int], angles: list[float], digests: str, preference: list[int] | None = None, bits: int = BITS
) -> list[DuplicateGroup]:
    """Images with 2-D embeddings at angles (degrees), and one letter for their bytes."""
    radians = np.radians(angles)
    vectors = np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)
    order = preference or list(range(len(hashes)))
    return group_near_duplicates(numbers(*hashes), digests.__getitem__, vectors.__getitem__, order.__getitem__, bits)


def members(groups: list[DuplicateGroup]) -> list[tuple[int, tuple[int, ...]]]:
    return [(one.keep, one.extras) for one in groups]


def test_groups_by_hand() -> None:
    # 0, 1 and 4 are one picture; 2 has an equal hash and looks otherwise; 3 looks the same and has a far hash.
    hashes = [0, 0b1, 0, 0xFFFF, 0b111]
    groups = group(hashes, [0, 10, 90, 0, 5], "abcde")
    assert members(groups) == [(0, (1, 4))]
    assert groups[0].distances == (1, 3)
    assert groups[0].similarities == pytest.approx((np.cos(np.radians(10)), np.cos(np.radians(5))))
    assert members(group(hashes, [0, 10, 90, 0, 5], "abcde", [5, 4, 3, 2, 1])) == [(4, (1, 0))]


def test_groups_are_stars_and_no_chains() -> None:
    # Each is 3 bits from the next one, the first and the last 9.
    chain = [0, 0b111, 0b111111, 0b111111111]
    assert members(group(chain, [0] * 4, "abcd")) == [(0, (1,)), (2, (3,))]
    assert members(group(chain, [0] * 4, "abcd", [1, 0, 2, 3])) == [(1, (0, 2))]
    # An image can be unlike the one that is kept though it is like one of its extras.
    assert members(group([0, 0, 0], [0, 20, 40], "abc")) == [(0, (1,))]


def test_equal_bytes_are_always_grouped() -> None:
    assert members(group([0, 0], [0, 180], "aa")) == [(0, (1,))]
    assert members(group([0, 0], [0, 180], "ab")) == []
    assert members(group([0, 1, 1], [0, 0, 0], "abb", bits=0)) == [(1, (2,))]


def test_a_shared_hash_of_very_many_images_takes_no_pairs() -> None:
    count = 30_000
    vectors = np.zeros((count, 2), np.float32)
    vectors[:, 0] = 1
    vectors[::1000] = (0, 1)
    groups = group_near_duplicates(np.zeros(count, np.uint64), str, vectors.__getitem__, lambda row: row)
    assert [len(one.extras) + 1 for one in groups] == [30, count - 30]


def test_copies_of_a_picture_are_close_and_its_mirror_image_is_not() -> None:
    picture = pattern(3, 1, 96)
    hashes = [
        perceptual_hash(np.asarray(image), Box(0, 0, *image.size))
        for image in (picture, picture.resize((48, 48)), picture.crop((1, 1, 95, 95)), picture.transpose(0))
    ]
    assert close_hashes(numbers(*hashes), hashes[0])[0].tolist() == [0, 1, 2]
