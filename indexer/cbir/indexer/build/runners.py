"""The runners by name.  A further one is a class with the same arguments and a line here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from cbir.core.ensemble import EnsembleSpec
    from cbir.indexer.build.embedding import Progress, RunSettings
    from cbir.indexer.build.runner import Runner

__all__ = ["RUNNERS", "open_runner"]

#: Name -> the class that implements :class:`cbir.indexer.build.Runner`, loaded when it is asked for.
RUNNERS = {
    "local": "cbir.indexer.build.embedding:EmbeddingRun",
    "ray": "cbir.indexer.build.ray_runner:RayRunner",
}


def open_runner(
    ensemble: EnsembleSpec,
    cache: Path,
    settings: RunSettings,
    on_progress: Callable[[Progress], None] | None = None,
) -> Runner:
    """The runner that the settings name, over the cache of an index.

    Raises:
        ConfigurationError: ``EXTRA_MISSING`` or ``BLOCKS_UNREACHABLE``.
    """
    module, _, name = RUNNERS[settings.runner].partition(":")
    return cast("Runner", getattr(importlib.import_module(module), name)(ensemble, cache, settings, on_progress))
