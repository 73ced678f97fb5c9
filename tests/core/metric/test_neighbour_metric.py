"""The metric without labels: which pairs stand in for a class, and what is learnt from them."""

from __future__ import annotations

import numpy as np
from precision import f32

from cbir.core.metric import neighbour_metrics, normalise
from cbir.core.metric.glrt import glrt_metric
from cbir.core.metric.neighbour_metric import neighbour_pairs


def test_pairs_are_mutual_neighbours_each_once() -> None:
    # On a circle: a and b at 0 and 10 degrees, c at 25, d at 180.  Nearest: a-b, b-a, c-b, d-c; only a-b is mutual.
    angles = np.deg2rad([0, 10, 25, 180])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    first, second = neighbour_pairs(vectors, 1)
    assert (first.tolist(), second.tolist()) == ([0], [1])
    first, second = neighbour_pairs(vectors, 2)
    # Two nearest: a: b c; b: a c; c: b a; d: c b.
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2)]


def test_metric_of_two_covariances_by_hand() -> None:
    # M = (2 S_w)^-1 - (2 S_t)^-1 with S_w = diag(1, 2), S_t = diag(4, 2): diag(1/2 - 1/8, 0); the scale is free.
    metric = glrt_metric(np.diag([1.0, 2.0]), np.diag([4.0, 2.0]), ridge=0.0)
    np.testing.assert_allclose(metric.T @ metric, np.diag([1.0, 0.0]), atol=f32(256))


def test_neighbours_of_blobs_teach_the_direction_that_separates_them() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(400) % 8
    centres = normalise(rng.normal(size=(8, 6)).astype(np.float32))
    informative = centres[truth] + 0.1 * rng.normal(size=(400, 6)).astype(np.float32)
    noise = 0.8 * rng.normal(size=(400, 6)).astype(np.float32)
    z = normalise(np.concatenate([informative, noise], axis=1))
    other = normalise(informative)
    # Alone, the member drowns in its own noise less when a clean one looks for neighbours with it.
    alone, together = neighbour_metrics([z])[0], neighbour_metrics([z, other])[0]

    def agreement(metric: np.ndarray) -> float:
        y = normalise(z @ metric.T)
        scores = y @ y.T
        np.fill_diagonal(scores, -2)
        return float((truth[np.argsort(-scores, axis=1)[:, :10]] == truth[:, None]).mean())

    assert agreement(np.eye(12, dtype=np.float32)) < agreement(alone) < agreement(together)


def test_a_member_of_little_weight_has_little_say_in_who_is_near() -> None:
    rng = np.random.default_rng(2)
    truth = np.arange(300) % 30
    good = normalise(np.eye(30, dtype=np.float32)[truth] + 0.15 * rng.normal(size=(300, 30)).astype(np.float32))
    noise = normalise(rng.normal(size=(300, 30)).astype(np.float32))

    def precision(weights: tuple[float, float] | None) -> float:
        y = normalise(good @ neighbour_metrics([good, noise], weights=weights)[0].T)
        scores = y @ y.T
        np.fill_diagonal(scores, -2)
        return float((truth[np.argsort(-scores, axis=1)[:, :9]] == truth[:, None]).mean())

    assert precision((1.0, 0.05)) > precision((0.05, 1.0))


def test_small_galleries_of_small_classes_are_not_blurred() -> None:
    # 30 classes of ten images each: among twenty neighbours more than half would be of another class.
    rng = np.random.default_rng(3)
    truth = np.repeat(np.arange(30), 10)
    centres = normalise(rng.normal(size=(30, 40)).astype(np.float32))
    z = normalise(centres[truth] + 0.14 * rng.normal(size=(300, 40)).astype(np.float32))

    def precision(y: np.ndarray) -> float:
        scores = y @ y.T
        np.fill_diagonal(scores, -2)
        return float((truth[np.argsort(-scores, axis=1)[:, :9]] == truth[:, None]).mean())

    assert precision(normalise(z @ neighbour_metrics([z])[0].T)) > precision(z)


def test_the_order_of_the_gallery_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    z = normalise(rng.normal(size=(120, 5)).astype(np.float32))
    order = rng.permutation(120)
    a, b = neighbour_metrics([z])[0], neighbour_metrics([z[order]])[0]
    np.testing.assert_allclose(a.T @ a, b.T @ b, atol=f32(2048))
