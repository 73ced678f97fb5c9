"""A picture of the training curves: the losses, and MAP@10 of the held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw_curves"]

_NOT_LOSSES = ("epoch", "fraction", "seconds", "map@10")


def draw_curves(history: Sequence[dict[str, float]], best: dict[str, float] | None, title: str, file: Path) -> None:
    """Draw the losses over the epochs, and below them MAP@10 where it was measured, into a PNG file.

    Args:
        history: Points by ascending ``epoch`` (see :class:`cbir.indexer.train.progress.Result`).
        best: The point whose weights were exported.
    """
    # Imported here because importing matplotlib takes a second; without pyplot, which would keep every figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = [(point["epoch"], point["map@10"]) for point in history if "map@10" in point]
    figure = Figure(figsize=(8, 7 if measured else 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(2 if measured else 1, 1, sharex=True, squeeze=False)[:, 0]
    names = list(dict.fromkeys(key for point in history for key in point if key not in _NOT_LOSSES))
    for name in names:
        points = [(point["epoch"], point[name]) for point in history if name in point]
        width = 2.0 if name == "loss" else 1.0
        panels[0].plot(*zip(*points, strict=True), label=name, linewidth=width, marker="." if len(points) < 2 else "")
    panels[0].set_title(title)
    panels[0].set_ylabel("running mean")
    if names:
        panels[0].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))  # beside the curves, so as not to cover them
    if measured:
        panels[1].plot(*zip(*measured, strict=True), marker="o", markersize=4, color="black")
        panels[1].set_ylabel("MAP@10, held-out images")
        if best:
            panels[1].axvline(best["epoch"], color="grey", linestyle=":", label=f"kept: {best['map@10']:.3f}")
            panels[1].legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    panels[-1].set_xlabel("epoch")
    for panel in panels:
        panel.grid(alpha=0.3)
    figure.savefig(file, dpi=110)
