"""Calls are accepted no faster than it pays: what a flooded server does not accept, gRPC turns away.

A call that Python refuses costs half of one that it answers: both need a task, metadata and a status.  ``grpc.aio``
accepts as fast as its event loop goes, so that a flood would fill the loop with refusals.  Below Python, gRPC turns
away what finds its list of waiting calls full (``grpc.server.max_pending_requests``), for a third of that and on other
cores; but the list only fills where nobody takes from it.  So where the loop is busy, refusals get a share of its time:
after each one it accepts nothing until the share is kept.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from time import monotonic, thread_time
from typing import Any

import grpc

from cbir.server.queue import OverloadedError

__all__ = ["Acceptance"]

#: Part of the loop's time that refusals may take.
_SHARE = 0.1
#: Part of its time that the loop is busy, from which on refusals take time from answers.  Below, it is the engine that
#: has too much to do, and the loop may as well tell callers at once.
_BUSY = 1 / 3
#: Seconds over which that is measured.
_WINDOW = 0.1
#: Most seconds between two calls that are accepted, so that whoever asks for little is not shut out.
_LONGEST = 0.025
#: Turns of the loop in which a task that was held up takes its next step.
_STEPS = 3
#: The task of ``grpc.aio`` that accepts calls, one after the other.
_ACCEPTING = "_server_main_loop"


class Acceptance:
    """Holds up the accepting of calls.  For one event loop, on whose thread all of it runs."""

    def __init__(self) -> None:
        self._until, self._released = 0.0, asyncio.Event()
        self._busy = self._seconds_each = 0.0
        self._since, self._spent, self._calls = monotonic(), thread_time(), 0

    async def start(self, server: grpc.aio.Server) -> None:
        """Start a server whose accepting can be held up.

        Where gRPC's task goes by another name some day, the server accepts as it always did.
        """
        loop = asyncio.get_running_loop()
        before = loop.get_task_factory()

        def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
            if getattr(coroutine, "__name__", "") == _ACCEPTING:
                coroutine = self._held_up(coroutine)
            return before(loop, coroutine, **options) if before else asyncio.Task(coroutine, loop=loop, **options)

        loop.set_task_factory(make)
        try:
            await server.start()
        finally:
            loop.set_task_factory(before)

    def ended(self, error: Exception | None = None) -> None:
        """A call has ended, with an answer or an error; a refusal for want of room or time holds others up."""
        self._calls += 1
        if not isinstance(error, OverloadedError):
            return
        now = monotonic()
        if now - self._since >= _WINDOW:
            self._measure(now)
        if self._busy > _BUSY:
            self._until = max(self._until, now) + self._seconds_each / _SHARE

    async def release(self) -> None:
        """Hold nothing up any more: the server is to stop, and does so when nothing waits to be accepted."""
        self._released.set()
        # What was held up goes on before anybody stops it.
        for _ in range(_STEPS):
            await asyncio.sleep(0)

    def _measure(self, now: float) -> None:
        spent = thread_time()
        self._busy = (spent - self._spent) / (now - self._since)
        # A refusal takes less than an answer, so that refusals get less than their share and never more.
        self._seconds_each = (spent - self._spent) / self._calls
        self._since, self._spent, self._calls = now, spent, 0

    async def _held_up(self, accepting: Coroutine[Any, Any, None]) -> None:
        await _stepwise(accepting, self._wait)

    def _wait(self) -> Coroutine[Any, Any, None] | None:
        """What to wait for before the next call is accepted; None: nothing."""
        left = self._until - monotonic()
        return self._pause(min(left, _LONGEST)) if left > 0 else None

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._released.wait(), seconds)


@types.coroutine
def _stepwise(
    inner: Coroutine[Any, Any, None], between: Callable[[], Coroutine[Any, Any, None] | None]
) -> Generator[Any, Any, None]:
    """Run a coroutine, and where there is one, another before each of its steps but the first."""
    try:
        awaited = inner.send(None)
        while True:
            try:
                yield awaited
                if (other := between()) is not None:
                    yield from other.__await__()
            except BaseException as error:  # noqa: BLE001 - it is for the coroutine to handle, a cancellation above all
                awaited = inner.throw(error)
            else:
                awaited = inner.send(None)
    except StopIteration:
        return
