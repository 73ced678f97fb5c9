"""The measurements as tables for the terminal and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["draw", "print_report"]

_BLUE, _GREY, _GREEN, _RED = "#4C6FE7", "#B8C0CC", "#2E8B57", "#C0392B"


def print_report(console: Console, document: Mapping[str, Any]) -> None:
    """Print the machine, the figures and the ratios."""
    machine = document["machine"]
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores ({' '.join(machine['capabilities'])}), load "
        f"{machine['load_before']} before",
        soft_wrap=True,
    )
    console.print(_kinds(document) if "kinds" in document else _rates(document))
    if "auto" in document:
        console.print(f"auto: {document['auto']['kind']}, as {document['auto']['why']}", soft_wrap=True)
    table = Table(title="against the limits of this run", title_justify="left")
    for name, justify in (("figure", "left"), ("value", "right"), ("aim", "left"), ("made of", "left")):
        table.add_column(name, justify="right" if justify == "right" else "left")
    for one in document["ratios"]:
        colour = "green" if one["reached"] else "red"
        table.add_row(one["name"], f"[{colour}]{one['value']:.3g}[/]", one["aim"], one["how"])
    console.print(table)


def _rates(document: Mapping[str, Any]) -> Table:
    plan = document["plan"]
    title = f"{plan['ensemble']} ({', '.join(plan['members'])}), {plan['images']} images, batches of {plan['batch']}"
    table = Table("", title=title, title_justify="left")
    table.add_column("images a second", justify="right")
    names = {
        "decode": "decode alone, all cores", "forward": "forward alone, all cores", "indexer": "both: the embed stage",
        "command": "the whole command, loading the models and publishing included", "loop": "the loop that users write",
    }  # fmt: skip
    for key, name in names.items():
        table.add_row(name, f"{document['rates'][key]:.1f}")
    return table


def _kinds(document: Mapping[str, Any]) -> Table:
    plan, publish = document["plan"], document["publish"]
    title = (
        f"{plan['images']:,} images x {plan['members']} members x {plan['dim']}; published in {publish['seconds']:.0f} "
        f"s, peak {publish['peak_mib']:,.0f} MiB; one core, one query at a time"
    )
    table = Table("index", title=title, title_justify="left")
    for name in ("build s", "file MiB", "load s", "own MiB", "mapped MiB", "p50 ms", "p95 ms", "recall@10"):
        table.add_column(name, justify="right")
    for one in document["kinds"]:
        table.add_row(
            one["kind"], f"{one['build_seconds']:.0f}", f"{one['file_mib']:,.0f}", f"{one['load_seconds']:.1f}",
            f"{one['own_mib']:,.0f}", f"{one['mapped_mib']:,.0f}", f"{one['p50_ms']:.2f}", f"{one['p95_ms']:.2f}",
            f"{one['recall']:.4f}",
        )  # fmt: skip
    return table


def draw(document: Mapping[str, Any], file: Path) -> None:
    """Draw the rates, or recall over time a query, beside the ratios, into a PNG file."""
    # Imported here because importing matplotlib takes a second; without pyplot, which would keep every figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    machine = document["machine"]
    figure.suptitle(f"{machine['cpu']}, {machine['cores']} cores")
    if "kinds" in document:
        for one in document["kinds"]:
            left.plot(one["p50_ms"], one["recall"], "o", color=_BLUE)
            left.annotate(one["kind"], (one["p50_ms"], one["recall"]), (5, 4), textcoords="offset points", fontsize=8)
        left.set(xscale="log", xlabel="ms a query, one core", ylabel="recall@10", title="Kinds of index")
    else:
        names = ("decode", "forward", "indexer", "command", "loop")
        left.barh(names[::-1], [document["rates"][name] for name in names[::-1]], color=_BLUE)
        left.set(xlabel="images a second", title="Indexing")
    ratios = document["ratios"][::-1]
    right.barh(
        [one["name"] for one in ratios], [one["value"] for one in ratios],
        color=[_GREEN if one["reached"] else _RED for one in ratios],
    )  # fmt: skip
    right.set(title="Against the limits of this run")
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    figure.savefig(file, dpi=110)
