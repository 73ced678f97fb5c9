"""What the engine's parts take where the cores slept before: ``python benchmarks/asleep.py INDEX IMAGES``.

A server with one query in flight waits between its stages, and threads and cores that sleep have to be woken.  This
loads the engine without a server and times its parts back to back, and each after a pause.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

# Before torch and FAISS are loaded, as in the server.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from cbir.server.bench.bare_engine import BareEngine
from cbir.server.bench.load.query_images import read_images

PARTS = ("decode", "decode_apart", "forward", "search", "whole")


def milliseconds(call: Callable[[], object], pause: float, count: int) -> float:
    """The median of so many calls, each after a pause of so many seconds."""
    call()
    took = []
    for _ in range(count):
        time.sleep(pause)
        begun = time.perf_counter()
        call()
        took.append(time.perf_counter() - begun)
    return 1000 * float(np.median(took))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("index", help="folder of an index")
    parser.add_argument("images", type=Path, help="folder or archive of query images")
    parser.add_argument("--pauses", nargs="+", type=float, default=[0, 1, 5], help="milliseconds (0 1 5)")
    parser.add_argument("--count", type=int, default=100, help="calls of each part and pause (%(default)s)")
    args = parser.parse_args()
    engine = BareEngine.load([args.index, "--no-text"], read_images(args.images, 64))
    print("| p50, ms | " + " | ".join(f"after {pause:g} ms asleep" for pause in args.pauses) + " |")
    print("| --- |" + " --- |" * len(args.pauses))
    for part in PARTS:
        call, _ = engine.calls[part]
        cells = (f"{milliseconds(call, pause / 1000, args.count):.2f}" for pause in args.pauses)
        print(f"| {part.replace('_', ', ')} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
