"""How many threads a search gets."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from cbir.server.engine.search_threads import settle_search_threads


class Sleeper:
    """A searcher whose searches take so many seconds by one thread, and by several."""

    def __init__(self, one: float, several: float, images: int = 7) -> None:
        self.gallery, self._one, self._several = range(images), one, several

    def vectors_of(self, rows: Sequence[int]) -> np.ndarray:
        return np.zeros((len(rows), 3), np.float32)

    def search(self, queries: np.ndarray, specs: Sequence[object]) -> list[object]:
        time.sleep(self._one if faiss.omp_get_max_threads() == 1 else self._several)
        return []


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    of_faiss, of_torch = faiss.omp_get_max_threads(), torch.get_num_threads()
    faiss.omp_set_num_threads(2)
    torch.set_num_threads(2)
    yield
    faiss.omp_set_num_threads(of_faiss)
    torch.set_num_threads(of_torch)


def threads_for(searcher: Any) -> tuple[int, int]:
    settle_search_threads(searcher)
    return faiss.omp_get_max_threads(), torch.get_num_threads()


def test_several_where_a_caller_would_notice(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert threads_for(Sleeper(one=0.03, several=0.001)) == (2, 2)
    assert "by several: several" in caplog.text


def test_one_where_more_gain_nothing() -> None:
    assert threads_for(Sleeper(one=0.0, several=0.0)) == (1, 1)


def test_one_where_more_are_slower() -> None:
    assert threads_for(Sleeper(one=0.001, several=0.03)) == (1, 1)


def test_what_else_runs_for_a_moment_is_not_taken_for_the_cost_of_one_thread() -> None:
    searcher = Sleeper(one=0.03, several=0.002)
    usual = searcher.search

    def search(queries: np.ndarray, specs: Sequence[object]) -> list[object]:
        found = usual(queries, specs)
        # From the second round on nothing else runs.
        searcher._one = 0.002 if faiss.omp_get_max_threads() == 2 else searcher._one
        return found

    searcher.search = search  # type: ignore[method-assign]
    assert threads_for(searcher) == (1, 1)


def test_nothing_to_search_is_no_reason_for_anything() -> None:
    assert threads_for(Sleeper(one=0.0, several=0.0, images=0)) == (2, 2)


def test_it_is_measured_on_the_thread_that_searches() -> None:
    asked: list[str] = []

    def on_device(act: Any) -> None:
        asked.append("asked")
        act()

    settle_search_threads(Sleeper(one=0.0, several=0.0), on_device)  # type: ignore[arg-type]
    assert asked == ["asked"]
    assert faiss.omp_get_max_threads() == 1
