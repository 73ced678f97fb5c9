"""Independent computations side by side: in their order, with one thread of linear algebra each."""

from __future__ import annotations

import threading

import pytest
from threadpoolctl import threadpool_info

from cbir.core.machine import side_by_side


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)


def test_results_come_in_the_order_of_the_items_and_two_work_at_a_time() -> None:
    both = threading.Barrier(2, timeout=20)

    def work(item: int) -> tuple[int, set[int]]:
        both.wait()
        return item * item, blas_threads()

    before = blas_threads()
    assert side_by_side(work, range(4)) == [(square, {1}) for square in (0, 1, 4, 9)]
    assert blas_threads() == before


def test_one_computation_stays_on_its_thread() -> None:
    assert side_by_side(lambda _: threading.current_thread(), ["alone"]) == [threading.current_thread()]
    assert side_by_side(lambda _: 0, []) == []


def test_what_goes_wrong_is_raised() -> None:
    def work(item: int) -> int:
        return 1 // item

    with pytest.raises(ZeroDivisionError):
        side_by_side(work, [1, 0, 2])
