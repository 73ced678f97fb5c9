"""Search results as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cbir.client import SearchResult
from cbir.client._display.palette import contributions
from cbir.client.cli.labels import is_expected
from cbir.client.cli.terminal import printable

__all__ = ["print_result"]

_EIGHTHS, _FULL = " ▏▎▍▌▋▊▉", "█"
#: Width in cells of the bar of one member, and of the bar that all members share on narrow terminals.
_BAR, _STACKED_BAR = 8, 18
#: Labels with more cells than this are wrapped.
_LABEL = 24
_RIGHT, _WRONG = "green", "red"


def print_result(
    console: Console,
    name: str,
    result: SearchResult,
    colours: Mapping[str, str],
    expected: Sequence[str] = (),
    positives: Sequence[str] = (),
    negatives: Sequence[str] = (),
) -> None:
    """Print the hits of one query: rank, label, score, id, and bars of what each member contributed.

    On wide terminals every member has a column; on narrow ones the members share one stacked bar.

    Args:
        console: The console to print to.
        name: The query's name.
        result: Its result.
        colours: Colours of the contributors, see :func:`cbir.client._display.palette.member_colours`.
        expected: Labels of which hits should have one; right and wrong labels are then coloured.
        positives: Ids of the query's positive examples.
        negatives: Ids of its negative examples.
    """
    console.print(_heading(name, result, expected), soft_wrap=True)
    if positives or negatives:
        console.print(_examples(positives, negatives), soft_wrap=True)
    if not result.hits:
        console.print(Text("no hits\n", style="dim"))
        return
    shares = contributions(result.hits)
    wide = _wide(result, colours) <= console.width
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("label", overflow="fold", max_width=_LABEL)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("id", overflow="fold", min_width=12)
    if wide:
        for contributor, colour in colours.items():
            table.add_column(Text(printable(contributor), style=colour), no_wrap=True)
    else:
        table.add_column("contributions", no_wrap=True)
    longest = max((sum(max(share, 0.0) for share in row.values()) for row in shares), default=0.0)
    highest = max((share for row in shares for share in row.values()), default=0.0)
    for rank, (hit, row) in enumerate(zip(result.hits, shares, strict=True), 1):
        parts = [(row.get(contributor, 0.0), colour) for contributor, colour in colours.items()]
        bars = [_bar([part], highest, _BAR, console).append(f" {part[0]:.2f}") for part in parts]
        table.add_row(
            str(rank),
            Text(printable(hit.label or "-"), style=_label_style(hit.label, expected)),
            f"{hit.score:.3f}",
            Text(printable(hit.image_id)),
            *(bars if wide else [_bar(parts, longest, _STACKED_BAR, console)]),
        )
    console.print(table)
    if not wide:
        legend = Text("  ").join(Text(f"{_block(console)} {printable(who)}", style=c) for who, c in colours.items())
        console.print(legend, Text())


def _wide(result: SearchResult, colours: Mapping[str, str]) -> int:
    """Width of the table with a column for each member, in cells."""
    label = min(max(len(hit.label or "-") for hit in result.hits), _LABEL)
    columns = [2, label, 5, max(len(hit.image_id) for hit in result.hits)]
    columns += [max(len(contributor), _BAR + 5) for contributor in colours]
    return sum(columns) + 2 * len(columns)


def _heading(name: str, result: SearchResult, expected: Sequence[str]) -> Text:
    heading = Text(printable(name), style="bold")
    for prediction in result.labels[:3]:
        style = _label_style(prediction.label, expected)
        heading.append(f"   {printable(prediction.label)} {prediction.probability:.0%}", style=f"not bold {style}")
    facts = [f"index {result.index_version}", f"{result.timings.total * 1000:.1f} ms"]
    if result.crop is not None:
        facts.append(f"crop {result.crop.width} x {result.crop.height} at {result.crop.left}, {result.crop.top}")
    heading.append(f"   {' · '.join(facts)}", style="not bold dim")
    return heading


def _examples(positives: Sequence[str], negatives: Sequence[str]) -> Text:
    sides = (("like", positives), ("unlike", negatives))
    return Text(" · ").join(Text(f"{side} {printable(', '.join(ids))}", style="dim") for side, ids in sides if ids)


def _label_style(label: str | None, expected: Sequence[str]) -> str:
    if not expected:
        return "none"
    return _RIGHT if is_expected(label, expected) else _WRONG


def _bar(parts: Sequence[tuple[float, str]], top: float, width: int, console: Console) -> Text:
    """Return a stacked bar of ``width`` cells; a value of ``top`` fills it, and values below 0 are left out."""
    bar, end = Text(), 0.0
    for value, colour in parts:
        start, end = end, end + (max(value, 0.0) / top * width if top > 0 else 0.0)
        if len(parts) > 1:
            # Edges are rounded, not widths, so that rounding errors do not add up.
            bar.append(_block(console) * (round(end) - round(start)), style=colour)
        else:
            bar.append(_smooth(end, console), style=colour)
    return bar.append(" " * (width - len(bar)))


def _smooth(cells: float, console: Console) -> str:
    if _block(console) != _FULL:
        return _block(console) * round(cells)
    full, part = divmod(round(cells * 8), 8)
    return _FULL * full + (_EIGHTHS[part] if part else "")


def _block(console: Console) -> str:
    return _FULL if (console.encoding or "").lower().startswith("utf") else "#"
