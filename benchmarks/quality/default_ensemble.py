"""The table that chose the default ensemble.

    python benchmarks/quality/default_ensemble.py ZIP --ensemble lite compact

For each ensemble: MAP@10 as indexed (the metric learnt from the gallery's labels), tuned, and without any label, each
by the commands that a user would give, on queries held out of the gallery (every fifth image by number).  ``--speed``
adds `cbir bench serve` on the tuned index, and what an engine takes to start; it wants an idle machine.  ``--most N``
takes N images a class of a large archive.  Embeddings are kept in ``--work``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from retrieval import add_arguments, run_cbir, split, working_folder

from cbir.core.ensemble import load_ensemble

COLUMNS = ("untuned", "tuned", "without labels")


def measure(ensemble: str, gallery: Path, queries: Path, index: Path) -> dict[str, float]:
    """MAP@10 by column; the index ends tuned on its labels."""

    def figure() -> float:
        return run_cbir("eval", str(index), "--queries", str(queries))["map@10"]

    def fitted(*options: str) -> None:
        arguments = ("index", str(gallery), "--out", str(index), "--ensemble", ensemble, "--forget-tuning", *options)
        run_cbir(*arguments)

    fitted("--pseudo-labels")
    run_cbir("tune", str(index), "--without-labels")
    without = figure()
    fitted()
    untuned = figure()
    run_cbir("tune", str(index))
    return {"untuned": untuned, "tuned": figure(), "without labels": without}


def weights_size(ensemble: str) -> float:
    """Megabytes of the members' weights files."""
    return sum(m.weights_file.stat().st_size for m in load_ensemble(ensemble).members if m.weights_file) / 1e6


#: Run in a process of its own: seconds until the engine could answer, and the memory that it holds then.
_START = """
import json, resource, sys, time
begun = time.monotonic()
from cbir.server.engine import Engine
engine = Engine.load(sys.argv[1], device="cpu")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"start s": round(time.monotonic() - begun, 1), "memory GB": round(peak * 1024 / 1e9, 2)}))
"""


def speed(index: Path, queries: Path) -> dict[str, float]:
    """Start, memory, one query at a time and 32 in flight, end to end."""
    command = [sys.executable, "-c", _START, str(index)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    load = ("--kind", "image", "--concurrency", "1,32", "--open", "0.3", "--rounds", "2", "--no-limits")
    report = run_cbir("bench", "serve", str(index), "--images", str(queries), *load)
    closed = {one["concurrency"]: one for one in report["closed"] if one["mode"] == "unary"}
    return {
        **found,
        "one query, p50 ms": round(closed[1]["p50_ms"], 1),
        "queries a second": round(closed[32]["per_second"], 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--ensemble", nargs="+", default=["lite", "compact"], metavar="NAME|FILE")
    parser.add_argument("--most", type=int, default=None, metavar="N", help="images a class (default: all)")
    parser.add_argument("--speed", action="store_true")
    args = parser.parse_args()
    with working_folder(args) as work:
        gallery, queries = split(args.archive, work, args.most)
        rows: dict[str, dict[str, float]] = {}
        for ensemble in args.ensemble:
            begun = time.monotonic()
            index = work / f"index-{Path(ensemble).stem}"
            rows[ensemble] = {"weights MB": round(weights_size(ensemble), 1)}
            rows[ensemble] |= measure(ensemble, gallery, queries, index)
            if args.speed:
                rows[ensemble] |= speed(index, queries)
            print(f"{ensemble}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    names = list(next(iter(rows.values())))
    print("| | " + " | ".join(names) + " |")
    print("| --- |" + " --- |" * len(names))
    for ensemble, row in rows.items():
        cells = (f"{row[name]:.3f}" if name in COLUMNS else f"{row[name]:g}" for name in names)
        print(f"| `{ensemble}` | " + " | ".join(cells) + " |")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
