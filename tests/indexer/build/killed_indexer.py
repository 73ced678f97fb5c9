"""Index a folder and die by SIGKILL at a named moment: ``killed_indexer.py MOMENT SOURCE OUT ENSEMBLE``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cbir.core.artifacts import IndexStore, VectorFile, VersionWriter
from cbir.core.ensemble import load_ensemble
from cbir.indexer.build import EmbeddingRun, RunSettings, fitting, pipeline
from cbir.indexer.build.plan import Plan
from cbir.indexer.sources import open_sources


def die(*args: object, **kwargs: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """Call through ``number - 1`` times, then die."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return die() if calls == number else function(*args, **kwargs)

    return wrapped


def main(moment: str, source: str, out: str, ensemble: str) -> None:
    if moment == "scanning":  # found, and half of it compared with the live version
        Plan._keep = die  # type: ignore[method-assign]
    elif moment == "embedding":  # the third batch: two are committed
        EmbeddingRun._forward = on_call(EmbeddingRun._forward, 3)  # type: ignore[method-assign]
    elif moment == "projecting":
        fitting.fit_projection = die
    elif moment == "building":  # half of a member's vectors are written
        VectorFile.__exit__ = die  # type: ignore[method-assign]
    elif moment == "publishing":  # the version is complete, CURRENT still names the old one
        IndexStore.activate = die  # type: ignore[method-assign]
    elif moment == "writing":  # half the files of the new version are there
        VersionWriter.write_json = die  # type: ignore[method-assign]
    settings = RunSettings(device="cpu", runtime="torch", batch=10, workers=1, commit_seconds=0.0)
    pipeline.build(open_sources([source]), Path(out), load_ensemble(ensemble), settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
