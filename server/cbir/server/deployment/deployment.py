"""Which engine answers, and how another one replaces it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cbir.core.artifacts import IndexStore, IndexVersion, TrustedKeys
from cbir.core.ensemble import EnsembleSpec, load_ensemble
from cbir.core.errors import CbirError
from cbir.core.images import Decoder
from cbir.core.machine import step_back
from cbir.core.search import Kernel, VectorStore
from cbir.server.deployment.memory import available_bytes, check_memory
from cbir.server.engine import Engine
from cbir.server.limits import Limits
from cbir.server.queue import NotReadyError, OverloadedError, Pipeline

__all__ = ["Deployment", "EngineConfig", "Reload"]


@dataclass(frozen=True)
class EngineConfig:
    """Which index to serve and with what, so that another version can be loaded the same way.

    Attributes:
        ensemble: Name or file of an ensemble with the present paths of the weights; None for those in the index.
        verify: Compare every file with its checksum before anything is made of it.
        trust: Who must have signed a version; None: nobody need have.
        expose_paths: Tell callers where images lie on this machine.
        store: Where the vectors are kept; None: in the index's files.
        text: Load text towers, so that text queries can be answered if the ensemble has any.
        kernel: What an exact search on a CPU runs on; ``auto`` chooses by measuring.
    """

    index_path: Path
    version: str | None = None
    ensemble: str | None = None
    device: str = "auto"
    runtime: str = "auto"
    index: str | None = None
    verify: bool = True
    limits: Limits = field(default_factory=Limits)
    text: bool = True
    precision: str = "auto"
    trust: TrustedKeys | None = None
    expose_paths: bool = False
    store: VectorStore | None = None
    kernel: Kernel = "auto"

    def resolve(self, version: str | None = None) -> str:
        """The version that is asked for; without one, the live one.

        Raises:
            ArtifactError: ``INDEX_NOT_FOUND``.
        """
        return version or IndexStore(self.index_path).current()

    def load(
        self,
        version: str | None = None,
        *,
        beside: Engine | None = None,
        on_device: Callable[[Callable[[], None]], None] | None = None,
        decoder: Decoder | None = None,
        on_step: Callable[[IndexVersion, EnsembleSpec], None] | None = None,
    ) -> Engine:
        """Load a version, by default the configured one or else the live one.  Takes seconds to minutes.

        Args:
            beside: As in :meth:`Engine.load`.
            on_device: As in :meth:`Engine.load`.
            decoder: As in :meth:`Engine.load`.
            on_step: As in :meth:`Engine.load`.

        Raises:
            CbirError: As :meth:`Engine.load`.
        """
        return Engine.load(
            self.index_path,
            version=version or self.version,
            ensemble=load_ensemble(self.ensemble) if self.ensemble else None,
            device=self.device,
            runtime=self.runtime,
            index=self.index,
            verify=self.verify,
            trust=self.trust,
            limits=self.limits,
            text=self.text,
            beside=beside,
            on_device=on_device,
            precision=self.precision,
            decoder=decoder,
            on_step=on_step,
            store=self.store,
            kernel=self.kernel,
        )


@dataclass(frozen=True)
class Reload:
    """The result of a reload: the version before, the version now, and whether they differ."""

    previous: str
    version: str
    changed: bool


@dataclass
class _Job:
    """A reload that waits or loads.

    Attributes:
        stop: Set once nobody waits for it any more.
        waiting: How many do.
    """

    stop: threading.Event
    waiting: int = 0
    task: asyncio.Task[Reload] | None = None


class LoadStoppedError(CbirError):
    """Nobody waits any more for the version that was being loaded."""


def _step(beside: Engine | None, stop: threading.Event | None, version: IndexVersion, ensemble: EnsembleSpec) -> None:
    """Called on the loading thread before each of its steps."""
    if stop is not None and stop.is_set():
        raise LoadStoppedError("nobody waits for this version any more", reason="CANCELLED")
    if beside is not None:
        check_memory(version, ensemble, set(beside.models), available_bytes())


class Deployment:
    """Holds the engine that new queries use.

    A query keeps the engine that it began with; an engine is freed once it was replaced and its last query is answered.
    """

    def __init__(self, config: EngineConfig, pipeline: Pipeline, decoder: Decoder | None = None) -> None:
        self._config, self._pipeline, self._decoder = config, pipeline, decoder
        self._engine: Engine | None = None
        self._changing = asyncio.Lock()
        self._jobs: dict[str, _Job] = {}
        #: Number of reloads that succeeded, and of those that failed.
        self.reloaded = 0
        self.refused = 0

    @property
    def engine(self) -> Engine:
        """The engine for a query that begins now.

        Raises:
            NotReadyError: No engine is loaded yet.
        """
        if self._engine is None:
            raise NotReadyError("the index is still being loaded: try again in a moment", reason="NOT_READY")
        return self._engine

    async def load(self) -> Engine:
        """Load the configured version.

        Raises:
            CbirError: It cannot be loaded.
        """
        async with self._changing:
            return self._change_over(await self._load_aside(None))

    def live_version(self) -> str:
        """The version that is live on disk.

        Raises:
            ArtifactError: ``INDEX_NOT_FOUND``, ``INDEX_INCOMPLETE`` or ``INDEX_CORRUPT``.
        """
        return self._config.resolve()

    async def reload(self, version: str | None) -> Reload:
        """Load a version while the present engine goes on answering, then replace it.

        Reloads wait for each other.  Whoever asks for a version that is waited for or loaded already waits for the same
        reload; when all who wait for one have left, it stops.

        Args:
            version: Name of the version; None for the one that is live on disk.

        Raises:
            CbirError: The version cannot be loaded; the old one goes on answering.
            OverloadedError: Too many reloads wait.
        """
        try:
            wanted = await asyncio.to_thread(self._config.resolve, version)
        except CbirError:
            self.refused += 1
            raise
        job = self._jobs.get(wanted)
        if job is None:
            if len(self._jobs) >= self._config.limits.reloads:
                raise OverloadedError("the server is busy with reloads: try again in 10 seconds", 10.0)
            job = self._jobs[wanted] = _Job(threading.Event())
            job.task = asyncio.create_task(self._reload(wanted, job))
            job.task.add_done_callback(lambda _: self._jobs.pop(wanted, None))
        job.waiting += 1
        assert job.task is not None
        try:
            return await asyncio.shield(job.task)
        except asyncio.CancelledError:
            job.waiting -= 1
            if not job.waiting:
                job.stop.set()
                self._jobs.pop(wanted, None)
            raise

    async def _reload(self, wanted: str, job: _Job) -> Reload:
        async with self._changing:
            previous = self.engine.version
            try:
                if wanted == previous:
                    return Reload(previous, previous, False)
                self._change_over(await self._load_aside(wanted, job.stop))
            except CbirError as error:
                self.refused += not isinstance(error, LoadStoppedError)
                if job.waiting:
                    raise
                return Reload(previous, previous, False)  # nobody hears of it
            self.reloaded += 1
            return Reload(previous, self.engine.version, True)

    def _change_over(self, engine: Engine) -> Engine:
        self._engine = engine
        self._pipeline.cache.serve(engine.version)
        return engine

    async def _load_aside(self, version: str | None, stop: threading.Event | None = None) -> Engine:
        """Load on a thread of its own; a daemon thread, so that a server that is told to stop need not wait for it.

        This thread, and the threads of the models that it starts, get a lower priority, so that queries, refusals above
        all, are not delayed while all cores compute.  It is lowered only a little, because the thread holds the GIL at
        times.  Work on the device is done by the thread that owns it, between two batches.
        """
        loaded: Future[Engine] = Future()
        loaded.set_running_or_notify_cancel()
        beside = self._engine

        def load() -> None:
            nonlocal beside
            step_back()
            try:
                engine = self._config.load(
                    version, beside=beside, on_device=self._pipeline.on_engine_thread, decoder=self._decoder,
                    on_step=partial(_step, beside, stop),
                )  # fmt: skip
            except BaseException as error:  # noqa: BLE001 - carried over to the caller
                loaded.set_exception(error)
            else:
                loaded.set_result(engine)
            finally:
                beside = None

        threading.Thread(target=load, name="cbir-load", daemon=True).start()
        return await asyncio.wrap_future(loaded)
