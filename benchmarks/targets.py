"""The targets of serving: what ``make bench`` measured, what is aimed at, and what bounds it on this machine.

``python benchmarks/targets.py [bench-out]`` prints the table again from the results that are there.  Aims are those for
two cores that the load generator shares with the server.  Where one is missed, the last column has what the same run
measured of its parts: bare stages, what each part of the server takes of the cores, or a queue simulated with measured
times.  A row whose figures are missing is left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Target", "queue_ratio", "table", "targets"]

Document = Mapping[str, Any]

#: Queries of the simulated queue, and of the first of them those that fill it.
_SIMULATED, _FILLING = 40_000, 2_000


@dataclass(frozen=True)
class Target:
    """One figure and what it is held against.

    Attributes:
        value: The figure; ``unit`` follows it.
        aim: The target.
        most: Whether it is an upper bound; otherwise a lower one.
        bound: What limits it, in words, from the same run.
    """

    name: str
    value: float
    aim: float
    most: bool
    bound: str = ""
    unit: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the figure keeps to the target."""
        return self.value <= self.aim if self.most else self.value >= self.aim

    def line(self) -> str:
        """A line of the table, the figure in bold where it misses the target."""
        figure = f"{self.value:.3g}{self.unit}"
        aim = f"{'at most' if self.most else 'at least'} {self.aim:g}{self.unit}"
        return f"| {self.name} | {figure if self.is_met else f'**{figure}**'} | {aim} | {self.bound} |"


def targets(results: Mapping[str, Document]) -> list[Target]:
    """All rows that the results allow.

    Args:
        results: Documents by name of the step of ``make bench``.
    """
    rows: list[Target] = []
    for name, document in results.items():
        if name.startswith("serve ") and "closed" in document:
            rows += _served(name.removeprefix("serve ").removeprefix("by "), document)
    for kind, aims in (("clustered", (8.0, 3.0)), ("random", (45.0, 6.0))):
        rows += _searched(kind, results.get("search", {}).get(kind), aims)
    for name, aims in (("loop", (5.7, 10.7)), ("loop int8", (7.5, 14.0))):
        rows += _looped(name, results.get(name), aims)
    return rows


def table(rows: list[Target]) -> str:
    """The rows as Markdown."""
    return "\n".join(["| | measured | aim | made of |", "| --- | --- | --- | --- |", *(row.line() for row in rows), ""])


def _served(name: str, document: Document) -> Iterator[Target]:
    closed = {(one["kind"], one["concurrency"]): one for one in document["closed"] if one["mode"] == "unary"}
    limits = document.get("limits") or {}
    bare, echo = limits.get("bare"), {one["concurrency"]: one for one in limits.get("echo", [])}
    one, many = closed.get(("image", 1)), closed.get(("image", 32))
    if bare and one:
        alone = bare["whole"]["p50_ms"]
        yield Target(
            f"{name}: image alone, over bare", one["p50_ms"] - alone, 1.0, True,
            f"{one['p50_ms']:.1f} ms, bare decode to vote {alone:.1f}; an empty call {_empty(echo)}", " ms",
        )  # fmt: skip
    if bare and many:
        decode, forward, search = (
            bare[part]["per_second"] for part in ("decode_workers", "forward_batch", "search_batch")
        )
        slower, in_turn = min(decode, forward), 1 / (1 / decode + 1 / forward + 1 / search)
        yield Target(
            f"{name}: images, 32 in flight / slower of decode and forward", many["per_second"] / slower, 0.9, False,
            f"{many['per_second']:.0f} a second; decode {decode:.0f}, forward {forward:.0f}, each on all cores: in "
            f"turn they allow {in_turn / slower:.2f}",
        )  # fmt: skip
        yield Target(
            f"{name}: the same / decode, forward and search in turn", many["per_second"] / in_turn, 0.95, False,
            f"{in_turn:.0f} a second in turn",
        )  # fmt: skip
    for flood in document.get("open", []):
        yield from _opened(name, flood, closed, bare)
    several = max((count for kind, count in closed if kind == "embedding"), default=0)
    if not several:
        return
    rate = closed["embedding", several]["per_second"]
    if several in echo:
        empty = echo[several]["per_second"]
        yield Target(
            f"{name}: embeddings, {several} in flight / empty echo", rate / empty, 0.7, False,
            f"{rate:.0f} and {empty:.0f} a second; {_cores(document, 'embedding', 'at capacity')}",
        )  # fmt: skip
    if bare:
        yield Target(
            f"{name}: bare search in batches / embeddings served",
            bare["search_batch"]["per_second"] / rate, 1.0, False,
            f"{bare['search_batch']['per_second']:.0f} and {rate:.0f} a second",
        )  # fmt: skip
    if ("embedding", 1) in closed:
        yield Target(
            f"{name}: embedding alone, p50", closed["embedding", 1]["p50_ms"], 1.0, True,
            f"an empty call {_empty(echo)}"
            + (f", bare search {bare['search']['p50_ms']:.2f} ms" if bare else ""), " ms",
        )  # fmt: skip


def _opened(name: str, flood: Document, closed: Mapping[Any, Document], bare: Document | None) -> Iterator[Target]:
    kind, fraction = flood["kind"], flood["fraction"]
    what = f"{name}: {kind}s at {fraction:g} of the capacity"
    one = closed.get((kind, 1))
    if fraction < 1 and one and flood["p99_ms"] is not None:
        bound = f"{flood['p99_ms']:.0f} and {one['p50_ms']:.1f} ms"
        if bare and kind == "image" and flood["arrivals"] == "poisson":
            single, batch = 1 / bare["forward"]["per_second"], 1 / bare["forward_batch"]["per_second"]
            ratio = queue_ratio(single, batch, 32, fraction, np.random.default_rng(0))
            bound += f"; a queue that does nothing else than these forward passes: {ratio:.1f}"
        yield Target(f"{what}, p99 / p50 alone", flood["p99_ms"] / one["p50_ms"], 5.0, True, bound)
    if fraction > 1:
        capacity = (flood["capacity_per_second"] + flood["after_per_second"]) / 2
        share = _engine_share(flood)
        yield Target(
            f"{what}: goodput / capacity", flood["goodput_per_second"] / capacity, 0.8 if kind == "embedding" else 0.9,
            False, f"{_taken(flood, 'flooded')}" + (f"; the engine has {share:.2f} of its cores left" if share else ""),
        )  # fmt: skip
        if flood["refused"]["count"]:
            refused = flood["refused"]
            yield Target(
                f"{what}: refusals p99", refused["p99_ms"], 50.0, True,
                f"p50 {refused['p50_ms']:.1f} ms, {refused['count']} refused", " ms",
            )  # fmt: skip


def _searched(kind: str, found: Document | None, aims: tuple[float, float]) -> Iterator[Target]:
    if found is None:
        return
    floor = f"{found['kernel']}; reading the float16 rows once takes {1e3 * found['floor']:.1f} ms"
    if "FAISS Flat" in found and isinstance(found["FAISS Flat"], Mapping):
        flat = found["FAISS Flat"]
        floor += f", FAISS Flat {1e3 * flat['one']:.0f} and {1e3 * flat['batch, each']:.0f} ms"
    for part, aim, name in zip(("one", "batch, each"), aims, ("one query", "32, each"), strict=True):
        yield Target(f"exact search, {kind}: {name}", 1e3 * found[part], aim, True, floor, " ms")
    yield Target(f"exact search, {kind}: recall@10", found["recall@10"], 1.0, False)


def _looped(name: str, found: Document | None, aims: tuple[float, float]) -> Iterator[Target]:
    if found is None:
        return
    for ratio, aim in zip(found["ratios"], aims, strict=True):
        yield Target(f"users' {name}, {ratio['name']}", ratio["value"], aim, False, ratio["how"])


def _empty(echo: Mapping[int, Document]) -> str:
    return f"{echo[1]['p50_ms']:.2f} ms" if 1 in echo else "was not measured"


def _cores(document: Document, kind: str, when: str) -> str:
    return next((_taken(flood, when) for flood in document.get("open", []) if flood["kind"] == kind), "")


def _taken(flood: Document, when: str) -> str:
    shares = flood.get("cores", {}).get(when) or {}
    return "cores: " + ", ".join(f"{part} {share:.2f}" for part, share in shares.items()) if shares else ""


def _engine_share(flood: Document) -> float | None:
    calm, flooded = (flood.get("cores", {}).get(when) or {} for when in ("at capacity", "flooded"))
    part = "engine and models"
    return flooded[part] / calm[part] if calm.get(part) and part in flooded else None


def queue_ratio(one: float, batch: float, most: int, load: float, random: np.random.Generator) -> float:
    """The p99 of waiting and service over the service of a query alone, of a server that takes all that waits.

    Args:
        one: Seconds that a query alone takes.
        batch: Seconds a query in a batch of ``most``; what is between follows a line.
        load: Random arrivals, as a fraction of what full batches do.
    """
    each = max(0.0, (batch * most - one) / (most - 1))
    arrivals: NDArray[np.float64] = random.exponential(batch / load, _SIMULATED).cumsum()
    took = np.empty(_SIMULATED)
    now, done = 0.0, 0
    while done < _SIMULATED:
        now = max(now, arrivals[done])
        count = min(most, int(np.searchsorted(arrivals, now, side="right")) - done)
        now += one + each * (count - 1)
        took[done : done + count] = now - arrivals[done : done + count]
        done += count
    return float(np.quantile(took[_FILLING:], 0.99) / one)


def main() -> None:
    """Print the table of an earlier run."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "bench-out")
    try:
        results = json.loads((out / "results.json").read_text())
    except OSError as error:
        raise SystemExit(f"{out / 'results.json'} cannot be read ({error.strerror}): run make bench") from error
    print(table(targets({name: told for name, told in results.items() if isinstance(told, dict)})))


if __name__ == "__main__":
    main()
