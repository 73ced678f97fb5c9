"""Reloads under load: whether requests fail, and how much longer they take."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import IndexStore
from cbir.server.bench.figures.summary import latency_figures
from cbir.server.bench.load.arrivals import poisson
from cbir.server.bench.load.frame_generator import FrameGenerator
from cbir.server.bench.load.generator import Load
from cbir.server.bench.load.outcomes import Outcomes
from cbir.server.bench.load.payloads import Payloads
from cbir.v1 import admin_pb2, admin_pb2_grpc

__all__ = ["during", "reload_under_load", "two_versions"]

#: Seconds between two reloads, in which the server recovers.
_PAUSE = 0.5


@contextmanager
def two_versions(index: Path) -> Iterator[tuple[Path, tuple[str, str]]]:
    """A temporary index that has the files of the live version of ``index`` twice; ``index`` is not changed.

    Yields:
        The path of the temporary index and the names of its two versions.

    Raises:
        ArtifactError: There is no index.
    """
    version = IndexStore(index).open()
    with tempfile.TemporaryDirectory(prefix="cbir-bench-") as folder:
        store = IndexStore(folder)
        names: list[str] = []
        with store.lock():
            for _ in range(2):
                writer = store.begin()
                for file in version.manifest.files:
                    _link(version.path / file, writer.file(file))
                names.append(writer.publish(version.manifest).name)
            store.activate(names[0])
        yield Path(folder), (names[0], names[1])


def _link(file: Path, place: Path) -> None:
    """Have a file in another place too; as a copy, where the two are on different disks."""
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


async def reload_under_load(
    generator: FrameGenerator,
    payloads: Payloads,
    address: str,
    versions: tuple[str, str],
    *,
    reloads: int,
    rate: float,
    seconds: float,
    seed: int,
) -> dict[str, Any]:
    """Send requests at a steady rate, first without reloads and then while the server reloads.

    Args:
        address: Where the server takes admin calls.
        versions: The two versions to switch between.
        reloads: How many reloads.
        rate: Requests per second.
        seconds: How long the load without reloads is measured.
    """
    # In pieces of a second, as it is not known beforehand how long the reloads take.
    piece = min(1.0, seconds)
    seeds = count(seed)

    async def load() -> Load:
        # A piece takes its full time even if no request is due near its end, or none at all.
        done, _ = await asyncio.gather(
            generator.scheduled(payloads, poisson(rate, piece, next(seeds))), asyncio.sleep(piece)
        )
        return done

    calm = Outcomes.merged([(await load()).outcomes for _ in range(round(seconds / piece))])
    spans: list[tuple[float, float]] = []
    busy: list[Load] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]

        async def reload() -> None:
            for number in range(reloads):
                await asyncio.sleep(_PAUSE)
                begun = perf_counter()
                answer = await stub.ReloadIndex(admin_pb2.ReloadIndexRequest(version=versions[(number + 1) % 2]))
                assert answer.changed
                spans.append((begun, perf_counter()))

        reloading = asyncio.create_task(reload())
        while not reloading.done():
            busy.append(await load())
        await reloading
    every = Outcomes.merged([one.outcomes for one in busy])
    overlapping = every.picked(during(every, spans))
    lasted = np.array([end - begin for begin, end in spans])
    return {
        "reloads": reloads,
        "load_per_second": rate,
        "reload_ms": latency_figures(lasted),
        "requests": len(every),
        "failed": len(every.failures),
        "errors": every.errors(),
        "without": latency_figures(calm.latencies[calm.answered]),
        "during": latency_figures(overlapping.latencies[overlapping.answered]),
    }


def during(outcomes: Outcomes, spans: list[tuple[float, float]]) -> NDArray[np.bool_]:
    """(N,) whether each request was due or under way in any of the spans, pairs of begin and end."""
    result = np.zeros(len(outcomes), bool)
    for begin, end in spans:
        result |= (outcomes.due <= end) & (outcomes.done >= begin)
    return result
