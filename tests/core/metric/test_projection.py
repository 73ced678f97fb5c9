"""Projection: hand-computed cases, and properties that hold for any data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from precision import f16, f32

from cbir.core.metric import Projection, fit_glrt, fit_pca, fit_projection, normalise


def _two_gaussians(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that differ along the first axis and vary strongly along the second."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % 2
    x = rng.normal(0, [0.1, 2.0, 0.1], (n, 3))
    x[:, 0] += np.where(codes == 0, -1, 1)
    return x.astype(np.float32), codes


def test_pca_of_points_on_a_line_by_hand() -> None:
    # Points (0,0), (2,2), (4,4): mean (2,2), first component (1,1)/sqrt(2).
    x = np.array([[0, 0], [2, 2], [4, 4]], np.float32)
    mean, basis = fit_pca(x, 1)
    np.testing.assert_allclose(mean, [2, 2])
    np.testing.assert_allclose(basis[:, 0], [2**-0.5, 2**-0.5], atol=f32(32))


def test_uncentred_pca_keeps_inner_products() -> None:
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(80, 5)) @ rng.normal(size=(5, 20))).astype(np.float32)
    _, basis = fit_pca(x, 5, centred=False)
    z = x @ basis
    np.testing.assert_allclose(z @ z.T, x @ x.T, rtol=f16(2), atol=1e-2)


def test_glrt_by_hand_in_one_dimension() -> None:
    # Classes {-1-a, -1+a} and {1-a, 1+a}: S_w = 2a² (2 degrees of freedom lost to the means), S_t = 4(1+a²)/3.
    a = 0.5
    z = np.array([[-1 - a], [-1 + a], [1 - a], [1 + a]], np.float32)
    metric = fit_glrt(z, np.array([0, 0, 1, 1]), ridge=0.0)
    # M is one number; the map is scaled so that the largest eigenvalue of M is 1.
    np.testing.assert_allclose(np.abs(metric), [[1.0]], atol=f32(32))


def test_glrt_by_hand_in_two_dimensions() -> None:
    # Within: variance 1 along x, 4 along y (four points a class, three degrees of freedom each).
    shape = np.array([[1, 0], [-1, 0], [0, 2], [0, -2]], np.float64) * np.sqrt(1.5)
    away = np.array([10, 0])
    z = np.concatenate([shape + away, shape - away]).astype(np.float32)
    codes = np.repeat([0, 1], 4)
    metric = fit_glrt(z, codes, ridge=0.0)
    m = metric.T @ metric
    s_w = 2 * np.diag([1.0, 4.0])
    s_t = 2 * np.cov(z.T)
    expected = np.linalg.inv(s_w) - np.linalg.inv(s_t)
    values, vectors = np.linalg.eigh(expected)
    expected = (vectors * values.clip(0)) @ vectors.T
    np.testing.assert_allclose(m, expected / values.max(), atol=f32(256))


def test_glrt_draws_classes_together() -> None:
    x, codes = _two_gaussians()
    z = x @ fit_glrt(x, codes).T

    def gap(v: np.ndarray) -> float:
        centre = np.abs(v[codes == 0].mean(0) - v[codes == 1].mean(0))
        return float(np.linalg.norm(centre) / v[codes == 0].std(0).max())

    assert gap(z) > 3 * gap(x)


@given(seed=st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_glrt_is_symmetric_psd_and_blind_to_order_and_names(seed: int) -> None:
    x, codes = _two_gaussians(seed=seed)
    metric = fit_glrt(x, codes)
    m = metric.T @ metric
    np.testing.assert_allclose(m, m.T, atol=f32(32))
    assert np.linalg.eigvalsh(m).min() > -1e-6
    order = np.random.default_rng(seed).permutation(len(x))
    again = fit_glrt(x[order], 7 - codes[order])
    np.testing.assert_allclose(again.T @ again, m, atol=f32(2048))


def test_glrt_ignores_unlabelled_and_single_images() -> None:
    x, codes = _two_gaussians()
    with_singles = codes.copy()
    with_singles[0], with_singles[1] = -1, 99
    without = fit_glrt(x, np.where(np.arange(len(x)) < 2, -1, codes))
    np.testing.assert_allclose(fit_glrt(x, with_singles), without, atol=f32(32))


def test_glrt_refuses_labels_without_pairs() -> None:
    with pytest.raises(ValueError, match="no class has two images"):
        fit_glrt(np.eye(4, dtype=np.float32), np.arange(4))


@pytest.mark.parametrize(("metric", "source"), [("cosine", "gallery"), ("pca", "gallery"), ("glrt", "labels")])
def test_projection_gives_unit_vectors_and_survives_storage(metric: str, source: str) -> None:
    rng = np.random.default_rng(2)
    raw = normalise(rng.normal(size=(120, 32)).astype(np.float32))
    projection, fitted_on = fit_projection(raw, 8, metric, np.arange(120) % 4)
    z = projection.apply(raw)
    assert (z.shape, fitted_on, projection.dim) == ((120, 8), source, 8)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=f32(256))
    np.testing.assert_array_equal(Projection.from_arrays(projection.arrays()).apply(raw), z)


def test_full_cosine_changes_no_similarity() -> None:
    raw = normalise(np.random.default_rng(3).normal(size=(60, 12)).astype(np.float32))
    projection, fitted_on = fit_projection(raw, 12, "cosine")
    z = projection.apply(raw)
    np.testing.assert_allclose(z @ z.T, raw @ raw.T, atol=f32(256))
    assert fitted_on == "none"


def test_small_galleries_are_left_as_they_are() -> None:
    raw = normalise(np.random.default_rng(4).normal(size=(1, 12)).astype(np.float32))
    projection, fitted_on = fit_projection(raw, 4, "glrt", np.array([0]))
    np.testing.assert_allclose(projection.apply(raw), raw, atol=f32(32))
    assert fitted_on == "none"


def test_few_labels_fall_back_to_neighbours() -> None:
    raw = normalise(np.random.default_rng(5).normal(size=(100, 12)).astype(np.float32))
    codes = np.full(100, -1)
    codes[:4] = [0, 0, 1, 1]
    assert fit_projection(raw, 8, "glrt", codes)[1] == "neighbours"
    assert fit_projection(raw, 8, "glrt", None)[1] == "neighbours"
