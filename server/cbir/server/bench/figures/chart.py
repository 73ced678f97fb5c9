"""A chart of the measurement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cbir.server.bench.figures.stages import STAGES

__all__ = ["draw"]

_KINDS = {"image": "#4C6FE7", "embedding": "#F5B13D", "id": "#22B8CF"}
_STAGES = dict(zip((*STAGES, "rest"), ("#4C6FE7", "#B8C0CC", "#F5B13D", "#22B8CF", "#A65FD8", "#5C6573"), strict=False))
_FLOODS = ("#2E8B57", "#C0392B", "#8A6F5C", "#7C93B2")


def draw(document: Mapping[str, Any], file: Path) -> None:
    """Draw latency and rate over concurrency, the open loops' latency distributions and the stages, into a PNG file.

    Args:
        document: The result of :func:`cbir.server.bench.measurement.measure`.
    """
    # Imported here because importing matplotlib takes a second; without pyplot, which would keep every figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 9.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(2, 2)
    machine, index = document["machine"], document["index"]
    figure.suptitle(
        f"{index.get('ensemble', '')}, {int(index.get('images', 0)):,} images; {machine['cpu']}, {machine['cores']} "
        "cores shared with the load generator"
    )
    _latencies(panels[0, 0], document)
    _rates(panels[0, 1], document)
    _distributions(panels[1, 0], document)
    _stages(panels[1, 1], document)
    for panel in panels.flat:
        panel.grid(alpha=0.3, which="both" if panel is panels[0, 0] else "major")
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    figure.savefig(file, dpi=110)


def _unary(document: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    return [one for one in document["closed"] if (one["kind"], one["mode"]) == (kind, "unary") and one["count"]]


def _latencies(panel: Any, document: Mapping[str, Any]) -> None:
    for kind, colour in _KINDS.items():
        points = _unary(document, kind)
        counts = [point["concurrency"] for point in points]
        for key, style in (("p50_ms", "-"), ("p99_ms", ":")):
            if points:
                label = f"{kind}, {key.removesuffix('_ms')}"
                panel.plot(counts, [point[key] for point in points], style, color=colour, marker=".", label=label)
    _over_concurrency(panel, document)
    panel.set(yscale="log", ylabel="milliseconds", title="Latency, closed loop")
    _plain(panel.yaxis)
    _legend_beside(panel)


def _rates(panel: Any, document: Mapping[str, Any]) -> None:
    for kind, colour in _KINDS.items():
        points = _unary(document, kind)
        if points:
            counts = [point["concurrency"] for point in points]
            panel.plot(counts, [point["per_second"] for point in points], "-o", color=colour, markersize=4, label=kind)
        for one in document["closed"]:
            if (one["kind"], one["mode"]) == (kind, "stream"):
                panel.plot(
                    one["concurrency"], one["per_second"], "*", color=colour, markersize=11, label=f"{kind}, stream"
                )
    limits = document["limits"]
    for one in limits["echo"]:
        if one["mode"] == "unary" and one["concurrency"] > 1:
            panel.axhline(
                one["per_second"], color=_KINDS[one["kind"]], linestyle=":", label=f"empty echo, {one['kind']} request"
            )
    if limits["bare"]:
        for part, style in (("forward_batch", "--"), ("decode_workers", "-.")):
            if part not in limits["bare"]:
                continue
            name = {"forward_batch": "bare forward, full batches", "decode_workers": "bare decode, all workers"}[part]
            panel.axhline(limits["bare"][part]["per_second"], color="#5C6573", linestyle=style, linewidth=1, label=name)
    _over_concurrency(panel, document)
    panel.set(yscale="log", ylabel="answers per second", title="Throughput, closed loop, and its limits")
    _plain(panel.yaxis)
    _legend_beside(panel)


def _over_concurrency(panel: Any, document: Mapping[str, Any]) -> None:
    ticks = sorted({one["concurrency"] for one in document["closed"]})
    panel.set_xscale("log", base=2)
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.set_xlabel("requests in flight")


def _distributions(panel: Any, document: Mapping[str, Any]) -> None:
    panel.set(
        title=f"Latency from the scheduled arrival, open loop: {_open_kind(document)}",
        xlabel="milliseconds",
        ylabel="share answered by then",
    )
    floods = [flood for flood in document["open"] if flood["distribution_ms"]]
    for flood, colour in zip(floods, _FLOODS, strict=False):
        times = flood["distribution_ms"]
        shares = [place / max(1, len(times) - 1) for place in range(len(times))]
        refused = flood["refused"]["count"]
        label = f"{flood['fraction']:g} of capacity:\n{flood['offered_per_second']:.0f} a second"
        panel.plot(times, shares, color=colour, label=label + (f",\n{refused} refused" if refused else ""))
        panel.plot(flood["p99_ms"], 0.99, "o", color=colour, markersize=5)
    if floods:
        panel.axvline(floods[0]["deadline_ms"], color="#5C6573", linestyle=":", label="deadline")
        panel.set_xscale("log")
        _plain(panel.xaxis)
        _legend_beside(panel)


def _open_kind(document: Mapping[str, Any]) -> str:
    return str(document["open"][0]["kind"]) if document["open"] else "not measured"


def _stages(panel: Any, document: Mapping[str, Any]) -> None:
    kind = next((one["kind"] for one in document["closed"] if one.get("stages")), None)
    points = [one for one in _unary(document, kind or "") if one.get("stages")]
    panel.set(
        title=f"Where the time goes: {kind or 'not measured'}, means", xlabel="requests in flight", ylabel="share"
    )
    names = [
        f"{point['concurrency']}\n{point['mean_ms']:,.{0 if point['mean_ms'] >= 100 else 2}f} ms" for point in points
    ]
    bottoms = [0.0] * len(points)
    for stage, colour in _STAGES.items():
        if stage == "rest":
            shares = [max(0.0, 1 - bottom) for bottom in bottoms]
        else:
            shares = [point["stages"].get(stage, 0.0) / point["mean_ms"] for point in points]
        label = "transport, event loops" if stage == "rest" else stage
        panel.bar(names, shares, 0.7, bottoms, color=colour, label=label)
        bottoms = [bottom + share for bottom, share in zip(bottoms, shares, strict=True)]
    if points:
        _legend_beside(panel)


def _plain(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers, only as many as fit."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter(LogFormatter(labelOnlyBase=False))
    axis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.7)))


def _legend_beside(panel: Any) -> None:
    # Beside the panel, as inside it the legend could cover curves.
    panel.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
