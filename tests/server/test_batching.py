"""Continuous batching and admission, without models."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from time import monotonic

import pytest

from cbir.server.admission import Admission, OverloadedError, Pace
from cbir.server.batching import Batcher, DeadlineError


class Work:
    """Doubles numbers when the gate is open; refuses 13."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, jobs: Sequence[int]) -> list[int | Exception]:
        self.entered.set()
        assert self.gate.wait(10)
        self.batches.append(list(jobs))
        if 666 in jobs:
            raise MemoryError("all of them")
        return [ValueError("unlucky") if job == 13 else 2 * job for job in jobs]


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def batcher(work: Work) -> Iterator[Batcher[int, int]]:
    made: Batcher[int, int] = Batcher(work, max_batch=4, key=lambda job: job >= 1000)
    yield made
    work.gate.set()
    assert made.close(10)


def test_an_idle_engine_starts_at_once_and_a_busy_one_takes_what_waits(batcher: Batcher[int, int], work: Work) -> None:
    futures = [batcher.submit(0)]
    assert work.entered.wait(10)
    futures += [batcher.submit(i) for i in range(1, 7)]
    work.gate.set()
    assert [f.result(10) for f in futures] == [0, 2, 4, 6, 8, 10, 12]
    assert work.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert batcher.counts.batches == 3
    assert batcher.counts.processed == 7


def test_cancelled_and_expired_jobs_are_not_worked_on(batcher: Batcher[int, int], work: Work) -> None:
    first = batcher.submit(0)
    assert work.entered.wait(10)
    cancelled = batcher.submit(1)
    expired = batcher.submit(2, deadline=monotonic() - 1)
    kept = batcher.submit(3, deadline=monotonic() + 60)
    assert cancelled.cancel()
    assert not first.cancel()
    work.gate.set()
    assert kept.result(10) == 6
    with pytest.raises(DeadlineError):
        expired.result(10)
    assert work.batches == [[0], [3]]
    assert (batcher.counts.cancelled, batcher.counts.expired) == (1, 1)


def test_jobs_of_different_keys_are_not_mixed(batcher: Batcher[int, int], work: Work) -> None:
    first = batcher.submit(0)
    assert work.entered.wait(10)
    futures = [first, *(batcher.submit(i) for i in (1, 2, 1000, 1001, 3))]
    work.gate.set()
    assert [f.result(10) for f in futures] == [0, 2, 4, 2000, 2002, 6]
    assert work.batches == [[0], [1, 2], [1000, 1001], [3]]


def test_a_failure_reaches_its_callers_and_the_thread_goes_on(batcher: Batcher[int, int], work: Work) -> None:
    work.gate.set()
    with pytest.raises(MemoryError):
        batcher.submit(666).result(10)
    with pytest.raises(ValueError, match="unlucky"):
        batcher.submit(13).result(10)
    assert batcher.submit(4).result(10) == 8


def test_closing_answers_what_waits(work: Work) -> None:
    batcher: Batcher[int, int] = Batcher(work, max_batch=1)
    futures = [batcher.submit(i) for i in range(3)]
    assert not batcher.close(0.01)
    work.gate.set()
    assert batcher.close(10)
    assert [f.result(0) for f in futures] == [0, 2, 4]
    with pytest.raises(RuntimeError):
        batcher.submit(1)


def test_admission_counts_images_and_bytes() -> None:
    admission = Admission(2, 100, "queries")
    with admission.admit(60, 0.5):
        with pytest.raises(OverloadedError) as caught, admission.admit(60, 0.5):
            pass
        assert caught.value.retry_after == pytest.approx(0.5)
        with admission.admit(40, 0.5):
            with pytest.raises(OverloadedError) as caught, admission.admit(0, 0.5):
                pass
            assert caught.value.retry_after == pytest.approx(1.0)
    assert (admission.admitted, admission.admitted_bytes, admission.refused) == (0, 0, 2)
    with admission.admit(1000, 0.5):  # alone, even a large one fits
        assert admission.admitted == 1


def test_pace_follows_what_it_is_told() -> None:
    pace = Pace(1.0)
    for _ in range(50):
        pace.add(0.32, 32)
    assert pace.seconds_each == pytest.approx(0.01, rel=0.01)
