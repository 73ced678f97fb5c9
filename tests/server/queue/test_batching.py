"""Continuous batching, without models."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from time import monotonic, sleep

import pytest

from cbir.server.queue.batching import Batcher, Ticket
from cbir.server.queue.decoders import Decoders
from cbir.server.queue.fair_queue import Lane


class Job(Ticket):
    """A ticket with a number."""

    __slots__ = ("number",)

    def __init__(self, number: int, lane: str = "", deadline: float | None = None, group: object = None) -> None:
        super().__init__(Lane(lane), 1.0, deadline, group)
        self.number = number


class Work:
    """Notes the batches that pass its gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []
        self.expired: list[int] = []

    def __call__(self, jobs: Sequence[Job]) -> None:
        self.entered.set()
        assert self.gate.wait(10)
        self.batches.append([job.number for job in jobs])

    def expire(self, jobs: Sequence[Job]) -> None:
        self.expired += [job.number for job in jobs]


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def batcher(work: Work) -> Iterator[Batcher[Job]]:
    made: Batcher[Job] = Batcher(work, work.expire, max_batch=4)
    yield made
    work.gate.set()
    assert made.close(10)


def begin(batcher: Batcher[Job], work: Work) -> None:
    """Set a first batch to work."""
    assert batcher.submit(Job(0))
    assert work.entered.wait(10)


def test_an_idle_engine_starts_at_once_and_a_busy_one_takes_what_waits(batcher: Batcher[Job], work: Work) -> None:
    begin(batcher, work)
    for i in range(1, 7):
        batcher.submit(Job(i))
    work.gate.set()
    assert batcher.close(10)
    assert work.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_a_client_that_sends_much_waits_for_itself(batcher: Batcher[Job], work: Work) -> None:
    begin(batcher, work)
    for i in range(1, 9):
        batcher.submit(Job(i, "many"))
    batcher.submit(Job(100, "few"))
    work.gate.set()
    assert batcher.close(10)
    assert work.batches == [[0], [1, 100, 2, 3], [4, 5, 6, 7], [8]]


def test_cancelled_and_expired_jobs_are_not_worked_on(batcher: Batcher[Job], work: Work) -> None:
    first = Job(0)
    batcher.submit(first)
    assert work.entered.wait(10)
    cancelled, early = Job(1), Job(4)
    batcher.submit(cancelled)
    batcher.submit(expired := Job(2, deadline=monotonic() - 1))
    batcher.submit(Job(3, deadline=monotonic() + 60))
    assert batcher.withdraw(cancelled)
    assert not batcher.withdraw(first), "its batch has begun"
    assert batcher.withdraw(early), "it has yet to come"
    assert not batcher.submit(early)
    work.gate.set()
    assert batcher.close(10)
    assert (work.batches, work.expired) == ([[0], [3]], [2])
    assert not batcher.withdraw(expired), "it was given up already, and is not given up twice"


def test_jobs_of_different_groups_are_not_mixed(batcher: Batcher[Job], work: Work) -> None:
    begin(batcher, work)
    old, new = object(), object()
    jobs = [Job(i, group=old if i < 3 else new) for i in (1, 2, 3, 4, 5)]
    for job in jobs:
        batcher.submit(job)
    work.gate.set()
    assert batcher.close(10)
    assert work.batches == [[0], [1, 2], [3, 4, 5]]


def test_a_job_that_was_set_aside_for_its_group_can_be_cancelled(work: Work) -> None:
    groups = [object(), object()]
    jobs = [Job(i, group=groups[i % 2]) for i in range(3)]
    answers: list[bool] = []

    def process(batch: Sequence[Job]) -> None:
        work(batch)
        if batch[0] is jobs[0]:
            # Job 1 was taken from the queue, found to be of another group, and waits for the next batch.
            answers.append(batcher.withdraw(jobs[1]))

    batcher: Batcher[Job] = Batcher(process, work.expire, max_batch=4)
    batcher.submit(Job(9, group=groups[0]))
    assert work.entered.wait(10)
    for job in jobs:
        batcher.submit(job)
    work.gate.set()
    assert batcher.close(10)
    assert answers == [True]
    assert work.batches == [[9], [0], [2]]


def test_a_delay_lets_a_batch_fill(work: Work) -> None:
    work.gate.set()
    batcher: Batcher[Job] = Batcher(work, work.expire, max_batch=3, max_delay=30)
    for i in range(3):
        assert not work.batches
        batcher.submit(Job(i))
    assert work.entered.wait(10), "a full batch does not wait"
    batcher.submit(Job(3))
    sleep(0.05)
    assert work.batches == [[0, 1, 2]]
    assert batcher.close(10), "nor does a batch wait for what cannot come"
    assert work.batches == [[0, 1, 2], [3]]


def test_a_delay_ends(work: Work) -> None:
    work.gate.set()
    batcher: Batcher[Job] = Batcher(work, work.expire, max_batch=3, max_delay=0.05)
    begun = monotonic()
    batcher.submit(Job(0))
    assert work.entered.wait(10)
    assert monotonic() - begun >= 0.05
    assert batcher.close(10)


def test_errands_run_between_batches_on_the_same_thread(batcher: Batcher[Job], work: Work) -> None:
    begin(batcher, work)
    batcher.submit(Job(1))
    seen: list[tuple[str, int]] = []
    errands = [batcher.errand(lambda: seen.append((threading.current_thread().name, len(work.batches)))) for _ in "ab"]
    failing = batcher.errand(lambda: 1 / 0)
    work.gate.set()
    for errand in errands:
        errand.result(10)
    with pytest.raises(ZeroDivisionError):
        failing.result(10)
    assert seen == [("cbir-engine", 1), ("cbir-engine", 2)]


def test_closing_works_off_what_waits(work: Work) -> None:
    batcher: Batcher[Job] = Batcher(work, work.expire, max_batch=1)
    for i in range(3):
        batcher.submit(Job(i))
    errand = batcher.errand(lambda: "done")
    assert not batcher.close(0.01)
    work.gate.set()
    assert batcher.close(10)
    assert work.batches == [[0], [1], [2]]
    assert errand.result(0) == "done"
    with pytest.raises(RuntimeError):
        batcher.submit(Job(1))
    with pytest.raises(RuntimeError):
        batcher.errand(lambda: None)


class Bench:
    """Decoders whose work waits at a gate."""

    def __init__(self, threads: int, ahead: int) -> None:
        self.gate = threading.Event()
        self.done: list[int] = []
        self.begun: list[int] = []
        self.expired: list[int] = []
        self.decoders: Decoders[Job] = Decoders(self.prepare, self.expire, threads=threads, ahead=ahead)

    def prepare(self, job: Job) -> None:
        self.begun.append(job.number)
        assert self.gate.wait(10)
        self.done.append(job.number)

    def expire(self, jobs: Sequence[Job]) -> None:
        self.expired += [job.number for job in jobs]

    def until(self, what: list[int], count: int) -> None:
        end = monotonic() + 10
        while len(what) < count and monotonic() < end:
            sleep(0.001)
        sleep(0.01)
        assert len(what) == count


def test_decoders_work_ahead_by_so_much_and_no_more() -> None:
    bench = Bench(threads=2, ahead=3)
    jobs = [Job(i) for i in range(6)]
    for job in jobs:
        bench.decoders.submit(job)
    bench.until(bench.begun, 2)
    bench.gate.set()
    bench.until(bench.done, 3)
    assert not bench.decoders.withdraw(jobs[2])
    assert bench.decoders.withdraw(jobs[3]), "it waits undecoded, and nothing was spent on it"
    bench.decoders.release()
    bench.until(bench.done, 4)
    assert sorted(bench.done) == [0, 1, 2, 4]
    bench.decoders.close()


def test_decoders_leave_what_has_expired() -> None:
    bench = Bench(threads=1, ahead=9)
    bench.gate.set()
    bench.decoders.submit(Job(1, deadline=monotonic() - 1))
    bench.decoders.submit(Job(2, deadline=monotonic() + 60))
    bench.until(bench.done, 1)
    assert (bench.done, bench.expired) == ([2], [1])
    bench.decoders.close()
