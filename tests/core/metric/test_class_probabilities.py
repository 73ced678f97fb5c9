"""What classifiers say of who is of one kind, and what the metric without labels makes of it."""

from __future__ import annotations

import math

import numpy as np
from precision import f32

from cbir.core.metric import class_affinity, neighbour_metrics, normalise


def test_it_is_the_bhattacharyya_coefficient_by_hand() -> None:
    # Two classes along the axes: one image is the first, one the second, one between them.
    raw = np.array([[1, 0], [0, 1], [math.sqrt(0.5), math.sqrt(0.5)]], np.float32)
    told = class_affinity(raw, np.eye(2, dtype=np.float32))
    # Scores (1, 0) and (0, 1) have a standard deviation of a half, those of the third image none: a third in the mean.
    sure = 1 / (1 + math.exp(-3))
    both, half = 2 * math.sqrt(sure * (1 - sure)), math.sqrt(sure / 2) + math.sqrt((1 - sure) / 2)
    np.testing.assert_allclose(told @ told.T, [[1, both, half], [both, 1, half], [half, half, 1]], atol=f32(64))


def test_the_length_of_a_classifier_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    raw = normalise(rng.normal(size=(40, 8)).astype(np.float32))
    classifier = rng.normal(size=(60, 8)).astype(np.float32)
    one, other = class_affinity(raw, classifier), class_affinity(raw, 7 * classifier)
    np.testing.assert_allclose(one @ one.T, other @ other.T, atol=f32(2048))


def test_many_classes_are_brought_to_few_components_that_keep_inner_products() -> None:
    rng = np.random.default_rng(1)
    truth = np.arange(600) % 40
    raw = normalise(np.eye(40, dtype=np.float32)[truth] + 0.1 * rng.normal(size=(600, 40)).astype(np.float32))
    classifier = rng.normal(size=(1000, 40)).astype(np.float32)
    told = class_affinity(raw, classifier)
    assert told.shape == (600, 256)
    scores = raw @ classifier.T
    chances = np.exp(scores / scores.std(axis=1).mean())
    roots = np.sqrt(chances / chances.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(told @ told.T, roots @ roots.T, atol=0.004)


def test_nothing_to_tell_is_told_for_images_without_any_score() -> None:
    told = class_affinity(np.zeros((3, 4), np.float32), np.ones((50, 4), np.float32))
    np.testing.assert_allclose(told @ told.T, np.ones((3, 3)), atol=f32(64))


def test_neighbours_are_better_where_a_classifier_is_asked() -> None:
    # What tells the classes apart is a quarter of an embedding that is full of noise; the classifier looks there alone.
    rng = np.random.default_rng(2)
    truth = np.arange(480) % 12
    kinds = 0.9 * np.eye(12, dtype=np.float32)[truth] + 0.12 * rng.normal(size=(480, 12)).astype(np.float32)
    noise = 0.45 * rng.normal(size=(480, 36)).astype(np.float32)
    z = normalise(np.concatenate([kinds, noise], axis=1))
    mixtures = rng.normal(size=(60, 12)).astype(np.float32)
    classifier = np.concatenate([mixtures, np.zeros((60, 36), np.float32)], axis=1)

    def precision(metric: np.ndarray) -> float:
        y = normalise(z @ metric.T)
        scores = y @ y.T
        np.fill_diagonal(scores, -2)
        return float((truth[np.argsort(-scores, axis=1)[:, :10]] == truth[:, None]).mean())

    (alone,) = neighbour_metrics([z])
    (asked,) = neighbour_metrics([z], affinities=[class_affinity(z, classifier)])
    assert precision(asked) > precision(alone) + 0.02
