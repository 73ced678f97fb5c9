"""Speed on this machine, with the sample images: ``make bench``.

Prints a table and writes ``bench-out/results.json``: indexing rate, and latency and rate of queries over loopback,
one at a time and streamed.  The client runs on the same machine as the server and takes its share of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cbir.client import Client, SearchResult
from cbir.indexer.samples import write_split


def main() -> int:
    """Index, serve, query, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--ensemble", default="compact")
    parser.add_argument("--queries", type=int, default=200)
    args = parser.parse_args()
    samples = args.out / "samples"
    if not (samples / "queries").exists():
        write_split(samples)
    index = args.out / "index"
    results: dict[str, Any] = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
        },
        "python": platform.python_version(),
    }
    # Else the embeddings of the run before would be reused.
    shutil.rmtree(index, ignore_errors=True)
    built = cbir("index", str(samples / "gallery"), "--out", str(index), "--ensemble", args.ensemble, "--json")
    results["index"] = {
        "images": built["images"],
        "seconds": built["seconds"],
        "images per second": built["images"] / built["seconds"],
    }
    server = subprocess.Popen(command("serve", str(index), "--port", "0", "--json"), stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = json.loads(server.stdout.readline())["address"]
        with Client(address, timeout=60) as client:
            results |= query(client, samples / "queries", args.queries)
    finally:
        server.terminate()
        server.wait()
    (args.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    for name, figures in results.items():
        if isinstance(figures, dict):
            print(
                f"{name:28}",
                "  ".join(f"{key} {value:.4g}" for key, value in figures.items() if not isinstance(value, str)),
            )
    return 0


def query(client: Client, folder: Path, count: int) -> dict[str, Any]:
    """Measure queries by image and by id, one at a time, and images streamed."""
    files = sorted(folder.glob("*/*.jpg"))
    images = [files[number % len(files)].read_bytes() for number in range(count)]
    info = client.index_info()
    ids = [hit.image_id for hit in client.search(images[0], limit=10).hits]
    for image in images[:10]:
        client.search(image)
    start = time.perf_counter()
    answers = sum(isinstance(answer, SearchResult) for _, answer in client.search_stream(enumerate(images)))
    streamed = time.perf_counter() - start
    return {
        "server": {"images": info.images, "members": len(info.members)},
        "image, one in flight": latency(lambda number: client.search(images[number]), count),
        "id, one in flight": latency(lambda number: client.search(image_id=ids[number % len(ids)]), count),
        "images, streamed": {"answered": answers, "per second": count / streamed},
    }


def latency(call: Callable[[int], object], count: int) -> dict[str, float]:
    """Time calls one after the other; milliseconds."""
    times = []
    for number in range(count):
        start = time.perf_counter()
        call(number)
        times.append(1000 * (time.perf_counter() - start))
    cuts = statistics.quantiles(times, n=100)
    return {"p50 ms": cuts[49], "p95 ms": cuts[94], "p99 ms": cuts[98], "per second": 1000 * count / sum(times)}


def command(*arguments: str) -> list[str]:
    """Return a cbir command of this environment."""
    return [sys.executable, "-m", "cbir.client.cli", *arguments]


def cbir(*arguments: str) -> Any:
    """Run a command; return its JSON document."""
    return json.loads(subprocess.run(command(*arguments), stdout=subprocess.PIPE, check=True).stdout)


if __name__ == "__main__":
    sys.exit(main())
