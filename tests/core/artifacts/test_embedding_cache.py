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


def test_digests_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    """Eight bytes are looked up; whoever makes digests that share them gets no other image's embedding."""
    head = bytes(range(8))
    keys = [head + bytes([i]) * 24 for i in range(5)]
    cache = EmbeddingCache(tmp_path, "f")
    for i in (3, 0, 4):
        cache.put([keys[i]], np.full((1, 2), i, np.float16))
    for known in (cache, EmbeddingCache(tmp_path, "f")):
        assert [key in known for key in keys] == [True, False, False, True, True]
        asked = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)
        assert known.holds(asked).tolist() == [True, False, False, True, True]
        assert known.get([keys[4], keys[0], keys[3], keys[0]])[:, 0].tolist() == [4, 0, 3, 0]
        with pytest.raises(KeyError):
            known.get([keys[1]])


def test_many_digests_are_found_in_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    digests = rng.integers(0, 256, (20_000, 32), np.uint8)
    values = np.arange(20_000, dtype=np.int64)[:, None]
    cache = EmbeddingCache(tmp_path, "f")
    for start in range(0, 20_000, 5_000):  # the first two puts are kept apart, the others are merged
        cache.put([d.tobytes() for d in digests[start : start + 5_000]], values[start : start + 5_000])
    order = rng.permutation(20_000)
    for known in (cache, EmbeddingCache(tmp_path, "f")):
        np.testing.assert_array_equal(known.get(digests[order])[:, 0], order)
        assert known.holds(digests).all()
        assert not known.holds(digests[:, ::-1]).any()
        assert len(known) == 20_000


def test_blocks_are_merged_up_to_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbir.core.artifacts.embedding_cache._MERGED_ROWS", 50)
    cache = EmbeddingCache(tmp_path, "f")
    keys = [i.to_bytes(32, "big") for i in range(120)]
    for i, key in enumerate(keys):
        cache.put([key], np.full((1, 3), i, np.float32))
    cache.compact()
    assert len(list(cache.folder.glob("*.safetensors"))) == 3
    assert cache.get(keys)[:, 0].tolist() == list(range(120))


@pytest.mark.parametrize(
    "header",
    [
        b'{"keys":{"dtype":"U8","shape":[2,32],"data_offsets":[0,64]}}',
        b'{"keys":{"dtype":"U8","shape":[2,32],"data_offsets":[0,64]},'
        b'"values":{"dtype":"F16","shape":[2,1000000000],"data_offsets":[64,68]}}',
        b'{"keys":{"dtype":"U8","shape":[2,32],"data_offsets":[-64,0]},'
        b'"values":{"dtype":"F16","shape":[2,1],"data_offsets":[0,4]}}',
        b'{"keys":[],"values":[]}',
        b"not json",
    ],
)
def test_a_block_that_lies_about_its_arrays_is_forgotten(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "f").mkdir()
    path = tmp_path / "f" / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(68))
    assert len(EmbeddingCache(tmp_path, "f")) == 0
    assert not path.exists()
