"""``cbir tune``: choose weights, dimensions, label vote, expansion and calibration; publish them as a new version."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cbir.indexer.commands.console import (
    USER_ERRORS,
    add_device_arguments,
    add_exclude_argument,
    add_sign_argument,
    add_store_arguments,
    positive,
    print_json,
    progress_printer,
    signing_key,
    stderr,
    vectors_of,
    writing_to,
)

if TYPE_CHECKING:
    from cbir.indexer.tune import Gain, TuningReport

__all__ = ["USER_ERRORS", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from cbir.indexer.tune import SearchBudget

    default = SearchBudget()
    parser.add_argument("index", type=Path, metavar="INDEX", help="folder of the index")
    parser.add_argument(
        "--queries", nargs="+", metavar="SOURCE", help="labelled query images (default: the gallery's own, in folds)"
    )
    add_exclude_argument(parser)
    parser.add_argument(
        "--trials",
        type=positive,
        default=default.trials,
        metavar="N",
        help="votes tried a search (default %(default)s)",
    )
    parser.add_argument(
        "--without-labels", action="store_true", help="sharpen by neighbours and leave labels out of the score"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="of the search (default %(default)s)")
    add_device_arguments(parser)
    add_sign_argument(parser)
    add_store_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON document to stdout")


def run(args: argparse.Namespace) -> int:
    """Tune, publish the result if it is a gain, and say what came of it."""
    from cbir.core.artifacts import IndexStore
    from cbir.core.images import DecodeLimits
    from cbir.core.machine import keep_compiled
    from cbir.indexer.build import RunSettings, index_limits
    from cbir.indexer.sources import open_sources
    from cbir.indexer.tune import SearchBudget, tune

    keep_compiled()
    sources, limits = None, DecodeLimits()
    if args.queries:
        limits = index_limits(IndexStore(args.index).open().manifest.settings)
        sources = open_sources(args.queries, exclude=args.exclude, max_bytes=limits.max_bytes)
    settings, key = RunSettings(args.device, args.runtime, limits=limits), signing_key(args)
    try:
        with progress_printer() as progress, writing_to(args.index):
            report = tune(
                args.index,
                sources,
                settings,
                SearchBudget(args.trials, args.seed),
                progress,
                use_labels=not args.without_labels,
                key=key,
                vectors=vectors_of(args, args.index),
            )
    except KeyboardInterrupt:
        stderr().print("interrupted: nothing was published, the live version stays", soft_wrap=True)
        raise
    _say(report)
    if args.json:
        print_json(report.to_json())
    else:
        _print(report)
    return 0


def _say(report: TuningReport) -> None:
    console = stderr()
    if report.gain is None:
        console.print(
            "tuned without labels, so nothing was measured: vectors are sharpened by their neighbours, which serves "
            "such galleries; give labelled images with --queries for more",
            soft_wrap=True,
        )
    elif not any(report.gain):
        console.print(
            f"MAP@10 {_percent(report.before)}: no other vote is better"
            + (", but its scores are calibrated anew" if report.version else ""),
            soft_wrap=True,
        )
    else:
        if report.taken and report.whole_gain:
            console.print(
                f"the vote as a whole is no gain ({_points(report.whole_gain)}), but {report.taken} alone is one, and "
                "was taken",
                soft_wrap=True,
            )
        console.print(
            f"MAP@10 {_percent(report.before)} before, {_percent(report.held_out)} after on queries that did not "
            f"choose the vote: {_points(report.gain)}",
            soft_wrap=True,
        )
    if report.version:
        console.print(f"published version {report.version}", soft_wrap=True)
    else:
        console.print("no gain: nothing was published, the live version stays", soft_wrap=True)


def _print(report: TuningReport) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if report.rejected:
        console.print(
            "REJECTED, and not in use: the vote below lost against the live one on queries that did not choose it",
            soft_wrap=True,
        )
    for step in report.steps:
        taken = ", taken" if step.name == report.taken else ""
        console.print(f"{step.name} alone: {_points(step.gain)}{taken}", soft_wrap=True)
    table = Table("member", "weight", "dim", "MAP@10 alone")
    for name, weight in report.vote.weights.items():
        dim = str(report.vote.dims.get(name, "as before"))
        alone = report.members.get(name)
        table.add_row(name, f"{weight:.3f}", dim, _percent(alone))
    console.print(table)
    vote = report.vote
    if report.queries:
        console.print(
            f"{report.queries} queries ({report.query_source}); {'rejected' if report.rejected else 'new'} vote "
            f"{_percent(report.after)} on the queries that chose it, with equal weights "
            f"{_percent(report.equal)}",
            soft_wrap=True,
        )
        console.print(
            f"label vote: lambda {vote.label_share:.2f}, K {vote.neighbours}, T {vote.temperature:.3f}, heads "
            f"{vote.head_share:.2f} at T {vote.head_temperature:.3f}",
            soft_wrap=True,
        )
    console.print(
        f"augmentation K {vote.augmentation_neighbours}, expansion K {vote.expansion_neighbours}"
        + ("" if report.ece is None else f"; calibration error {report.ece:.3f}"),
        soft_wrap=True,
    )


def _points(gain: Gain) -> str:
    mean, low, high = (100 * value for value in gain)
    return f"{mean:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
