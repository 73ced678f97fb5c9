"""The cache of raw embeddings: what it keeps, forgets, and survives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cbir.core.artifacts import EmbeddingCache


def test_cache_keeps_compacts_and_forgets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    keys = [bytes([i]) * 32 for i in range(100)]
    rows = rng.normal(size=(100, 6)).astype(np.float16)
    cache = EmbeddingCache(tmp_path, "f")
    for i in range(100):
        cache.put(keys[i : i + 1], rows[i : i + 1])
    assert len(list((tmp_path / "f").iterdir())) == 100
    order = rng.permutation(100)
    np.testing.assert_array_equal(cache.get([keys[i] for i in order]), rows[order])
    cache.compact()
    assert len(list((tmp_path / "f").iterdir())) == 1
    again = EmbeddingCache(tmp_path, "f")
    assert keys[3] in again
    np.testing.assert_array_equal(again.get(keys), rows)
    assert again.discard(set(keys[:10])) == 90
    assert len(EmbeddingCache(tmp_path, "f")) == 10
    with pytest.raises(KeyError):
        again.get([keys[50]])


def test_cache_survives_a_block_that_was_cut_off(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, "f")
    for i in range(2):
        cache.put([bytes([i]) * 32], np.ones((1, 4), np.float16))
    victim = sorted((tmp_path / "f").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:30])
    (tmp_path / "f" / "x.partial").write_bytes(b"half")
    assert len(EmbeddingCache(tmp_path, "f")) == 1
