"""What trust costs a query: decoding in worker processes, TLS, client certificates, tokens.

usage: python benchmarks/cost_of_trust.py INDEX [--rounds N] [--queries N] [--images ZIP] [--json FILE]

A server for each way of serving runs from the beginning to the end, and they are asked in turn, so that a machine whose
pace changes changes it for all of them.  Printed: one image and one embedding query in flight (median and 99th
percentile of all rounds, milliseconds) and 32 in flight (queries a second, median of the rounds), beside the first row,
which decodes in the server's own process and lets everybody in.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import grpc
import numpy as np

from cbir.core.artifacts import IndexStore
from cbir.core.machine import machine_facts
from cbir.v1 import search_pb2 as pb
from cbir.v1 import search_pb2_grpc

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from certificates import Authority

TOKEN = "a-token-of-this-benchmark"

#: `cbir serve`, where images are decoded by the thread that would otherwise wait for a worker process.
WITHOUT_WORKERS = """
from cbir.core.images import decode_image
from cbir.server.transport import lifecycle
class Here:
    lost = 0
    def __init__(self, *arguments, **options): pass
    def decode(self, data, limits, go_on=None): return decode_image(data, limits)
    def start(self): return ()
    def close(self): pass
lifecycle.DecodingPool = Here
"""
START = "from cbir.client.cli import main; raise SystemExit(main())"


@dataclass
class Way:
    """One way of serving, and what was measured of it."""

    name: str
    options: Sequence[str] = ()
    before: str = ""
    credentials: grpc.ChannelCredentials | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    address: str = ""
    took: dict[str, list[float]] = field(default_factory=lambda: {"image": [], "embedding": []})
    rates: dict[str, list[float]] = field(default_factory=lambda: {"image": [], "embedding": []})


@contextmanager
def serving(way: Way, index: Path) -> Iterator[None]:
    """Run its server while the ``with`` block runs."""
    options = ["serve", str(index), "--port", "0", "--json", "--cache-entries", "0", *way.options]
    with subprocess.Popen(
        [sys.executable, "-c", way.before + START, *options],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{way.name}: the server did not start")
        way.address = json.loads(line)["address"]
        try:
            yield
        finally:
            process.terminate()


def ways(folder: Path) -> list[Way]:
    """Each adds one thing to the one before."""
    authority = Authority(folder, "authority")
    server, client = authority.issue("server"), authority.issue("client")
    tokens = folder / "tokens.toml"
    tokens.write_text(f'[[tokens]]\nname = "bench"\ntoken = "{TOKEN}"\nscopes = ["search"]\n')
    tokens.chmod(0o600)
    root = authority.file.read_bytes()
    tls = ["--tls-cert", str(server.certificate), "--tls-key", str(server.key)]
    mutual = [*tls, "--tls-client-ca", str(authority.file)]
    trusted = grpc.ssl_channel_credentials(root)
    known = grpc.ssl_channel_credentials(root, client.key.read_bytes(), client.certificate.read_bytes())
    bearer = (("authorization", f"Bearer {TOKEN}"),)
    return [
        Way("decoded in the process", before=WITHOUT_WORKERS),
        Way("worker processes"),
        Way("and tokens", ["--tokens", str(tokens)], metadata=bearer),
        Way("and TLS", [*tls, "--tokens", str(tokens)], credentials=trusted, metadata=bearer),
        Way("and client certificates", [*mutual, "--tokens", str(tokens)], credentials=known, metadata=bearer),
    ]


async def ask(way: Way, kind: str, requests: Sequence[pb.SearchRequest]) -> None:
    """One in flight, then 32."""
    channel = (
        grpc.aio.insecure_channel(way.address)
        if way.credentials is None
        else grpc.aio.secure_channel(way.address, way.credentials)
    )
    async with channel:
        stub = search_pb2_grpc.SearchServiceStub(channel)
        for request in requests[:20]:
            await stub.Search(request, metadata=way.metadata, timeout=60.0)
        for request in requests:
            begun = perf_counter()
            await stub.Search(request, metadata=way.metadata, timeout=60.0)
            way.took[kind].append(1e3 * (perf_counter() - begun))
        waiting = iter([*requests, *requests])

        async def send() -> None:
            for request in waiting:
                await stub.Search(request, metadata=way.metadata, timeout=60.0)

        begun = perf_counter()
        await asyncio.gather(*(send() for _ in range(32)))
        way.rates[kind].append(2 * len(requests) / (perf_counter() - begun))


def queries(index: Path, count: int) -> dict[str, list[pb.SearchRequest]]:
    """Stored images of the index, spread over it, and random embeddings."""
    version = IndexStore(index).open()
    rng = np.random.default_rng(0)
    rows = np.linspace(0, len(version.gallery) - 1, count).astype(int)
    images = [pb.SearchRequest(query=pb.Query(image=version.gallery.read_bytes(int(row)))) for row in rows]
    sizes = {name: len(version.projection(name).mean) for name in version.manifest.members}
    embeddings = []
    for _ in range(count):
        request = pb.SearchRequest()
        for name, size in sizes.items():
            request.query.embedding.vectors[name].values.extend(rng.normal(size=size).tolist())
        embeddings.append(request)
    return {"image": images, "embedding": embeddings}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--queries", type=int, default=100, help="of each kind, way and round (default: %(default)s)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    asked = queries(args.index, args.queries)
    with tempfile.TemporaryDirectory(prefix="cbir-trust-") as folder, ExitStack() as servers:
        measured = ways(Path(folder))
        for way in measured:
            servers.enter_context(serving(way, args.index))
        for turn in range(args.rounds):
            print(f"round {turn + 1} of {args.rounds}", file=sys.stderr, flush=True)
            # Every other round backwards, so that none always comes after the same one.
            for way in measured if turn % 2 == 0 else measured[::-1]:
                for kind, requests in asked.items():
                    asyncio.run(ask(way, kind, requests))
    facts = machine_facts()
    print(f"{facts['cpu']}, {facts['cores']} cores, {', '.join(facts['capabilities'])}\n")
    heads = [f"{kind}: {what}" for kind in asked for what in ("p50 ms", "p99 ms", "32 in flight, a second")]
    print("| | " + " | ".join(heads) + " |\n" + "| --- " * (len(heads) + 1) + "|")
    for way in measured:
        cells = []
        for kind in asked:
            p50, p99 = np.quantile(way.took[kind], [0.5, 0.99])
            cells += [f"{p50:.2f}", f"{p99:.2f}", f"{np.median(way.rates[kind]):.0f}"]
        print(f"| {way.name} | " + " | ".join(cells) + " |")
    if args.json:
        args.json.write_text(json.dumps({w.name: {"took_ms": w.took, "rates": w.rates} for w in measured}) + "\n")


if __name__ == "__main__":
    main()
