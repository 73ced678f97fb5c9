"""Which engine answers, and how another one takes its place."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from cbir.core.ensemble import load_ensemble
from cbir.core.store import IndexStore
from cbir.server.admission import NotReadyError
from cbir.server.engine import Engine
from cbir.server.limits import Limits

__all__ = ["Deployment", "EngineConfig", "Reload"]


@dataclass(frozen=True)
class EngineConfig:
    """Which index to serve and with what, so that another version can be loaded the same way.

    Attributes:
        ensemble: Name or file of an ensemble that says where the weights lie now; None: as the index says.
        text: Load text towers, so that the index can be searched by words where its ensemble allows it.
    """

    index_path: Path
    version: str | None = None
    ensemble: str | None = None
    device: str = "auto"
    runtime: str = "auto"
    index: str | None = None
    verify: bool = False
    limits: Limits = field(default_factory=Limits)
    text: bool = True
    precision: str = "auto"

    def resolve(self, version: str | None = None) -> str:
        """The version that is asked for, by default the live one.

        Raises:
            ArtifactError: ``INDEX_NOT_FOUND``.
        """
        return version or IndexStore(self.index_path).current()

    def load(self, version: str | None = None) -> Engine:
        """Load a version, by default the configured one, else the live one.  Takes seconds to minutes.

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
            limits=self.limits,
            text=self.text,
            precision=self.precision,
        )


@dataclass(frozen=True)
class Reload:
    """What a reload did: the version before, the version now, and whether they differ."""

    previous: str
    version: str
    changed: bool


class Deployment:
    """Holds the engine that new queries begin with.

    A query keeps the engine it began with; an engine is freed when it is replaced and its last query is answered.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._engine: Engine | None = None
        self._changing = asyncio.Lock()
        self._reloads: set[asyncio.Task[Reload]] = set()

    @property
    def engine(self) -> Engine:
        """The engine for a query that begins now.

        Raises:
            NotReadyError: None is loaded yet.
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
            self._engine = await _load_aside(self._config, None)
            return self._engine

    async def reload(self, version: str | None) -> Reload:
        """Load a version beside the engine that answers, then let it take over.

        A caller that leaves does not stop it: loading takes long, and asking again finds it done.

        Args:
            version: None: the one that is live on disk.

        Raises:
            CbirError: The version cannot be loaded; the old one goes on answering.
        """
        task = asyncio.create_task(self._reload(version))
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)
        return await asyncio.shield(task)

    async def _reload(self, version: str | None) -> Reload:
        async with self._changing:
            previous = self.engine.version
            wanted = await asyncio.to_thread(self._config.resolve, version)
            if wanted == previous:
                return Reload(previous, previous, False)
            self._engine = await _load_aside(self._config, wanted)
            return Reload(previous, self._engine.version, True)


async def _load_aside(config: EngineConfig, version: str | None) -> Engine:
    """Load on a thread of its own; a daemon, so that a server that is told to stop need not wait for it."""
    loaded: Future[Engine] = Future()
    loaded.set_running_or_notify_cancel()

    def load() -> None:
        try:
            engine = config.load(version)
        except BaseException as error:  # noqa: BLE001 - carried over to the caller
            loaded.set_exception(error)
        else:
            loaded.set_result(engine)

    threading.Thread(target=load, name="cbir-load", daemon=True).start()
    return await asyncio.wrap_future(loaded)
