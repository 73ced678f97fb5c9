"""Health follows what the engine does: its thread may die or hang, and its device may fail, and each may end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from time import monotonic

from cbir.core.errors import CbirError
from cbir.server.deployment import Deployment
from cbir.server.limits import Limits
from cbir.server.observe import Notifier
from cbir.server.queue import Pipeline
from cbir.server.transport.health import Health

__all__ = ["Supervisor"]

_log = logging.getLogger(__name__)

_EVERY = 0.25
#: Batches in a row that fail without fault of a query before the device is taken to have failed.
_FAILED_BATCHES = 3
#: Seconds between trials whether it works again.
_TRY_EVERY = 2.0


class Supervisor:
    """Watches the engine's thread, and tells health and systemd what it sees."""

    def __init__(
        self, deployment: Deployment, pipeline: Pipeline, health: Health, limits: Limits, notifier: Notifier
    ) -> None:
        self._deployment, self._pipeline, self._health = deployment, pipeline, health
        self._hang, self._notifier = limits.hang_seconds, notifier
        self._told: str | None = None
        self._alive_at = self._try_at = 0.0
        self._trial: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the engine has answered a query."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End."""
        for task in (self._task, self._trial):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    def problem(self) -> str | None:
        """What keeps the engine from answering; None where nothing does."""
        thread = self._pipeline.engine_thread
        if not thread.is_alive:
            return "the engine's thread has ended"
        since = thread.working_since
        if since is not None and monotonic() - since > self._hang:
            return f"the engine has been at one batch for more than {self._hang:g} seconds"
        if self._pipeline.failed_batches >= _FAILED_BATCHES:
            return f"the last {self._pipeline.failed_batches} batches failed: the device may be gone"
        return None

    async def _run(self) -> None:
        while True:
            problem = self.problem()
            if (problem is None) != (self._told is None):
                if problem:
                    _log.error("not serving: %s", problem)
                else:
                    _log.warning("serving again")
                self._notifier.status(problem or "serving again")
                await self._health.set_serving(problem is None)
            self._told = problem
            if problem is None:
                self._tell_alive()
            elif not self._pipeline.engine_thread.is_alive:
                self._pipeline.revive()
            elif self._pipeline.failed_batches >= _FAILED_BATCHES:
                self._try_device()
            await asyncio.sleep(_EVERY)

    def _tell_alive(self) -> None:
        """The watchdog hears of it from here alone: a server whose loop stands still is silent."""
        every, now = self._notifier.watchdog_seconds, monotonic()
        if every is not None and now >= self._alive_at:
            self._alive_at = now + every
            self._notifier.alive()

    def _try_device(self) -> None:
        if monotonic() < self._try_at or (self._trial is not None and not self._trial.done()):
            return
        self._try_at = monotonic() + _TRY_EVERY
        self._trial = asyncio.create_task(self._answer_one())

    async def _answer_one(self) -> None:
        engine = self._deployment.engine
        try:
            await asyncio.to_thread(engine.warm_up, (), self._pipeline.on_engine_thread)
        except CbirError as error:
            _log.warning("still not serving: %s", error)
        except Exception as error:  # noqa: BLE001 - of whatever library it is, the device does not work yet
            _log.warning("still not serving: %s: %s", type(error).__name__, error)
        else:
            self._pipeline.failed_batches = 0
