"""``cbir bench index`` and ``cbir bench search`` in small: every figure is there, and drawn galleries are sound."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from rich.console import Console

from cbir.core.ensemble import load_ensemble
from cbir.indexer.bench import IndexPlan, SearchPlan, draw, measure_index, measure_search, print_report
from cbir.indexer.bench.drawn_gallery import DrawnVectors
from cbir.indexer.build import RunSettings


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each part in this process, whose threads and cores are given back."""

    def alone(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        return function(*arguments)

    monkeypatch.setattr("cbir.indexer.bench.search_speed._alone", alone)
    monkeypatch.setattr("cbir.indexer.bench.search_speed.CHANGED", 20)
    cores, threads, others = os.sched_getaffinity(0), torch.get_num_threads(), faiss.omp_get_max_threads()
    yield
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(others)


def shown(document: dict[str, Any], folder: Path) -> str:
    draw(document, folder / "bench.png")
    assert (folder / "bench.png").stat().st_size > 10_000
    console = Console(record=True, width=150)
    print_report(console, document)
    return console.export_text()


def test_search(in_process: None, tmp_path: Path) -> None:
    plan = SearchPlan(1500, 2, 16, ("exact", "faiss:IVF8,SQfp16"), 10, 0, tmp_path / "work")
    document = measure_search(plan, lambda text: None)
    exact, lists = document["kinds"]
    assert exact["recall"] == 1.0
    assert lists["recall"] >= 0.9
    assert lists["file_mib"] > 0
    assert document["auto"]["kind"] == "exact"
    assert document["change"]["images"] == 1500
    assert document["change"]["removed_still_there"] == 0
    text = shown(document, tmp_path)
    assert "faiss:IVF8,SQfp16" in text
    assert "added and removed / whole build" in text


def test_drawn_vectors_are_the_same_however_they_are_asked_for() -> None:
    vectors = DrawnVectors(1, 20_000, 16, seed=3)
    rows = np.array([0, 8191, 8192, 19_999, 5])
    np.testing.assert_array_equal(vectors[rows], vectors[:][rows])
    np.testing.assert_array_equal(vectors[100:110], vectors[np.arange(100, 110)])
    np.testing.assert_allclose(np.linalg.norm(vectors[:50], axis=1), 1, rtol=1e-5)
    assert not np.array_equal(DrawnVectors(0, 20_000, 16, seed=3)[:5], vectors[:5])


def test_index(tmp_path: Path, tiny: Path) -> None:
    settings = RunSettings(device="cpu", runtime="torch", batch=8, workers=2)
    plan = IndexPlan(load_ensemble(tiny), (), 24, 2, 1, settings, 0, tmp_path / "work")
    document = measure_index(plan, lambda text: None)
    rates = document["rates"]
    assert min(rates.values()) > 0
    by_name = {one["name"]: one["value"] for one in document["ratios"]}
    both = 1 / (1 / rates["decode"] + 1 / rates["forward"])
    assert by_name["indexer / decode and forward on the same cores"] == pytest.approx(rates["indexer"] / both)
    assert "the whole command" in shown(document, tmp_path)
