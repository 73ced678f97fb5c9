"""``cbir eval``: MAP@10 and other measures of the ensemble and of each member."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cbir.core.errors import ConfigurationError
from cbir.indexer.commands.console import (
    USER_ERRORS,
    add_device_arguments,
    add_exclude_argument,
    add_store_arguments,
    positive,
    print_json,
    progress_printer,
    stderr,
    vectors_of,
    writing_to,
)

if TYPE_CHECKING:
    from cbir.core.search import Searcher
    from cbir.indexer.evaluate import EvaluationReport

__all__ = ["USER_ERRORS", "add_arguments", "run"]

_COLUMNS = ("map@10", "p@10", "recall@10", "cmc@1", "map@r", "macro_map@10")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("index", type=Path, metavar="INDEX", help="folder of the index")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--queries", nargs="+", metavar="SOURCE", help="labelled query images")
    which.add_argument(
        "--leave-one-out", action="store_true", help="the gallery's own labelled images, each without itself"
    )
    add_exclude_argument(parser)
    parser.add_argument("--most", type=positive, default=None, metavar="N", help="leave-one-out: draw at most N images")
    parser.add_argument(
        "--report",
        type=Path,
        default=None,
        metavar="DIR",
        help="write a page that shows what is good, what is not, and why (takes a few times as long)",
    )
    parser.add_argument("--exact", action="store_true", help="ignore approximate indexes")
    add_device_arguments(parser)
    add_store_arguments(parser)
    parser.add_argument(
        "--precision",
        choices=("auto", "f32", "bf16", "f16", "int8"),
        default="auto",
        help="what the models compute with for --queries, as cbir serve does: shows what a faster one costs",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON document to stdout")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from cbir.core.artifacts import IndexStore
    from cbir.indexer.build import Progress, RunSettings, index_limits
    from cbir.indexer.evaluate import (
        evaluate,
        examine,
        fit_folds,
        gallery_queries,
        name_classes,
        source_queries,
        write_report,
    )
    from cbir.indexer.sources import open_sources

    if args.most and not args.leave_one_out:
        raise ConfigurationError("--most goes with --leave-one-out only: leave it out", reason="BAD_OPTION")
    if args.precision != "auto" and args.leave_one_out:
        message = "--precision is of embeddings, and --leave-one-out takes the index's: give --queries, or leave it out"
        raise ConfigurationError(message, reason="BAD_OPTION")
    if args.precision != "auto" and args.report:
        message = "--report shows the recipe in the precision of the index: leave --report or --precision out"
        raise ConfigurationError(message, reason="BAD_OPTION")
    version = IndexStore(args.index).open()
    limits = index_limits(version.manifest.settings)
    settings = RunSettings(args.device, args.runtime, precision=args.precision, limits=limits)
    cache = args.index / "cache"
    findings = None
    if args.report:
        # Checked here, before any work is done.
        if args.report.is_file():
            message = f"{args.report} is a file: --report needs a folder, which is made if absent"
            raise ConfigurationError(message, reason="BAD_OPTION")
        args.report.mkdir(parents=True, exist_ok=True)
    with progress_printer() as progress, writing_to(args.report or args.index):
        store = vectors_of(args, args.index)
        retriever: Searcher = store.open(version, args.device, "exact" if args.exact else None)
        if args.leave_one_out:
            queries, name = gallery_queries(retriever, args.most, version=version), "leave-one-out on the gallery"
            if folds := fit_folds(version, retriever, cache, settings, progress):
                retriever, queries = folds, folds.queries(queries)
                name += ", cross-fitted in five folds"
        else:
            sources = open_sources(args.queries, exclude=args.exclude, max_bytes=limits.max_bytes)
            queries = source_queries(version, retriever, sources, cache, settings, progress)
            name = ", ".join(args.queries)
        report = evaluate(args.index, version, retriever, queries, name, progress, own=args.leave_one_out)
        if args.report:
            findings = examine(version, retriever, queries, report, cache, settings, progress)
            progress(Progress("draw", 0, 0))
            page = write_report(findings, args.report)
    if report.caution:
        stderr().print(f"caution: {report.caution}", style="yellow", soft_wrap=True)
    if report.unknown_classes:
        stderr().print(
            f"caution: {sum(report.unknown_classes.values())} queries are of classes that the gallery does not have "
            f"({len(report.unknown_classes)}): {name_classes(report.unknown_classes)}",
            style="yellow", soft_wrap=True, markup=False,
        )  # fmt: skip
    if args.json:
        print_json((findings or report).to_json())
    else:
        _print(report)
    if findings:
        stderr().print(f"report: {page} (open it in a browser)", soft_wrap=True, markup=False)
    return 0


def _print(report: EvaluationReport) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"{report.ensemble.queries} queries against {report.gallery} images "
        f"({report.ensemble.without_relevant} left out without a relevant image, {report.unlabelled} without a label, "
        f"{len(report.skipped)} unreadable, {report.near_duplicates} with near duplicates)",
        soft_wrap=True,
    )
    document = report.to_json()
    table = Table("in %", "MAP@10", "95 % CI", "P@10", "recall@10", "CMC@1", "MAP@R", "macro")
    rows = {"ensemble": document, "rank fusion": document["rank_fusion"], **document["members"]}
    for name, figures in rows.items():
        first, *others = (f"{100 * figures[key]:.1f}" for key in _COLUMNS)
        low, high = figures["map@10_ci"]
        table.add_row(name, first, f"{100 * low:.1f}-{100 * high:.1f}", *others)
    console.print(table)
