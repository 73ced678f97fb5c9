"""Clusters that take the place of classes."""

from __future__ import annotations

import numpy as np
import pytest
from precision import f16, f32

from cbir.core.metric import normalise
from cbir.core.metric.clusters import _distances, _silhouette, cluster


def blobs(classes: int, each: int, spread: float, dim: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(classes), each)
    centres = normalise(rng.normal(size=(classes, dim)).astype(np.float32))
    return normalise(centres[truth] + spread * rng.normal(size=(len(truth), dim)).astype(np.float32)), truth


def test_distances_are_those_of_scipy() -> None:
    from scipy.spatial.distance import pdist

    vectors, _ = blobs(3, 4, 0.3)
    np.testing.assert_allclose(_distances(vectors), pdist(vectors), atol=f16(2))


def test_the_silhouette_by_hand() -> None:
    # Two at 0 and 60 degrees, one at 180 alone: the means are at distance sqrt(3)/2 from 0, at 30 degrees, and at 180.
    angles = np.deg2rad([0, 60, 180])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # To the other of the own cluster: 2 - 2 cos 60 = 1.  To the third: 2 - 2 cos 180 = 4, 2 - 2 cos 120 = 3.
    expected = ((4 - 1) / 4 + (3 - 1) / 3 + 0) / 3
    assert _silhouette(vectors, np.array([0, 0, 1])) == pytest.approx(expected, abs=f32(256))
    assert _silhouette(vectors, np.zeros(3, np.int64)) == 0


@pytest.mark.parametrize(("classes", "each"), [(30, 10), (8, 60), (4, 13)])
def test_classes_that_stand_apart_are_never_joined(classes: int, each: int) -> None:
    vectors, truth = blobs(classes, each, 0.08)
    codes = cluster(vectors)
    assert all(len(np.unique(truth[codes == code])) == 1 for code in np.unique(codes))
    # And they are cut into no more than a few parts each.
    assert classes <= len(np.unique(codes)) <= 3 * classes


@pytest.mark.parametrize("count", [2, 3, 7])
def test_small_and_equal_galleries_have_a_cluster_of_two(count: int) -> None:
    for vectors in (np.eye(8, dtype=np.float32)[:count], np.tile(np.eye(8, dtype=np.float32)[:1], (count, 1))):
        assert np.bincount(cluster(vectors)).max() >= 2


def test_the_order_of_the_gallery_does_not_matter() -> None:
    vectors, _ = blobs(6, 12, 0.2)
    order = np.random.default_rng(1).permutation(len(vectors))
    a, b = cluster(vectors), cluster(vectors[order])
    assert np.array_equal(a[order][:, None] == a[order], b[:, None] == b)
