"""Independent computations side by side: in their order, with one thread of linear algebra each."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np  # noqa: F401 - its library is what is looked at
import pytest
from threadpoolctl import threadpool_info

from cbir.core.machine import side_by_side


def blas_threads() -> set[int]:
    """Of all libraries but those whose threads are OpenMP's, such as FAISS's: they have a number for each thread."""
    return {
        library["num_threads"]
        for library in threadpool_info()
        if library["user_api"] == "blas" and library.get("threading_layer") != "openmp"
    }


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


def test_libraries_that_were_loaded_later_are_held_too() -> None:
    """In a process of its own, because libraries stay."""
    code = """
from threadpoolctl import threadpool_info
import numpy
from cbir.core.machine import side_by_side
side_by_side(len, ["a", "b"])
before = len(threadpool_info())
import scipy.linalg
def threads(_): return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}
print(len(threadpool_info()) > before, side_by_side(threads, range(2)))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "True [{1}, {1}]\n"


def test_one_computation_stays_on_its_thread() -> None:
    assert side_by_side(lambda _: threading.current_thread(), ["alone"]) == [threading.current_thread()]
    assert side_by_side(lambda _: 0, []) == []


def test_what_goes_wrong_is_raised() -> None:
    def work(item: int) -> int:
        return 1 // item

    with pytest.raises(ZeroDivisionError):
        side_by_side(work, [1, 0, 2])
