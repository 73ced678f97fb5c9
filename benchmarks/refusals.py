"""What a refusal costs, and so what a flood leaves: `python benchmarks/refusals.py [--rates 1000,3000,8000]`.

Empty servers that do one thing with each call, flooded by the load generator of `cbir bench serve` on the same machine:
``answered``: a request is read and bytes are sent back; ``refused``: the handler ends the call with a status and reads
nothing, the least that Python can do; ``turned away``: nothing is accepted, and gRPC ends the calls below Python.

A call's price is the processor time of the server's process and of the generator's, in milliseconds of one core; work
of the kernel that neither is charged for comes on top.  With C answers a second at full load, arrivals at f times that
and nothing but refusals below Python, (f - 1) * C * price of the cores are gone before the first answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from multiprocessing.connection import Connection

import grpc
import numpy as np

from cbir.core.machine import machine_facts
from cbir.server.bench.load.arrivals import poisson
from cbir.server.bench.load.frame_generator import FrameGenerator
from cbir.server.bench.load.generator import SEARCH
from cbir.server.bench.load.payloads import Payloads
from cbir.server.bench.server_process import cpu_seconds
from cbir.server.transport.acceptance import Acceptance

WAYS = ("answered", "refused", "turned away")
#: Bytes of a query by embedding of 640 components, and of its answer.
QUERY, ANSWER = 2600, 1500


class _Closed(Acceptance):
    """Accepts nothing beyond the first call."""

    async def _wait(self) -> None:
        await self._released.wait()


async def serve(pipe: Connection, way: str) -> None:
    """Serve until the process is killed."""

    async def answer(requests: object, context: grpc.aio.ServicerContext) -> bytes:
        return bytes(await context.read())[:ANSWER]

    async def refuse(requests: object, context: grpc.aio.ServicerContext) -> bytes:
        context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
        context.set_details("the server is busy")
        return b""

    pending = 1 if way == WAYS[2] else 2**20
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.server.max_pending_requests", pending),
            ("grpc.server.max_pending_requests_hard_limit", 2 * pending),
        ]
    )
    _, service, method = SEARCH.split("/")
    handlers = {method: grpc.stream_unary_rpc_method_handler(answer if way == WAYS[0] else refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await (_Closed() if way == WAYS[2] else Acceptance()).start(server)
    pipe.send(port)
    await server.wait_for_termination()


def run_server(pipe: Connection, way: str) -> None:
    """In a process of its own."""
    import uvloop

    uvloop.run(serve(pipe, way))


async def price(way: str, rate: float, channels: int, seconds: float) -> dict[str, object]:
    """What a call takes that arrives at a rate on so many connections."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=run_server, args=(theirs, way), daemon=True)
    process.start()
    try:
        port = await asyncio.to_thread(ours.recv)
        assert process.pid is not None
        async with FrameGenerator([f"127.0.0.1:{port}"], channels, timeout=1.0) as generator:
            before, begun = cpu_seconds(process.pid), time.process_time()
            load = await generator.scheduled(Payloads("id", [bytes(QUERY)]), poisson(rate, seconds, seed=0))
            spent, own = cpu_seconds(process.pid) - before, time.process_time() - begun
    finally:
        process.kill()
        process.join()
    count = load.requests
    return {
        "way": way, "rate": rate, "channels": channels, "server_ms": 1e3 * spent / count,
        "generator_ms": 1e3 * own / count, "p99_ms": 1e3 * float(np.quantile(load.outcomes.latencies, 0.99)),
        "late": load.outcomes.errors().get("DEADLINE_EXCEEDED", 0) / count,
    }  # fmt: skip


async def main() -> None:
    """Print a table, or one document with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rates", default="1000,3000,8000", metavar="N,N,...", help="calls a second")
    parser.add_argument("--channels", default="1,64", metavar="N,N", help="connections")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [
        await price(way, rate, channels, args.seconds)
        for rate in map(float, args.rates.split(","))
        for channels in map(int, args.channels.split(","))
        for way in WAYS
    ]
    machine = machine_facts()
    if args.json:
        print(json.dumps({"machine": machine, "prices": rows}))
        return
    print(f"{machine['cpu']}, {machine['cores']} cores ({' '.join(machine['capabilities'])})\n")
    print("| calls a second | connections | what becomes of them | server, ms | generator, ms | p99, ms | too late |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row['rate']:,.0f} | {row['channels']} | {row['way']} | {row['server_ms']:.3f} "
            f"| {row['generator_ms']:.3f} | {row['p99_ms']:.1f} | {row['late']:.0%} |"
        )


if __name__ == "__main__":
    asyncio.run(main())
