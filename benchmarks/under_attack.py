"""What one attacker costs the others: latency of honest callers and memory, calm, during each attack, and after it.

usage: python benchmarks/under_attack.py INDEX [--seconds S] [--rate R] [--serve "OPTIONS OF cbir serve"]

The server runs in a process of its own.  Honest callers send a stored image of the index at a steady rate, and each of
them is answered before the figures count.  Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from time import monotonic, perf_counter

import grpc
import numpy as np
from process_family import held

from cbir.core.artifacts import IndexStore
from cbir.v1 import search_pb2 as pb
from cbir.v1 import search_pb2_grpc

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import hostile_images
from half_sent import RawConnection

SPAWN = multiprocessing.get_context("spawn")

#: Attacks an address and a port until the second event; sets the first one when what it sends is made.
Attack = Callable[[str, int, Event, Event], None]


def images(make: Callable[[], bytes], callers: int = 4) -> Attack:
    """Callers who send one image again and again, and leave after a second."""

    def attack(address: str, _: int, ready: Event, over: Event) -> None:
        request = pb.SearchRequest(query=pb.Query(image=make()))
        ready.set()

        def send() -> None:
            with grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
                stub = search_pb2_grpc.SearchServiceStub(channel)
                while not over.is_set():
                    try:
                        stub.Search(request, timeout=1.0)
                    except grpc.RpcError:
                        over.wait(0.05)

        threads = [threading.Thread(target=send) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return attack


def fields(address: str, _: int, ready: Event, over: Event) -> None:
    """Requests of two million empty ids."""
    raw = b"\x0a\x80\x92\xf4\x01" + b"\x2a\x00" * 2_000_000
    ready.set()
    with grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_unary("/cbir.v1.SearchService/Search")
        while not over.is_set():
            try:
                call(raw, timeout=5.0)
            except grpc.RpcError:
                over.wait(0.05)


def half_sent(_: str, port: int, ready: Event, over: Event) -> None:
    """Sixty requests of 34 MiB whose last byte never comes."""
    ready.set()
    connection = RawConnection(port)
    streams = [connection.call("Search") for _ in range(60)]
    connection.send(dict.fromkeys(streams, 34 * 2**20), seconds=20)
    while not over.is_set():
        connection.receive(0.2)
    connection.close()


ATTACKS: dict[str, Attack] = {
    "27,000 scans": images(lambda: hostile_images.many_scans(27_000, 64, 48)),
    "interpreted BMP": images(lambda: hostile_images.skipping_bmp(1_000_000, 100)),
    "16-bit PNGs of 100 megapixels": images(lambda: hostile_images.deep_png(9999, 9999)),
    "10 MiB of segments": images(lambda: hostile_images.many_segments(10 * 2**20)),
    "float TIFFs": images(lambda: hostile_images.float_tiff(9000, 9000)),
    "two million ids": fields,
    "half-sent requests": half_sent,
}


def attack(name: str, address: str, port: int, ready: Event, over: Event) -> None:
    """In a process of its own: what an attacker's interpreter does must not hold up the honest callers."""
    ATTACKS[name](address, port, ready, over)


async def honest(address: str, image: bytes, seconds: float, rate: float) -> list[float]:
    """Seconds that each answer took; every one must come."""
    request = pb.SearchRequest(query=pb.Query(image=image))
    took: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = search_pb2_grpc.SearchServiceStub(channel)

        async def ask(at: float) -> None:
            await stub.Search(request, timeout=30.0)
            took.append(perf_counter() - at)

        begun, calls = perf_counter(), []
        for i in range(int(seconds * rate)):
            await asyncio.sleep(max(0.0, begun + i / rate - perf_counter()))
            calls.append(asyncio.create_task(ask(perf_counter())))
        await asyncio.gather(*calls)
    return took


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=10.0, help="honest queries a second (default: %(default)s)")
    parser.add_argument("--serve", default="", help="further options of `cbir serve`")
    parser.add_argument("--attack", choices=ATTACKS, action="append", help="only these")
    args = parser.parse_args()
    gallery = IndexStore(args.index).open().gallery
    image = gallery.read_bytes(0)
    command = [sys.executable, "-c", "from cbir.client.cli import main; raise SystemExit(main())", "serve"]
    options = [str(args.index), "--port", "0", "--json", "--cache-entries", "0", *shlex.split(args.serve)]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        told = json.loads(server.stdout.readline())
        address, port = told["address"], told["port"]
        asyncio.run(honest(address, image, 3.0, args.rate))
        print("| attack | calm p50 / p99, s | under attack | calm MiB | most | 3 s after |")
        print("| --- " * 6 + "|")
        for name in args.attack or ATTACKS:
            before, calm = held(server.pid).mib, asyncio.run(honest(address, image, args.seconds, args.rate))
            ready, over, most = SPAWN.Event(), SPAWN.Event(), [before]
            attacker = SPAWN.Process(target=attack, args=(name, address, port, ready, over))
            watcher = threading.Thread(target=watch, args=(server.pid, over, most))
            attacker.start()
            ready.wait()
            watcher.start()
            attacked = asyncio.run(honest(address, image, args.seconds, args.rate))
            over.set()
            attacker.join()
            watcher.join()
            until = monotonic() + 3.0
            while monotonic() < until:
                threading.Event().wait(0.1)
            cells = [f"{np.quantile(took, 0.5):.3f} / {np.quantile(took, 0.99):.3f}" for took in (calm, attacked)]
            cells += [f"{size:.0f}" for size in (before, most[0], held(server.pid).mib)]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
        server.terminate()


def watch(pid: int, over: Event, most: list[float]) -> None:
    """Note the most memory that the server had."""
    while not over.wait(0.1):
        most[0] = max(most[0], held(pid).mib)


if __name__ == "__main__":
    main()
