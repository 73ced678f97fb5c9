"""What writing answers by hand brings over protobuf's generated classes: alone, and in a server under load.

    python benchmarks/answer_bytes.py --out answer-bytes-out

Two servers, equal but for what writes their answers, are loaded in turn: by embedding with 64 in flight and by image
with one in flight.  A server is judged by its own CPU time a query, which other work on the machine moves less than
rates.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import random_index

from cbir.core.artifacts import IndexStore
from cbir.core.search import Retriever
from cbir.core.vote import SearchSpec
from cbir.indexer.samples.sample_split import write_samples
from cbir.server.bench.load import payloads
from cbir.server.bench.load.generator import Generator, Window
from cbir.server.engine import EngineResult, Timings
from cbir.server.transport.answer_bytes import write_results
from cbir.v1 import search_pb2

STAGES = ("decode", "queue", "embed", "search", "fuse")


def write_plainly(results: Sequence[EngineResult], *, expose_paths: bool = False) -> list[tuple[bytes, bytes]]:
    """What :func:`cbir.server.transport.answer_bytes.write_results` writes, by the generated classes."""
    return [_plainly(result, expose_paths) for result in results]


def _plainly(result: EngineResult, expose_paths: bool) -> tuple[bytes, bytes]:
    answer = search_pb2.SearchResponse(index_version=result.version)
    for hit in result.hits:
        written = answer.hits.add(
            image_id=hit.image.id, uri=hit.image.uri if expose_paths else hit.image.id, score=hit.score,
            fused_score=hit.fused_score,
            label_contribution=hit.label_contribution, metadata=hit.image.metadata,
        )  # fmt: skip
        if hit.image.label is not None:
            written.label = hit.image.label
        for vote in hit.votes:
            written.votes.add(
                member=vote.member, rank=vote.rank, similarity=vote.similarity, contribution=vote.contribution
            )
    for label, probability in result.labels:
        answer.labels.add(label=label, probability=probability)
    if box := result.crop:
        answer.crop.CopyFrom(search_pb2.Box(left=box.left, top=box.top, right=box.right, bottom=box.bottom))
    body = answer.SerializeToString()
    for stage in STAGES:
        getattr(answer.timings, stage).FromNanoseconds(round(getattr(result.timings, stage) * 1e9))
    return answer.SerializeToString(), body


SERVERS = {
    "by hand": "",
    "generated classes": (
        "import answer_bytes, cbir.server.transport.lifecycle as lifecycle; "
        "lifecycle.write_results = answer_bytes.write_plainly; "
    ),
}


def alone(index: Path) -> dict[str, float]:
    """Microseconds that one answer of ten hits takes to write, by way of writing."""
    retriever = Retriever.load(IndexStore(index).open(), "cpu", "exact")
    rng = np.random.default_rng(0)
    raw = {
        n: rng.standard_normal((1, d), np.float32) for n, d in zip(retriever.members, retriever.raw_dims, strict=True)
    }
    ranking = retriever.search(retriever.project(raw), [SearchSpec()])[0]
    timings = Timings(decode=0.001, queue=0.0005, embed=0.008, search=0.0004, fuse=0.0001)
    result = EngineResult(ranking, retriever.members, retriever.gallery, None, "version", timings)
    ways = {"by hand": write_results, "generated classes": write_plainly}
    return {
        name: min(timeit.repeat(lambda w=way: w([result]), number=200, repeat=20)) / 200 * 1e6
        for name, way in ways.items()
    }


@contextmanager
def server(index: Path, patch: str) -> Iterator[tuple[int, str]]:
    """A server in a process of its own: its process id and address."""
    run = "from cbir.client.cli import main; raise SystemExit(main(sys.argv[1:]))"
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {here!r}); {patch}{run}"]
    command += ["serve", str(index), "--port", "0", "--json", "--cache-entries", "0", "--device", "cpu"]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                log.seek(0)
                raise SystemExit(f"the server did not start: {log.read().decode(errors='replace')}")
            yield process.pid, json.loads(line)["address"]
        finally:
            process.terminate()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def cost(pid: int, address: str, load: payloads.Payloads, in_flight: int, seconds: float) -> tuple[float, float]:
    """CPU milliseconds of the server a query, and queries a second."""
    async with Generator([address]) as generator:
        await generator.closed(load, in_flight, Window(0.5))
        before = cpu_seconds(pid)
        done = await generator.closed(load, in_flight, Window(seconds))
        spent = cpu_seconds(pid) - before
    return spent / done.requests * 1e3, done.answered / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("answer-bytes-out"))
    parser.add_argument("--images", type=int, default=20_000, help="size of the gallery of random vectors")
    parser.add_argument("--set", choices=random_index.SETS, default="tiny", help="networks (random weights)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    _, index = random_index.prepared_index(args.out, args.set, args.images)
    found = {"microseconds an answer": alone(index), "under load": {}}
    print(json.dumps(found["microseconds an answer"], indent=1))
    dims = {network.name: network.width for network in random_index.SETS[args.set]}
    files = [path.read_bytes() for path in write_samples((args.out / "queries").absolute(), per_class=4)]
    loads = {
        "embedding, 64 in flight": (payloads.embeddings(dims, 512, 0), 64),
        "image, one in flight": (payloads.images(files), 1),
    }
    with server(index, SERVERS["by hand"]) as hand, server(index, SERVERS["generated classes"]) as plain:
        for name, (load, in_flight) in loads.items():
            figures = {way: [] for way in SERVERS}
            for _ in range(args.rounds):
                for way, (pid, address) in (("by hand", hand), ("generated classes", plain)):
                    figures[way].append(asyncio.run(cost(pid, address, load, in_flight, args.seconds)))
            medians = {
                way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in figures.items()
            }
            share = 1 - medians["by hand"][0] / medians["generated classes"][0]
            found["under load"][name] = {
                "cpu ms a query": {way: round(m[0], 4) for way, m in medians.items()},
                "queries a second": {way: round(m[1], 1) for way, m in medians.items()},
                "share of CPU time saved": round(share, 4),
            }  # fmt: skip
            print(name, json.dumps(found["under load"][name], indent=1))
    (args.out / "answer-bytes.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
