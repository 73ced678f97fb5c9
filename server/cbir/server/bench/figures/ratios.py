"""How close the server comes to its limits: ratios of figures of the same run, each with its target.

Where parts were measured alone in the same run, a ratio also has the best that they allow on that machine
(:mod:`.bounds`): a target beyond it cannot be met there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cbir.server.bench.figures import bounds

__all__ = ["Ratio", "ratios"]

#: What a flood may leave of the capacity, by kind: a refusal costs a fraction of an image, and half of an embedding.
_GOODPUT = {"image": 0.9, "embedding": 0.8}


@dataclass(frozen=True)
class Ratio:
    """One ratio (or difference, or count) and its target.

    Attributes:
        aim: The target, for two cores that the load generator shares with the server.
        most: Whether the target is an upper bound; otherwise it is a lower one.
        how: The figures that it was computed from, as text.
        limit: The best that the parts allow, measured alone in the same run; None: not known.
    """

    name: str
    value: float
    aim: float
    most: bool
    how: str
    limit: float | None = None

    @property
    def reached(self) -> bool:
        """Whether the target is met."""
        return bool(self.value <= self.aim if self.most else self.value >= self.aim)

    def to_json(self) -> dict[str, Any]:
        """The ratio as an element of the document of ``cbir bench serve --json``."""
        return {
            "name": self.name,
            "value": float(self.value),
            "aim": f"at {'most' if self.most else 'least'} {self.aim:g}",
            "reached": self.reached,
            "how": self.how,
            "limit": None if self.limit is None else float(self.limit),
        }


def ratios(document: Mapping[str, Any]) -> list[Ratio]:
    """All ratios that the measured figures allow.

    Args:
        document: The result of :func:`cbir.server.bench.measurement.measure`, without its ratios.
    """
    return [
        *_images(document), *_embeddings(document), *_flooded(document), *_reloaded(document), *_cancelled(document),
    ]  # fmt: skip


def _images(document: Mapping[str, Any]) -> Iterator[Ratio]:
    one, many = _closed(document, "image", 1), _closed(document, "image", 32)
    bare = _bare(document)
    empty, call = _echo(document, "image", 1), _echo(document, "image", None)
    if one and bare:
        whole = bare["whole"]["p50_ms"]
        apart = max(0.0, bare["decode_apart"]["p50_ms"] - bare["decode"]["p50_ms"])
        yield Ratio(
            "image, 1 in flight: p50 minus bare, ms", one["p50_ms"] - whole, 1.0, True,
            f"{one['p50_ms']:.2f} ms end to end, {whole:.2f} ms bare decode to vote; limit: an empty call, and "
            f"{apart:.2f} ms for decoding in a process of its own",
            empty["p50_ms"] + apart if empty else None,
        )  # fmt: skip
    if many and bare:
        decode, forward, search = (
            bare[part]["per_second"] for part in ("decode_workers", "forward_batch", "search_batch")
        )
        slower, stages = min(decode, forward), bounds.in_turn((decode, forward, search))
        most = bounds.with_an_empty_call(stages, call, document["machine"]["cores"]) if call else stages
        yield Ratio(
            "image, 32 in flight: rate / bare batched", many["per_second"] / slower, 0.9, False,
            f"{many['per_second']:.1f} a second; bare decode {decode:.1f}, bare forward {forward:.1f}, each on all "
            "cores; limit: both, search and an empty call",
            most / slower,
        )  # fmt: skip
        yield Ratio(
            "image, 32 in flight: rate / bare stages one after the other", many["per_second"] / stages, 0.95, False,
            f"{many['per_second']:.1f} a second; decode, forward and search in turn on all cores: {stages:.1f}; limit: "
            "these and an empty call",
            most / stages,
        )  # fmt: skip
    if many:
        yield Ratio(
            "image, 32 in flight: p99 / p50", many["p99_ms"] / many["p50_ms"], 2.5, True,
            f"{many['p99_ms']:.1f} ms, {many['p50_ms']:.1f} ms",
        )  # fmt: skip


def _embeddings(document: Mapping[str, Any]) -> Iterator[Ratio]:
    stream = _closed(document, "embedding", None, "stream")
    if stream is None:
        return
    unary = _closed(document, "embedding", stream["concurrency"])
    echo, empty = (_echo(document, "embedding", count) for count in (stream["concurrency"], 1))
    one = _closed(document, "embedding", 1)
    bare = _bare(document)
    if unary and echo:
        limit, more = None, ""
        if bare and "search_batch" in bare:
            cores, core_ms = document["machine"]["cores"], bare["search_batch"]["core_ms_each"]
            limit = bounds.with_an_empty_call(1000 * cores / core_ms, echo, cores) / echo["per_second"]
            more = f"; limit: an empty call and {core_ms:.2f} ms of search, on all cores"
        yield Ratio(
            f"embedding, {stream['concurrency']} in flight: rate / empty echo",
            unary["per_second"] / echo["per_second"], 0.7, False,
            f"{unary['per_second']:.0f} and {echo['per_second']:.0f} a second{more}", limit,
        )  # fmt: skip
    if unary and bare and "search_batch" in bare:
        rate = bare["search_batch"]["per_second"]
        yield Ratio(
            "embedding: bare search in batches / rate", rate / unary["per_second"], 1.0, False,
            f"{rate:.0f} and {unary['per_second']:.0f} a second",
        )  # fmt: skip
    if one:
        limit, more = None, ""
        if empty and bare and "search" in bare:
            search = bare["search"]["p50_ms"]
            limit = empty["p50_ms"] + search
            more = f"; limit: an empty call, {empty['p50_ms']:.2f} ms, and bare search, {search:.2f} ms"
        yield Ratio(
            "embedding, 1 in flight: p50, ms", one["p50_ms"], 1.0, True, f"p99 {one['p99_ms']:.2f} ms{more}", limit,
        )  # fmt: skip
    if unary:
        yield Ratio(
            f"embedding, {stream['concurrency']} in flight: stream / unary, per item",
            stream["per_second"] / unary["per_second"], 1.0, False,
            f"{stream['per_second']:.0f} and {unary['per_second']:.0f} a second",
        )  # fmt: skip


def _flooded(document: Mapping[str, Any]) -> Iterator[Ratio]:
    for flood in document.get("open", []):
        kind, one = flood["kind"], _closed(document, flood["kind"], 1)
        rate = f"{kind}, open loop at {flood['fraction']:g} of capacity"
        if flood["fraction"] < 1 and one and flood["p99_ms"] is not None:
            limit = _queueing(document, flood)
            yield Ratio(
                f"{rate}: p99 / p50 of 1 in flight", flood["p99_ms"] / one["p50_ms"], 5.0, True,
                f"{flood['p99_ms']:.1f} ms, {one['p50_ms']:.1f} ms"
                + ("" if limit is None else "; limit: a queue that does nothing else than these forward passes"),
                limit,
            )  # fmt: skip
        if flood["fraction"] > 1:
            before, after = flood["capacity_per_second"], flood["after_per_second"]
            # The host's pace may have changed: what is between is compared with what was on both sides.
            capacity = (before + after) / 2
            left = bounds.cores_left(flood)
            yield Ratio(
                f"{rate}: goodput / capacity", flood["goodput_per_second"] / capacity, _GOODPUT.get(kind, 0.9), False,
                f"{flood['goodput_per_second']:.1f} a second within {flood['deadline_ms']:.0f} ms, "
                f"{before:.1f} before, {after:.1f} after"
                + ("" if left is None else "; limit: what the engine has left of its cores"),
                left,
            )  # fmt: skip
            yield Ratio(
                f"{rate}: rate two seconds after / before", after / before, 0.9, False,
                f"{after:.1f} and {before:.1f} a second",
            )  # fmt: skip
            if flood["resident_mib"]:
                begin, end = flood["resident_mib"]
                yield Ratio(
                    f"{rate}: memory after / before", end / begin, 1.1, True, f"{end:.0f} and {begin:.0f} MiB",
                )  # fmt: skip
            refused = flood["refused"]
            if refused["count"]:
                yield Ratio(
                    f"{rate}: refusals, p99, ms", refused["p99_ms"], 50.0, True,
                    f"{refused['count']} refused, {refused['turned_away']} of them by the transport, p50 "
                    f"{refused['p50_ms']:.1f} ms{_waited(flood)}",
                )  # fmt: skip
            if refused["with_retry_info"] is not None:
                yield Ratio(
                    f"{rate}: refusals in words with RetryInfo", refused["with_retry_info"], 1.0, False,
                    ", ".join(f"{count} {reason}" for reason, count in flood["errors"].items()),
                )  # fmt: skip


def _reloaded(document: Mapping[str, Any]) -> Iterator[Ratio]:
    reloads = document.get("reloads")
    if not reloads:
        return
    yield Ratio(
        f"{reloads['reloads']} reloads: failed requests", reloads["failed"], 0, True,
        f"of {reloads['requests']}; a reload took {reloads['reload_ms']['p50_ms']:.0f} ms",
    )  # fmt: skip
    during, without = reloads["during"], reloads["without"]
    if during["p99_ms"] is not None and without["p99_ms"] is not None:
        yield Ratio(
            f"{reloads['reloads']} reloads: p99 during / without", during["p99_ms"] / without["p99_ms"], 2.0, True,
            f"{during['p99_ms']:.1f} ms, {without['p99_ms']:.1f} ms",
        )  # fmt: skip


def _cancelled(document: Mapping[str, Any]) -> Iterator[Ratio]:
    cancelled = document.get("cancelled")
    if cancelled and cancelled["unaccounted"] is not None:
        yield Ratio(
            "half cancelled: admitted - in batches - given up before, queries", abs(cancelled["unaccounted"]), 0, True,
            f"{cancelled['admitted']:.0f} admitted, {cancelled['processed']:.0f} in batches, of which "
            f"{cancelled['answered']} were answered; {cancelled['cancelled_before']:.0f} cancelled and "
            f"{cancelled['expired']:.0f} expired before",
        )  # fmt: skip


def _queueing(document: Mapping[str, Any], flood: Mapping[str, Any]) -> float | None:
    """What random arrivals make of the bare forward passes, where these are what a query waits for."""
    bare = _bare(document)
    if not bare or flood["kind"] != "image" or flood["arrivals"] != "poisson":
        return None
    batch = bare["forward_batch"]
    return bounds.queue_ratio(
        1 / bare["forward"]["per_second"], 1 / batch["per_second"], batch["each"], flood["fraction"],
        np.random.default_rng(0),
    )  # fmt: skip


def _waited(flood: Mapping[str, Any]) -> str:
    """Who waited for a core while it was refused: where that is much, who refuses is held up by who computes."""
    told = flood.get("waited_for_a_core", {}).get("flooded") or {}
    parts = ", ".join(f"{part} {100 * told[part]:.0f} %" for part in ("event loop", "gRPC") if part in told)
    return f"; of the time waited for a core: {parts}" if parts else ""


def _bare(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return (document.get("limits") or {}).get("bare")


def _echo(document: Mapping[str, Any], kind: str, concurrency: int | None) -> Mapping[str, Any] | None:
    """The echo of so many requests in flight; of most, where that is None."""
    echoed = (document.get("limits") or {}).get("echo", [])
    widest_first = sorted(echoed, key=lambda one: -int(one["concurrency"]))
    return _closed({"closed": widest_first}, kind, concurrency)


def _closed(
    document: Mapping[str, Any], kind: str, concurrency: int | None, mode: str = "unary"
) -> Mapping[str, Any] | None:
    for one in document.get("closed", []):
        if (one["kind"], one["mode"]) == (kind, mode) and concurrency in (None, one["concurrency"]):
            return one if one["p50_ms"] is not None else None
    return None
