"""``cbir eval``: MAP@10 and the other measures for the ensemble and each member."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cbir.core.errors import ConfigurationError
from cbir.core.retriever import Retriever
from cbir.core.store import IndexStore
from cbir.indexer.console import USER_ERRORS, add_device_arguments, positive, print_json, progress_printer
from cbir.indexer.embedding import RunSettings
from cbir.indexer.evaluation import EvaluationReport, evaluate, gallery_queries, source_queries
from cbir.indexer.report import write_report
from cbir.indexer.sources import open_sources

__all__ = ["USER_ERRORS", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("index", type=Path, metavar="INDEX", help="folder of the index")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--queries", nargs="+", metavar="SOURCE", help="labelled query images")
    which.add_argument(
        "--leave-one-out", action="store_true", help="the gallery's own labelled images, each without itself"
    )
    parser.add_argument("--most", type=positive, default=None, metavar="N", help="leave-one-out: draw at most N images")
    parser.add_argument("--report", type=Path, default=None, metavar="DIR", help="write a page with the figures")
    parser.add_argument("--exact", action="store_true", help="ignore approximate indexes")
    add_device_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON document to stdout")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.most and not args.leave_one_out:
        raise ConfigurationError("--most goes with --leave-one-out only: leave it out", reason="BAD_OPTION")
    version = IndexStore(args.index).open()
    with progress_printer() as progress:
        retriever = Retriever.load(version, args.device, "exact" if args.exact else None)
        if args.leave_one_out:
            queries, name = gallery_queries(retriever, args.most), "leave-one-out on the gallery"
        else:
            settings = RunSettings(args.device, args.runtime)
            sources = open_sources(args.queries)
            queries = source_queries(version, retriever, sources, args.index / "cache", settings, progress)
            name = ", ".join(args.queries)
        report = evaluate(args.index, version, retriever, queries, name, progress, own=args.leave_one_out)
    if report.caution:
        Console(stderr=True, highlight=False).print(f"caution: {report.caution}", style="yellow", soft_wrap=True)
    if args.report:
        page = write_report(report, args.report)
        Console(stderr=True, highlight=False).print(f"report: {page}", soft_wrap=True)
    if args.json:
        print_json(report.to_json())
    else:
        _print(report)
    return 0


def _print(report: EvaluationReport) -> None:
    console = Console(highlight=False)
    console.print(
        f"{report.ensemble.queries} queries against {report.gallery} images "
        f"({report.ensemble.without_relevant} left out without a relevant image, {report.unlabelled} without a label, "
        f"{len(report.skipped)} unreadable, {report.near_duplicates} with near duplicates)",
        soft_wrap=True,
    )
    table = Table("", "MAP@10", "P@10", "recall@10", "CMC@1", "MAP@R", "macro MAP@10")
    rows = {"ensemble": report.ensemble, "rank fusion": report.rank_fusion, **report.members}
    for name, measures in rows.items():
        table.add_row(name, *(f"{100 * float(str(v)):.1f} %" for v in measures.to_json().values()))
    console.print(table)
