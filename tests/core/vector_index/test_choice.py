"""What ``auto`` chooses, and that what it chooses can be built whatever the members' lengths are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cbir.core.metric import normalise
from cbir.core.vector_index import build_index, choose_index, load_index

GIB = 2**30


def test_codes_that_a_core_reads_in_ten_milliseconds_are_scanned() -> None:
    for images, dims in ((1000, [128] * 5), (600_000, [128] * 5), (5_000_000, [64])):
        choices = choose_index(images, dims, memory=16 * GIB)
        assert [choice.name for choice in choices] == ["exact"] * len(dims)
        assert "nothing is missed" in choices[0].why


def test_larger_galleries_get_inverted_lists() -> None:
    choices = choose_index(1_000_000, [128, 64, 15], memory=16 * GIB)
    assert [choice.name for choice in choices] == ["exact"] * 3
    choices = choose_index(1_000_000, [512, 64, 15], memory=16 * GIB)
    assert [choice.name for choice in choices] == [f"faiss:IVF1024,PQ{parts}x4fs" for parts in (256, 32, 15)]
    assert "141 MiB of codes" in choices[0].why
    assert choose_index(100_000_000, [128])[0].name == "faiss:IVF8192,PQ64x4fs"


def test_memory_decides_too() -> None:
    assert choose_index(600_000, [128] * 5, memory=GIB // 4)[0].name == "faiss:IVF1024,PQ64x4fs"
    assert choose_index(10_000_000, [128], device="cuda", memory=8 * GIB)[0].name == "exact"
    assert choose_index(10_000_000, [128], device="cuda", memory=3 * GIB)[0].name.startswith("faiss:IVF")


@pytest.mark.parametrize("dim", [6, 15])
def test_what_is_chosen_finds_the_nearest(tmp_path: Path, dim: int) -> None:
    name = choose_index(1000, [dim], memory=1)[0].name
    rng = np.random.default_rng(0)
    vectors = normalise(rng.standard_normal((1000, dim), np.float32)).astype(np.float16)
    build_index(name, vectors, tmp_path / "index")
    rows, _ = load_index(name, tmp_path / "index", vectors, "cpu").search(vectors[:20].astype(np.float32), 10)
    assert (rows == np.arange(20)[:, None]).any(axis=1).sum() >= 15
