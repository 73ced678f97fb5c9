"""Speed on this machine: ``make bench``; results and pictures below ``bench-out``.

Each step is a command of its own, printed before it runs, so that any of them can be repeated alone:

- ``index``: ``cbir index`` of the sample images;
- ``indexing``: ``cbir bench index``, for every ``--ensemble``: embedding against decoding and forward passes alone;
- ``gallery``: ``cbir bench search``: kinds of index on 100,000 drawn images;
- ``serve``: ``cbir bench serve`` on them, for every ``--ensemble``, the first with reloads, cancellation, cache and
  processes;
- ``embedding``: ``cbir bench serve`` by embedding on 20,000 drawn vectors of 640 components;
- ``vit``: ``cbir bench serve`` on one ViT-B/32 with random weights, which takes as long as a trained one;
- ``search``: ``search.py``, exact search compared with memory bandwidth;
- ``loop``: ``user_loop.py``, compared with the loop that users write by hand; also in int8 if nncf is installed.

At the end all ratios are printed, each with its target and, where parts of it were measured alone, the best that they
allow on this machine.

``--quick`` only checks in a few minutes that everything works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbir.indexer.samples import write_split

STEPS = ("index", "indexing", "gallery", "serve", "embedding", "vit", "search", "loop")
HERE = Path(__file__).parent
#: Seconds that a step waits at most for the load of the one before to go, and what may be left of it on each core.
_LONGEST_REST, _RESTED = 120.0, 0.2


@dataclass(frozen=True)
class Step:
    """A command, and the file with its results; None if it prints them to stdout."""

    name: str
    command: Sequence[str]
    results: Path | None = None


def cbir(*arguments: object) -> list[str]:
    """A cbir command of this environment."""
    return [sys.executable, "-m", "cbir.client.cli", *map(str, arguments)]


def script(name: str, *arguments: object) -> list[str]:
    """The command that runs another script of this folder."""
    return [sys.executable, str(HERE / name), *map(str, arguments)]


def steps(args: argparse.Namespace) -> Iterator[Step]:
    """The steps that were asked for, in order."""
    samples, quick = args.out / "samples", ["--quick"] if args.quick else []
    for place, ensemble in enumerate(args.ensemble):
        name = Path(ensemble).stem
        index, out = args.out / f"index-{name}", args.out / f"serve-{name}"
        if "index" in args.only:
            # Without this, embeddings of an earlier run would be reused.
            shutil.rmtree(index, ignore_errors=True)
            yield Step(
                f"index {name}", cbir("index", samples / "gallery", "--out", index, "--ensemble", ensemble, "--json")
            )
        if "indexing" in args.only:
            out = args.out / f"indexing-{name}"
            yield Step(
                f"indexing {name}", cbir("bench", "index", "--ensemble", ensemble, "--out", out, *quick),
                out / "results.json",
            )  # fmt: skip
        if "serve" in args.only:
            more = ["--reloads", 2 if args.quick else 20, "--cancel", "--cached", "--processes", 2]
            command = cbir(
                "bench", "serve", index, "--images", samples / "queries", "--out", out, *(more if place == 0 else ()),
                *quick,
            )  # fmt: skip
            yield Step(f"serve {name}", command, out / "results.json")
    if "gallery" in args.only:
        out = args.out / "gallery"
        yield Step("gallery", cbir("bench", "search", "--out", out, *quick), out / "results.json")
    if "embedding" in args.only:
        index, out = args.out / "index-embedding", args.out / "serve-embedding"
        shutil.rmtree(index, ignore_errors=True)
        yield Step("vectors", script("synthetic_gallery.py", index, "--images", 2_000 if args.quick else 20_000))
        command = cbir(
            "bench", "serve", index, "--kind", "embedding", "--embeddings", index / "queries.npz", "--out", out, *quick
        )
        yield Step("serve by embedding", command, out / "results.json")
    # These have no quick form.
    if "vit" in args.only and not args.quick:
        folder, out = args.out / "vit", args.out / "serve-vit"
        yield Step("vit", script("random_index.py", folder, "--set", "vit", "--images", 2000))
        command = cbir(
            "bench", "serve", folder / "index-vit-2000-none", "--kind", "image", "--images", samples / "queries",
            "--open", 0.7, "--out", out,
        )  # fmt: skip
        yield Step("serve vit", command, out / "results.json")
    if "search" in args.only and not args.quick:
        out = args.out / "search.json"
        yield Step("search", script("search.py", "--out", out), out)
    if "loop" in args.only and not args.quick:
        out = args.out / "user-loop"
        yield Step("loop", script("user_loop.py", "--out", out), out / "results.json")
        if importlib.util.find_spec("nncf"):
            yield Step("loop int8", script("user_loop.py", "--out", out, "--precision", "int8"), out / "results.json")


def main() -> int:
    """Run the steps; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="default: %(default)s")
    parser.add_argument("--ensemble", nargs="+", default=["compact"], help="names or files (default: compact)")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, help="default: all")
    parser.add_argument("--quick", action="store_true", help="small and short: shows that it works")
    args = parser.parse_args()
    if not (args.out / "samples/queries").exists():
        write_split(args.out / "samples")
    results: dict[str, object] = {}
    failed = []
    for step in steps(args):
        if not args.quick:
            rest()
        say(f"$ {shlex.join(step.command)}")
        begun = time.perf_counter()
        done = subprocess.run(step.command, stdout=subprocess.PIPE, text=True)
        say(f"{step.name}: {time.perf_counter() - begun:.0f} s\n")
        if done.returncode:
            failed.append(step.name)
            continue
        told = step.results.read_text() if step.results and step.results.exists() else done.stdout
        try:
            results[step.name] = json.loads(told)
        except ValueError:
            results[step.name] = told.splitlines()
            sys.stdout.write(told)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    table = markdown(results)
    (args.out / "speed.md").write_text(table)
    print(table)
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def rest() -> None:
    """Wait until the load of the step before has gone, which would be taken for other programs; two minutes at most."""
    end = time.monotonic() + _LONGEST_REST
    while (load := os.getloadavg()[0]) > _RESTED * (os.cpu_count() or 1) and time.monotonic() < end:
        say(f"the load is {load:.2f}: waiting for the machine to rest")
        time.sleep(15)


def markdown(results: Mapping[str, Any]) -> str:
    """The ratios as tables for ``docs/benchmarks.md``."""
    lines: list[str] = []
    for name, told in results.items():
        if not isinstance(told, dict):
            continue
        if "ratios" in told:
            machine = told["machine"]
            lines += [
                f"`{name}`, {machine['cpu']}, {machine['cores']} cores ({' '.join(machine['capabilities'])}), "
                f"load {machine['load_before']} before:",
                "",
                *(f"Not to be believed: {fault}.\n" for fault in told.get("faults", [])),
                "| | measured | aim | limit here | made of |",
                "| --- | --- | --- | --- | --- |",
                *(
                    f"| {one['name']} | {bold(one)} | {one['aim']} | {number(one.get('limit'))} | {one['how']} |"
                    for one in told["ratios"]
                ),
                "",
            ]
        elif name.startswith("index "):
            rate = told["images"] / told["seconds"]
            lines += [f"`{name}`: {told['images']} images, {rate:.1f} a second, loading the models included", ""]
    return "\n".join(lines)


def bold(ratio: Mapping[str, Any]) -> str:
    """The value of a ratio, in bold if it misses its target."""
    return f"{ratio['value']:.3g}" if ratio["reached"] else f"**{ratio['value']:.3g}**"


def number(value: float | None) -> str:
    """A figure, or nothing where there is none."""
    return "" if value is None else f"{value:.3g}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
