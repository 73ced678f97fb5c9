"""Embed on a Ray cluster and die by SIGKILL at the second block: ``killed_driver.py ADDRESS SOURCE CACHE ENSEMBLE``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from cbir.core.ensemble import load_ensemble
from cbir.indexer.build import RaySettings, RunSettings, open_runner
from cbir.indexer.sources import open_sources


def main(address: str, source: str, cache: str, ensemble: str) -> None:
    settings = RunSettings("cpu", "torch", batch=8, runner="ray", ray=RaySettings(address, workers=1, cpus=0.5))
    sources = open_sources([source])
    images = sorted(sources.scan(), key=lambda image: image.id)
    blocks = open_runner(load_ensemble(ensemble), Path(cache), settings).run(images, sources, len(images))
    next(blocks)
    next(blocks)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
