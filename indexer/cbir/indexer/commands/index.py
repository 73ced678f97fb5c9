"""``cbir index``: build or update an index and publish a new version."""

from __future__ import annotations

import argparse
from pathlib import Path

from cbir.core.ensemble import BUILT_IN, DEFAULT_ENSEMBLE, load_ensemble
from cbir.core.images import DecodeLimits
from cbir.indexer.build import FitSettings, IndexReport, RunSettings, build, ensemble_of_index
from cbir.indexer.commands.console import (
    USER_ERRORS,
    add_device_arguments,
    add_exclude_argument,
    add_sign_argument,
    amount,
    positive,
    print_json,
    printable,
    progress_printer,
    signing_key,
    stderr,
    writing_to,
)
from cbir.indexer.sources import open_sources

__all__ = ["USER_ERRORS", "add_arguments", "run"]

_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="folder, .zip, .tar, .csv or .parquet of images")
    parser.add_argument("--out", required=True, type=Path, metavar="INDEX", help="folder of the index")
    parser.add_argument(
        "--ensemble",
        default=None,
        metavar="NAME|FILE",
        help=f"{', '.join(BUILT_IN)} or an ensemble file (default: the index's own, for a new one {DEFAULT_ENSEMBLE})",
    )
    add_device_arguments(parser)
    parser.add_argument("--batch", type=positive, default=32, help="images a forward pass (default 32)")
    parser.add_argument("--workers", type=positive, default=None, help="decoding threads (default: one a core)")
    parser.add_argument(
        "--index", default=None, metavar="KIND", help="auto, exact, faiss:<factory string> or annoy:<trees>, for all"
    )
    parser.add_argument(
        "--pseudo-labels", action="store_true", help="fit the GLRT metric on neighbours even where there are labels"
    )
    parser.add_argument(
        "--label-vote", type=_share, default=None, metavar="LAMBDA",
        help="what likely labels add to the score (default: as `cbir tune` chose, else 0)",
    )  # fmt: skip
    add_exclude_argument(parser)
    default = DecodeLimits()
    parser.add_argument(
        "--max-pixels", type=amount, default=default.max_pixels, metavar="N",
        help=f"largest image in pixels, such as 200M (default {default.max_pixels:,}); JPEGs count as they are decoded",
    )  # fmt: skip
    parser.add_argument(
        "--max-bytes", type=amount, default=default.max_bytes, metavar="N",
        help=f"largest image file in bytes, such as 1Gi (default {default.max_bytes:,})",
    )  # fmt: skip
    parser.add_argument("--forget-tuning", action="store_true", help="drop what `cbir tune` chose")
    parser.add_argument("--rebuild", action="store_true", help="publish anew though nothing changed (mends damage)")
    add_sign_argument(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON report to stdout")


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 100")
    return value


def run(args: argparse.Namespace) -> int:
    """Build or update the index, and say what was done."""
    kept = None if args.ensemble else ensemble_of_index(args.out)
    ensemble = kept or load_ensemble(args.ensemble or DEFAULT_ENSEMBLE)
    key = signing_key(args)
    limits = DecodeLimits(max_bytes=args.max_bytes, max_pixels=args.max_pixels)
    settings = RunSettings(args.device, args.runtime, args.batch, args.workers or 0, limits=limits)
    fit = FitSettings(args.pseudo_labels, args.label_vote, args.index, args.rebuild, not args.forget_tuning)
    sources = open_sources(args.sources, exclude=args.exclude, max_bytes=args.max_bytes)
    try:
        with progress_printer() as report, writing_to(args.out):
            result = build(sources, args.out, ensemble, settings, fit, report, key=key)
    except KeyboardInterrupt:
        stderr().print("stopped; what is embedded is kept: the same command goes on from here", soft_wrap=True)
        raise
    if kept:
        members = ", ".join(member.name for member in kept.members)
        stderr().print(
            f"kept the ensemble of the index, {kept.name} ({members}); --ensemble chooses another",
            soft_wrap=True, markup=False,
        )  # fmt: skip
    _say(result)
    if args.json:
        print_json({**result.to_json(), "ensemble": ensemble.name, "ensemble_kept": kept is not None})
    return 0


def _say(result: IndexReport) -> None:
    console = stderr()
    for skipped in result.skipped[:_SHOWN]:
        line = printable(f"skipped {skipped.uri}: {skipped.reason}")
        console.print(line, style="yellow", soft_wrap=True, markup=False)
    if len(result.skipped) > _SHOWN:
        console.print(f"... and {len(result.skipped) - _SHOWN} more (--json lists all)", style="yellow")
    state = "published" if result.published else "nothing changed, still"
    console.print(
        f"{state} version {result.version}: {result.images} images ({result.embedded} embedded, {result.reused} "
        f"reused; {result.added} added, {result.changed} changed, {result.removed} removed, "
        f"{len(result.skipped)} skipped) in {result.seconds:.1f} s",
        soft_wrap=True,
    )
