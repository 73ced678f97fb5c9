"""The charts of a report, drawn with matplotlib (Agg, which needs no display), for a light and a dark background."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cbir.indexer.evaluate.confusion import ConfusionTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Chart", "colours_of", "draw_charts"]

#: Okabe and Ito, "Color Universal Design", 2008; without black, which the ensemble has, and with yellow, which is faint
#: on white, last.
MEMBER_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B3A400")
_DPI = 180
_MOST_CHARACTERS = 22


@dataclass(frozen=True)
class _Theme:
    ground: str
    ink: str
    soft: str
    line: str
    accent: str
    #: Cells of the confusion matrix with a larger share than this are filled so strongly that their text changes
    #: colour.
    flip: float


_LIGHT = _Theme("#ffffff", "#1b1f27", "#667080", "#e3e6eb", "#0b5cad", 0.5)
_DARK = _Theme("#16191f", "#e9ecf1", "#98a2b3", "#2e343f", "#6cb2f5", 0.7)


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: Name of the PNG file without its suffix.
        alt: Description for people who cannot see it.
        light: PNG bytes, for a light background.
        dark: PNG bytes, for a dark background.
        width: Width in CSS pixels.
        height: Height in CSS pixels.
    """

    name: str
    alt: str
    light: bytes
    dark: bytes
    width: int
    height: int


def colours_of(members: Sequence[str]) -> dict[str, str]:
    """The colour of each member, the same in charts and tables."""
    return {name: MEMBER_COLOURS[i % len(MEMBER_COLOURS)] for i, name in enumerate(members)}


def draw_charts(document: Mapping[str, Any], confusion: ConfusionTable) -> dict[str, Chart]:
    """Draw all charts for which there are figures.

    Args:
        document: The result of :meth:`Findings.to_json`.
    """
    rows = 2 + len(document["members"])
    charts = {
        "members": _chart(
            "members", "MAP@10 with its interval, by member", (5.6, 0.9 + 0.34 * rows), _members, document
        ),
        "precision": _chart("precision", "precision among the first k hits, by k", (5.6, 3.4), _precision, document),
        "calibration": _chart(
            "calibration", "share of hits that are relevant, by score", (5.6, 4.4), _calibration, document
        ),
    }
    steps = document["recipe"]["steps"]
    if steps:
        size = (7.6, 0.8 + 0.4 * len(steps))
        charts["recipe"] = _chart("recipe", "MAP@10 after each step of the recipe", size, _recipe, document)
    if len(confusion.labels):
        side = float(np.clip(2.6 + 0.2 * len(confusion.columns), 3.6, 8.6))
        charts["confusion"] = _chart(
            "confusion", "label of the first hit by true label", (side, side), _confusion, confusion
        )
    return charts


def _chart(
    name: str, alt: str, size: tuple[float, float], draw: Callable[[Figure, _Theme, Any], None], data: Any
) -> Chart:
    light, dark = (_png(size, theme, draw, data) for theme in (_LIGHT, _DARK))
    return Chart(name, alt, light, dark, round(100 * size[0]), round(100 * size[1]))


def _png(size: tuple[float, float], theme: _Theme, draw: Callable[[Figure, _Theme, Any], None], data: Any) -> bytes:
    # Imported here because it takes half a second and only reports need it; without pyplot, which keeps global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _style(theme):
        figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure, theme, data)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", facecolor=theme.ground, metadata={"Software": None})
    return buffer.getvalue()


@contextmanager
def _style(theme: _Theme) -> Iterator[None]:
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 8.5,
        # A class may be called "$x_", which is not a formula.
        "text.parse_math": False, "text.color": theme.ink, "axes.labelcolor": theme.soft, "axes.edgecolor": theme.line,
        "axes.facecolor": theme.ground, "axes.titlesize": 9, "xtick.color": theme.soft, "ytick.color": theme.soft,
        "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": False,
        "grid.color": theme.line, "grid.linewidth": 0.7, "legend.frameon": False, "legend.fontsize": 8,
        "xtick.major.size": 0, "ytick.major.size": 0, "svg.fonttype": "none",
    }  # fmt: skip
    with mpl.rc_context(settings), warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes; the page itself has the full names.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        yield


def _members(figure: Figure, theme: _Theme, document: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    colours = {"ensemble": theme.ink, "rank fusion": theme.soft, **colours_of(list(document["members"]))}
    rows = {"ensemble": document, "rank fusion": document["rank_fusion"], **document["members"]}
    for y, (name, figures) in enumerate(rows.items()):
        _dot(axes, y, figures["map@10"], figures["map@10_ci"], colours[name], 8 if y == 0 else 6.5)
        axes.annotate(
            f"{100 * figures['map@10']:.1f}", (100 * figures["map@10"], y), (0, 6), textcoords="offset points",
            ha="center", fontsize=7.5, color=theme.ink,
        )  # fmt: skip
    _rows(axes, [_short(name) for name in rows], "MAP@10 in %, with its 95 % interval", theme)


def _recipe(figure: Figure, theme: _Theme, document: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    steps = document["recipe"]["steps"]
    colours = colours_of(list(document["members"]))
    for y, step in enumerate(steps):
        for member, value in step["members"].items():
            axes.plot(100 * value, y, "o", ms=5, color=colours[member], mec=theme.ground, mew=0.6, zorder=4)
    values = [100 * step["map@10"] for step in steps]
    axes.plot(values, range(len(values)), color=theme.ink, lw=1.2, alpha=0.5, zorder=1)
    for y, step in enumerate(steps):
        _dot(axes, y, step["map@10"], step["map@10_ci"], theme.ink, 7.5)
        gain = "" if not step["gain"] else f"   {100 * step['gain']:+.1f}".replace("-", "\N{MINUS SIGN}")
        axes.annotate(
            f"{values[y]:.1f}{gain}", (100 * step["map@10_ci"][1], y), (7, 0), textcoords="offset points",
            va="center", fontsize=7.5, color=theme.ink,
        )  # fmt: skip
    _rows(
        axes, [step["name"] for step in steps], "MAP@10 in %: ensemble (line, 95 % interval) and members (dots)", theme
    )
    axes.margins(x=0.14)


def _dot(axes: Axes, y: int, value: float, interval: Sequence[float], colour: str, size: float) -> None:
    axes.plot([100 * end for end in interval], [y, y], color=colour, lw=2.4, alpha=0.4, solid_capstyle="round")
    axes.plot(100 * value, y, "o", ms=size, color=colour, mew=0)


def _rows(axes: Axes, names: Sequence[str], label: str, theme: _Theme) -> None:
    axes.set_yticks(range(len(names)), names, color=theme.ink)
    axes.set_ylim(len(names) - 0.4, -0.7)
    axes.set_xlabel(label)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def _precision(figure: Figure, theme: _Theme, document: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    colours = colours_of(list(document["members"]))
    ranks = np.arange(1, 11)
    for name, values in reversed(document["precision_by_rank"].items()):
        together = name == "ensemble"
        axes.plot(
            ranks, 100 * np.array(values), "-o", color=theme.ink if together else colours[name], label=_short(name),
            lw=2.2 if together else 1.4, ms=4 if together else 3, mew=0,
        )  # fmt: skip
    axes.set_xticks(ranks)
    axes.set_xlabel("k")
    axes.set_ylabel("precision of the first k hits, %")
    axes.grid(axis="y")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0)


def _calibration(figure: Figure, theme: _Theme, document: Mapping[str, Any]) -> None:
    table = {name: np.array(values) for name, values in document["reliability"].items()}
    filled = table["counts"] > 0
    bins = len(filled)
    curve, histogram = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    curve.plot([0, 1], [0, 1], color=theme.soft, lw=1, ls=(0, (4, 3)))
    score, observed = table["mean_score"][filled], table["observed"][filled]
    curve.vlines(score, np.minimum(score, observed), np.maximum(score, observed), color=theme.accent, lw=5, alpha=0.25)
    curve.plot(score, observed, "-o", color=theme.accent, lw=1.8, ms=5, mew=0)
    curve.set_ylim(-0.03, 1.03)
    curve.set_ylabel("share relevant")
    curve.grid()
    curve.set_title(f"ECE {document['ece']:.3f}", loc="left", color=theme.ink)
    histogram.bar((np.arange(bins) + 0.5) / bins, table["counts"], 0.92 / bins, color=theme.accent, alpha=0.75)
    histogram.set_xlim(0, 1)
    histogram.set_xlabel("score of the hit")
    histogram.set_ylabel("hits")
    histogram.grid(axis="y")


def _confusion(figure: Figure, theme: _Theme, table: ConfusionTable) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    axes = figure.subplots()
    asked = table.matrix.sum(axis=1, keepdims=True)
    shares = table.matrix / np.maximum(asked, 1)
    shades = LinearSegmentedColormap.from_list("shades", [theme.ground, theme.accent])
    image = axes.imshow(shares, cmap=shades, vmin=0, vmax=1, aspect="auto")
    size = float(np.clip(170 / len(table.columns), 5.5, 8.5))
    axes.set_xticks(range(len(table.columns)), [_short(c) for c in table.columns], rotation=90, fontsize=size)
    axes.set_yticks(range(len(table.labels)), [_short(c) for c in table.labels], fontsize=size)
    axes.set_xticks(np.arange(len(table.columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(table.labels) + 1) - 0.5, minor=True)
    axes.grid(which="minor", lw=0.6)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("label of the first hit")
    axes.set_ylabel("true label")
    for row, column in zip(*np.nonzero(table.matrix), strict=True):
        strong = shares[row, column] > theme.flip
        axes.text(
            column, row, str(table.matrix[row, column]), ha="center", va="center", fontsize=min(size, 7.0),
            color=theme.ground if strong else theme.ink,
        )  # fmt: skip
    bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=30, pad=0.02)
    bar.set_label("share of the true class", fontsize=7.5)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)


def _short(name: str) -> str:
    """A name on one line, shortened to leave room for the chart."""
    text = " ".join(name.split())
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"
