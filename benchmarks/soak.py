"""A server under everything at once, for as long as you like: ``python benchmarks/soak.py IMAGES --minutes 30``.

IMAGES is a zip with a folder a class.  Four fifths of the images are indexed and the others are the queries.
After a calm while, the server gets at the same time:

- good queries at ``--share`` of its capacity (random arrivals), those of the clients that are killed among them; all
  others have to be answered;
- one bad image for every hundred good ones, each of which has to be refused as such;
- one hostile image a second, by a caller who leaves after a second;
- a reload every 20 s, of versions that ``cbir index`` goes on publishing beside it, as images come and go;
- every 10 s a client whose process is killed in the middle of its stream.

Printed: a row for each minute with latency, memory, descriptors, threads and processes of the server, and then what
was promised beside what was seen.  Exit status 1 if a promise was broken.  Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import grpc
import numpy as np
from process_family import Held, held
from quality.retrieval import split

from cbir.server.bench.load.arrivals import poisson
from cbir.server.bench.load.frame_generator import FrameGenerator
from cbir.server.bench.load.generator import Load, Window
from cbir.server.bench.load.outcomes import Outcomes
from cbir.server.bench.load.payloads import images as image_payloads
from cbir.server.bench.server_process import ServerProcess, server_process
from cbir.v1 import admin_pb2, admin_pb2_grpc, search_pb2_grpc
from cbir.v1 import search_pb2 as pb

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import hostile_images

RELOAD_SECONDS, KILL_SECONDS = 20.0, 10.0
#: For how long the capacity is measured; a shared machine is faster in one quarter of a minute than in the next.
CAPACITY_SECONDS = 60.0
#: Seconds before memory counts: caches of the allocator and of the runtime fill, and the first ten reloads happen.
SETTLE = 300.0
#: Queries a second of the client that is going to be killed; they are part of the share of the capacity.
DOOMED_RATE = 5.0
#: Bad images for each good one.
BAD_SHARE = 0.01

COLUMNS = (
    *("minute", "answered", "failed", "p50 ms", "p99 ms", "sent late by, p99 ms"),
    *("MiB", "descriptors", "threads", "processes"),
)

TROUBLES = ("reload", "index", "kill", "hostile", "bad")

#: What a client does that is going to be killed: a stream that never ends.  It starts in the background, because what
#: its interpreter takes to start is not the server's.
DOOMED = """
import os, sys, time
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
from cbir.client import Client
def queries():
    for number in range(10**9):
        yield str(number), sys.argv[2]
        time.sleep(1 / float(sys.argv[3]))
with Client(sys.argv[1]) as client:
    for _ in client.search_stream(queries()):
        pass
"""


@dataclass(frozen=True)
class Row:
    """A minute of the soak; times in milliseconds, the others are medians over the minute."""

    minute: int
    answered: int
    failed: int
    p50: float
    p99: float
    late: float
    mib: float
    descriptors: float
    threads: float
    processes: float


def hostile() -> list[bytes]:
    """Images that are made to harm, from a few hundred bytes to some MiB."""
    return [
        hostile_images.many_scans(27_000, 64, 48),
        hostile_images.skipping_bmp(1_000_000, 100),
        hostile_images.deep_png(9_999, 9_999),
        hostile_images.many_segments(4 * 2**20),
        hostile_images.float_tiff(9_000, 9_000),
        hostile_images.garbled_fax(),
    ]


class Trouble:
    """All that is done to the server beside good queries."""

    def __init__(self, server: ServerProcess, query: Path) -> None:
        self._server, self._query = server, query
        # Made before anything is timed: it takes seconds of the event loop that also sends the good queries.
        self._hostile = hostile()
        self.reloads = self.changed = self.kills = self.hostile = self.bad = 0
        self.broken: list[str] = []

    async def reload(self) -> None:
        """Ask for the live version every 20 s."""
        async with grpc.aio.insecure_channel(self._server.admin) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            while True:
                await asyncio.sleep(RELOAD_SECONDS)
                try:
                    answer = await stub.ReloadIndex(admin_pb2.ReloadIndexRequest(), timeout=60.0)
                except grpc.aio.AioRpcError as error:
                    self.broken.append(f"reload: {error.code().name}: {error.details()}")
                    continue
                self.reloads += 1
                self.changed += answer.changed

    async def kill(self) -> None:
        """Start a client, and kill it 9 s later."""
        while True:
            client = await asyncio.create_subprocess_exec(
                sys.executable, "-c", DOOMED, self._server.address, str(self._query), str(DOOMED_RATE),
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            try:
                await asyncio.sleep(KILL_SECONDS - 1)
            finally:
                with suppress(ProcessLookupError):
                    client.send_signal(signal.SIGKILL)
                await client.wait()
            self.kills += 1
            await asyncio.sleep(1)

    async def harm(self) -> None:
        """A hostile image every second; whatever becomes of it, the caller has left after one."""
        async with grpc.aio.insecure_channel(
            self._server.address, options=[("grpc.max_send_message_length", -1)]
        ) as channel:
            stub = search_pb2_grpc.SearchServiceStub(channel)
            for image in itertools.cycle(self._hostile):
                begun = perf_counter()
                with suppress(grpc.aio.AioRpcError):
                    await stub.Search(pb.SearchRequest(query=pb.Query(image=image)), timeout=1.0)
                self.hostile += 1
                await asyncio.sleep(max(0.0, 1.0 - (perf_counter() - begun)))

    async def spoil(self, rate: float) -> None:
        """Damaged images; each has to be refused, and for what it is."""
        good = self._query.read_bytes()
        rng = random.Random(0)
        async with grpc.aio.insecure_channel(self._server.address) as channel:
            stub = search_pb2_grpc.SearchServiceStub(channel)
            while True:
                await asyncio.sleep(rng.expovariate(rate))
                # The beginning is kept, so that it looks like an image; what follows is noise.
                bad = good[:16] + rng.randbytes(len(good) - 16)
                try:
                    await stub.Search(pb.SearchRequest(query=pb.Query(image=bad)), timeout=10.0)
                except grpc.aio.AioRpcError as error:
                    self.bad += 1
                    if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                        self.broken.append(f"bad image: {error.code().name}: {error.details()}")
                else:
                    self.broken.append("bad image: answered")


@contextmanager
def publishing(gallery: Path, index: Path, ensemble: str) -> Iterator[subprocess.Popen[bytes]]:
    """Index the gallery again and again, as an operator's timer would, with an image less or one more each time.

    All of it gives way to the server, as under ``chrt --idle``: the interpreters that start, and ``gc``, too.
    """
    code = """
import os, subprocess, sys, time
from pathlib import Path
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
parent = os.getppid()
gallery, index, ensemble = sys.argv[1:]
images = sorted(p for p in Path(gallery).rglob("*") if p.is_file())
for turn in range(10**9):
    if os.getppid() != parent:
        break  # the soak was killed
    image = images[turn // 2 % len(images)]
    aside = Path(gallery).parent / "aside"
    aside.mkdir(exist_ok=True)
    place = aside / image.name
    image.rename(place) if turn % 2 == 0 else place.rename(image)
    indexing = ["index", gallery, "--out", index, "--ensemble", ensemble, "--background"]
    for command in (indexing, ["gc", index, "--keep", "3"]):
        subprocess.run([sys.executable, "-m", "cbir.client.cli", *command], check=True, capture_output=True)
    time.sleep(5)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(gallery), str(index), ensemble])
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


async def minutes(
    generator: FrameGenerator, payloads: object, server: ServerProcess, rate: float, seconds: float, name: str
) -> tuple[list[Row], Outcomes]:
    """Good queries for so long; a row a minute, printed as it is known."""
    rows: list[Row] = []
    every: list[Outcomes] = []
    for minute in itertools.count(1):
        length = min(60.0, seconds - (minute - 1) * 60.0)
        if length <= 1.0:
            break
        seen: list[Held] = []

        async def watch(seen: list[Held] = seen) -> None:
            while True:
                seen.append(await asyncio.to_thread(held, server.pid))
                await asyncio.sleep(1.0)

        watching = asyncio.create_task(watch())
        load: Load = await generator.scheduled(payloads, poisson(rate, length, minute))  # type: ignore[arg-type]
        watching.cancel()
        outcomes = load.outcomes
        every.append(outcomes)
        took = 1e3 * outcomes.latencies[outcomes.answered]
        late = 1e3 * float(np.quantile(outcomes.sent - outcomes.due, 0.99))
        medians = {field: float(np.median([getattr(one, field) for one in seen])) for field in Held.__annotations__}
        p50, p99 = (float(np.quantile(took, q)) for q in (0.5, 0.99))
        rows.append(Row(minute, int(outcomes.answered.sum()), len(outcomes.failures), p50, p99, late, **medians))
        row = rows[-1]
        print(
            f"| {name} {minute} | {row.answered} | {row.failed} | {row.p50:.1f} | {row.p99:.1f} | {row.late:.1f} "
            f"| {row.mib:.0f} | {row.descriptors:.0f} | {row.threads:.0f} | {row.processes:.0f} |",
            flush=True,
        )
    return rows, Outcomes.merged(every)


async def soak(args: argparse.Namespace, server: ServerProcess, gallery: Path, queries: Path) -> dict[str, object]:
    """Calm, then everything at once."""
    files = sorted(path for path in queries.rglob("*") if path.is_file())  # noqa: ASYNC240 - nothing else runs yet
    payloads = image_payloads([path.read_bytes() for path in files])
    async with FrameGenerator([server.address], channels=4, timeout=30.0) as generator:
        capacity = args.capacity
        if capacity is None:
            await generator.closed(payloads, 16, Window(3.0))
            closed = await generator.closed(payloads, 16, Window(CAPACITY_SECONDS))
            capacity = closed.answered / CAPACITY_SECONDS
        rate = args.share * capacity
        print(f"capacity {capacity:.1f}/s; {rate:.1f} good queries a second\n")
        print("| " + " | ".join(COLUMNS) + " |")
        print("| --- " * len(COLUMNS) + "|")
        trouble = Trouble(server, files[0])
        _, calm = await minutes(generator, payloads, server, rate, args.calm, "calm")
        kinds = {
            "reload": trouble.reload,
            "kill": trouble.kill,
            "hostile": trouble.harm,
            "bad": partial(trouble.spoil, BAD_SHARE * rate),
        }
        wanted = set(args.only or TROUBLES)
        with publishing(gallery, args.index, args.ensemble) if "index" in wanted else nullcontext() as publisher:
            tasks = [asyncio.create_task(work()) for kind, work in kinds.items() if kind in wanted]
            rate -= DOOMED_RATE if "kill" in wanted else 0.0
            rows, busy = await minutes(generator, payloads, server, rate, 60.0 * args.minutes, "soak")
            if publisher is not None and publisher.poll() is not None:
                trouble.broken.append(f"indexing ended with status {publisher.returncode}")
            trouble.broken += [f"{t.get_coro()}: {t.exception()!r}" for t in tasks if t.done()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return verdict(calm, busy, rows, trouble)


def verdict(calm: Outcomes, busy: Outcomes, rows: Sequence[Row], trouble: Trouble) -> dict[str, object]:
    """Every promise beside what was seen."""
    settled = [row for row in rows if row.minute * 60.0 > SETTLE] or list(rows)
    part = max(1, len(settled) // 4)
    first, last = settled[:part], settled[-part:]

    def grown(field: str) -> float:
        before, after = (float(np.median([getattr(row, field) for row in some])) for some in (first, last))
        return after / before

    p99 = [float(np.quantile(load.latencies[load.answered], 0.99)) for load in (calm, busy)]
    promises = {
        "failed good queries": (len(busy.failures), 0),
        "p99 / calm p99": (round(p99[1] / p99[0], 2), 2.0),
        "wrong answers to trouble": (len(trouble.broken), 0),
        "memory, last quarter / first": (round(grown("mib"), 3), 1.03),
        "descriptors": (round(grown("descriptors"), 3), 1.03),
        "threads": (round(grown("threads"), 3), 1.03),
        "processes": (round(grown("processes"), 3), 1.03),
    }
    print("\n| promise | seen | at most |\n| --- | --- | --- |")
    for name, (seen, most) in promises.items():
        print(f"| {name} | {seen} | {most} |")
    done = {field: getattr(trouble, field) for field in ("reloads", "changed", "kills", "hostile", "bad")}
    print(f"\n{len(busy)} good queries; " + ", ".join(f"{count} {name}" for name, count in done.items()))
    for line in sorted(set(trouble.broken))[:20]:
        print(f"- {line} ({trouble.broken.count(line)} times)")
    print("".join(f"- good query: {reason} ({count} times)\n" for reason, count in busy.errors().items()))
    return {
        "promises": {name: {"seen": seen, "at_most": most} for name, (seen, most) in promises.items()},
        "kept": all(seen <= most for seen, most in promises.values()),
        "trouble": done | {"broken": trouble.broken},
        "calm_p99_ms": 1e3 * p99[0],
        "p99_ms": 1e3 * p99[1],
        "minutes": [asdict(row) for row in rows],
    }


def main() -> int:
    """Print the table and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--calm", type=float, default=120.0, help="seconds of calm before (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=TROUBLES, help="what trouble there is (default: all of it)")
    parser.add_argument("--share", type=float, default=0.7, help="of the capacity (default: %(default)s)")
    parser.add_argument("--capacity", type=float, help="queries a second; measured by default")
    parser.add_argument("--ensemble", default="compact")
    parser.add_argument("--most", type=int, help="images a class")
    parser.add_argument("--work", type=Path, help="where the index is kept (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the results here too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cbir-soak-") as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        gallery, queries = split(args.images, work, args.most)
        args.index = work / "index"
        shutil.rmtree(work / "aside", ignore_errors=True)
        command = ["index", str(gallery), "--out", str(args.index), "--ensemble", args.ensemble]
        subprocess.run([sys.executable, "-m", "cbir.client.cli", *command], check=True, stdout=subprocess.DEVNULL)
        with server_process(args.index, ["--cache-entries", "0"]) as server:
            results = asyncio.run(soak(args, server, gallery, queries))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if results["kept"] else 1


if __name__ == "__main__":
    sys.exit(main())
