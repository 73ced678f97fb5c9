"""The measurement as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from cbir.server.bench.core_shares import PARTS

__all__ = ["print_tables"]


def print_tables(console: Console, document: Mapping[str, Any]) -> None:
    """Print tables of the closed loops, the limits, the open loops and the ratios.

    Args:
        document: The result of :func:`cbir.server.bench.measurement.measure`.
    """
    machine, index = document["machine"], document["index"]
    console.print(
        f"{index.get('ensemble')}, {int(index.get('images', 0)):,} images, {index.get('index')}; {machine['cpu']}, "
        f"{machine['cores']} cores ({' '.join(machine['capabilities'])}), load {machine['load_before']} before",
        soft_wrap=True,
    )
    limits = document["limits"]
    console.print(_closed("closed loop", document["closed"]))
    if limits["echo"]:
        console.print(_closed("empty echo, same messages", limits["echo"]))
    if limits["bare"]:
        console.print(_bare(limits["bare"]))
    if document["open"]:
        console.print(_open(document["open"]))
        # A server elsewhere tells nothing of its threads.
        if any(one["cores"]["flooded"] for one in document["open"]):
            console.print(_cores(document["open"]))
    if document.get("cached"):
        console.print(_closed("few images, cache on", document["cached"]))
    for one in document.get("processes", []):
        console.print(_closed(f"{one['processes']} processes, {one['resident_mib']:.0f} MiB", one["closed"]))
    if document.get("cancelled"):
        facts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in document["cancelled"].items())
        console.print(f"half of the requests cancelled: {facts}", soft_wrap=True)
    console.print(_ratios(document["ratios"]))
    for fault in document.get("faults", []):
        console.print(f"not to be believed: {fault}", style="yellow", soft_wrap=True)


def _closed(title: str, loads: list[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("query", "in flight"):
        table.add_column(name)
    for name in ("a second", "p50 ms", "p95 ms", "p99 ms", "server CPU ms", "generator CPU ms"):
        table.add_column(name, justify="right")
    for one in loads:
        name = one["kind"] if one["mode"] == "unary" else f"{one['kind']}, stream"
        wrong = f" ({sum(one['errors'].values())} failed)" if one["errors"] else ""
        table.add_row(
            name + wrong, str(one["concurrency"]), _number(one["per_second"]), *_percentiles(one),
            _number(one.get("server_cpu_ms_each")), _number(one["generator_cpu_ms_each"]),
        )  # fmt: skip
    return table


def _bare(bare: Mapping[str, Any]) -> Table:
    table = Table(title=f"bare engine, {', '.join(sorted(set(bare['runtimes'].values())))}", title_justify="left")
    table.add_column("part")
    for name in ("in one call", "a second", "p50 ms"):
        table.add_column(name, justify="right")
    for part, timed in bare.items():
        if isinstance(timed, Mapping) and "per_second" in timed:
            table.add_row(
                part.replace("_", ", "), str(timed["each"]), _number(timed["per_second"]), _number(timed["p50_ms"])
            )  # fmt: skip
    table.add_row("read the matrix once", "", "", _number(bare["search_floor_ms"]))
    return table


def _open(floods: list[Mapping[str, Any]]) -> Table:
    table = Table(title="open loop, from the scheduled arrival", title_justify="left")
    columns = ("of capacity", "offered a second", "answered", "in time", "p50 ms", "p95 ms", "p99 ms", "refused",
               "refused p99 ms", "generator late p99 ms")  # fmt: skip
    for name in columns:
        table.add_column(name, justify="right")
    for one in floods:
        refused = one["refused"]
        table.add_row(
            f"{one['fraction']:g}", _number(one["offered_per_second"]), _number(one["answered_per_second"]),
            _number(one["goodput_per_second"]), *_percentiles(one), str(refused["count"]), _number(refused["p99_ms"]),
            _number(one["generator_late_p99_ms"]),
        )  # fmt: skip
    return table


def _cores(floods: list[Mapping[str, Any]]) -> Table:
    table = Table(title="cores taken, on average", title_justify="left")
    table.add_column("of capacity")
    parts = (*PARTS, "generator")
    for part in parts:
        table.add_column(part, justify="right")
    for one in floods:
        for when, shares in one["cores"].items():
            name = f"{one['fraction']:g}" if when == "flooded" else f"{when}, before {one['fraction']:g}"
            table.add_row(name, *(_number(shares.get(part)) for part in parts))
    return table


def _ratios(ratios: list[Mapping[str, Any]]) -> Table:
    table = Table(title="against the limits of this run", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("aim")
    table.add_column("limit here", justify="right")
    table.add_column("made of")
    for one in ratios:
        colour = "green" if one["reached"] else "red"
        table.add_row(
            one["name"], f"[{colour}]{one['value']:.3g}[/]", one["aim"], _number(one.get("limit")), one["how"]
        )  # fmt: skip
    return table


def _percentiles(figures: Mapping[str, Any]) -> list[str]:
    return [_number(figures[f"p{share}_ms"]) for share in (50, 95, 99)]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
