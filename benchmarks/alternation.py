"""Several running servers, asked in turn in short windows: which is faster, on a host whose pace changes by the minute.

    cbir serve index --port 50051 --cache-entries 0          # one release, or one setting
    cbir serve index --port 50061 --cache-entries 0          # another
    python benchmarks/alternation.py 127.0.0.1:50051 127.0.0.1:50061 --embeddings queries.npz

Every round asks all servers, in an order that is turned round each time.  Rates are compared within their round; what
is told is the median of these ratios, and between which values half of them lie.  Servers that are not asked should
have nothing to do.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import uvloop

from cbir.server.bench.load import payloads
from cbir.server.bench.load.frame_generator import FrameGenerator
from cbir.server.bench.load.generator import Window
from cbir.server.bench.load.query_images import read_images
from cbir.server.bench.sweep import Level, level_figures

#: Seconds of each window that are not counted.
_WARM = 0.3
_FIGURES = ("per_second", "p50_ms", "p99_ms")


async def measure(
    servers: Sequence[str], asked: payloads.Payloads, levels: Sequence[int], rounds: int, seconds: float
) -> dict[int, dict[str, list[dict[str, float]]]]:
    """Figures by queries in flight and server, one for each round but the first, which warms up."""
    found: dict[int, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for number in range(rounds + 1):
        for server in servers if number % 2 else servers[::-1]:
            for level in levels:
                async with FrameGenerator([server], timeout=30) as generator:
                    load = await generator.closed(asked, level, Window(seconds, _WARM))
                figures = level_figures(Level(asked.kind, level), [load])
                if number:
                    found[level][server].append(
                        {key: float(figures[key]) for key in ("per_second", "p50_ms", "p99_ms")}
                    )
    return found


def compared(rows: dict[str, list[dict[str, float]]]) -> list[dict[str, float | str]]:
    """Medians of each server, and of its rate as a multiple of the first one's in the same round, with quartiles."""
    first = np.array([row["per_second"] for row in next(iter(rows.values()))])
    table: list[dict[str, float | str]] = []
    for server, mine in rows.items():
        ratios = np.array([row["per_second"] for row in mine]) / first
        low, middle, high = (float(value) for value in np.quantile(ratios, (0.25, 0.5, 0.75)))
        medians = {key: float(np.median([row[key] for row in mine])) for key in mine[0]}
        table.append({"server": server, **medians, "ratio": middle, "ratio_low": low, "ratio_high": high})
    return table


def main() -> None:
    """Ask the servers and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "servers", nargs="+", metavar="HOST:PORT", help="the first is what the others are compared with"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--embeddings", type=Path, help=".npz with (K, dim) vectors by member")
    source.add_argument("--images", type=Path, help="folder or .zip of query images")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 32], help="queries in flight (1 32)")
    parser.add_argument("--rounds", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.5, help="of a window (%(default)s)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.embeddings:
        with np.load(args.embeddings) as vectors:
            asked = payloads.of_vectors({name: vectors[name] for name in vectors.files})
    else:
        asked = payloads.images(read_images(args.images, 256))
    found = uvloop.run(measure(args.servers, asked, args.concurrency, args.rounds, args.seconds))
    tables = {level: compared(rows) for level, rows in found.items()}
    if args.json:
        print(json.dumps(tables, indent=2))
        return
    print("| in flight | server | a second | p50, p99 ms | times the first | half of the rounds between |")
    print("| --- | --- | --- | --- | --- | --- |")
    for level, rows in tables.items():
        for row in rows:
            print(
                f"| {level} | {row['server']} | {row['per_second']:.0f} | {row['p50_ms']:.2f}, {row['p99_ms']:.1f} "
                f"| {row['ratio']:.2f} | {row['ratio_low']:.2f} and {row['ratio_high']:.2f} |"
            )


if __name__ == "__main__":
    main()
