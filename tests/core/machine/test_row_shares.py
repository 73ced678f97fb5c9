"""Rows are shared out among threads, each of which computes alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import faiss
import pytest
import torch

from cbir.core.machine import row_ranges, shared_out


def test_every_row_is_in_one_range_and_none_is_too_short() -> None:
    threads = torch.get_num_threads()
    for count in (0, 1, 7, 100, 1001):
        ranges = row_ranges(count, 10)
        assert [row for low, high in ranges for row in range(low, high)] == list(range(count))
        assert len(ranges) <= threads
        assert len(ranges) == 1 or min(high - low for low, high in ranges) >= 10
    assert len(row_ranges(10 * threads, 10)) == threads


def test_several_ranges_are_computed_by_one_thread_each_and_nothing_is_left_changed(two_threads: None) -> None:
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    # Both must be there at once, or the barrier breaks.
    both = threading.Barrier(2, timeout=20)

    def work(low: int, high: int) -> tuple[int, int, int, str]:
        both.wait()
        return low, torch.get_num_threads(), faiss.omp_get_max_threads(), threading.current_thread().name

    first, second = shared_out(work, [(0, 5), (5, 9)])
    assert (first[:3], second[:3]) == ((0, 1, 1), (5, 1, 1))
    assert first[3] != second[3]
    assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == before
    # Threads that start later have as many as any had before.
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before[0]


def test_one_thread_computes_all_ranges_in_turn() -> None:
    own = threading.get_ident()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert row_ranges(1000, 1) == [(0, 1000)]
        assert shared_out(lambda low, high: (low, high, threading.get_ident()), [(0, 2), (2, 3)]) == [
            (0, 2, own), (2, 3, own),
        ]  # fmt: skip
    finally:
        torch.set_num_threads(before)


def test_errors_reach_the_caller() -> None:
    def fail(low: int, high: int) -> None:
        if low == 1:
            raise ValueError("row 1")

    with pytest.raises(ValueError, match="row 1"):
        shared_out(fail, [(0, 1), (1, 2)])
