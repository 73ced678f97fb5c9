"""``cbir search``: query a server from the shell."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from cbir.client import (
    CbirClientError,
    Client,
    Crop,
    Fusion,
    ImageId,
    InvalidQuery,
    NotFound,
    SearchOptions,
    SearchResult,
    Text,
)
from cbir.client._display.palette import member_colours
from cbir.client.cli.connection import add_connection_arguments, connection
from cbir.client.cli.document import search_document
from cbir.client.cli.query_files import NamedQuery, named_queries
from cbir.client.cli.table import print_result
from cbir.client.cli.terminal import printable

__all__ = ["USER_ERRORS", "add_arguments", "run"]

USER_ERRORS: tuple[type[Exception], ...] = (CbirClientError,)

_PIPE_WIDTH = 200
_SHEET_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
#: Most queries on a sheet: a taller one could not be looked at, nor held in memory.
_SHEET_QUERIES = 24

Outcome = SearchResult | CbirClientError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="image file, folder of images, or - for stdin")
    parser.add_argument("--id", metavar="ID", action="append", default=[], help="query with an image of the gallery")
    parser.add_argument(
        "--text", metavar="WORDS", action="append", default=[], help="query with words, such as --text 'a red car'"
    )
    parser.add_argument(
        "--like",
        metavar="ID",
        action="append",
        default=[],
        help="move the queries towards this image of the gallery, or query with it alone; may be repeated",
    )
    parser.add_argument(
        "--unlike",
        metavar="ID",
        action="append",
        default=[],
        help="move the queries away from this image of the gallery; may be repeated",
    )
    parser.add_argument("--target", default="localhost:50051", help="the server's address (default: %(default)s)")
    parser.add_argument(
        "--proxy", metavar="URL", help="HTTP proxy for a server elsewhere; '' for none (default: as http_proxy says)"
    )
    parser.add_argument(
        "--timeout", metavar="S", type=_positive, default=10.0, help="seconds to wait for an answer (default: 10)"
    )
    parser.add_argument("--limit", metavar="N", type=_count, help="the largest number of hits (default: 10)")
    parser.add_argument("--min-score", metavar="P", type=_number, help="leave hits with a lower score (0..1) out")
    parser.add_argument("--fusion", choices=[rule.value for rule in Fusion], help="how the members' votes are merged")
    parser.add_argument(
        "--weight",
        metavar="MEMBER=W",
        type=_weight,
        action="append",
        default=[],
        help="a member's weight; may be repeated; members not named get none",
    )
    parser.add_argument("--label", action="append", default=[], help="only hits of this label; may be repeated")
    parser.add_argument("--exclude-label", action="append", default=[], help="no hits of this label; may be repeated")
    parser.add_argument(
        "--exclude-query", action="store_true", help="leave the query itself and its near duplicates out"
    )
    parser.add_argument(
        "--crop", choices=[rule.value for rule in Crop], help="how the query is cut (default: as indexed)"
    )
    parser.add_argument("--expect", metavar="LABEL", help="the label hits should have; marks them right or wrong")
    add_connection_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document: a list with one object a query")
    parser.add_argument("--save", metavar="FILE", type=_sheet_path, help="draw the hits into a .png, .jpg or .webp")
    parser.set_defaults(usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Search, print, and draw if asked; 0 when every query was answered, else 1."""
    if not args.images and not args.id and not args.text and not args.like:
        args.usage_error(
            "--unlike ID needs something to move away from it: give an IMAGE, --id ID or --like ID"
            if args.unlike
            else "give at least one IMAGE, --id ID, --text WORDS or --like ID"
        )
    if both := set(args.like) & set(args.unlike):
        args.usage_error(f"{min(both)!r} cannot be both --like and --unlike: leave it out of one of them")
    queries = named_queries(args.images, args.id, args.text, args.expect)
    if not queries:
        more = f" and {len(args.like) - 1} more" if len(args.like) > 1 else ""
        queries = [NamedQuery(f"--like {args.like[0]}{more}", None, args.expect)]
    # A file or pipe has no width; one that has room for all columns is assumed.
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    console = Console(markup=False, highlight=False, emoji=False, width=width)
    outcomes: list[Outcome] = []
    with _client(args) as client:
        for query, outcome in zip(queries, _in_order(_outcomes(client, queries, _options(args))), strict=True):
            outcomes.append(outcome)
            if isinstance(outcome, CbirClientError):
                sys.stderr.write(f"cbir: {printable(query.name)}: {printable(str(outcome))}\n")
            elif not args.json:
                colours = member_colours(outcome.hits)
                print_result(console, query.name, outcome, colours, query.expected, args.like, args.unlike)
        if args.json:
            document = [
                search_document(query.name, outcome, query.expected, args.like, args.unlike)
                for query, outcome in zip(queries, outcomes, strict=True)
            ]
            sys.stdout.write(json.dumps(document, indent=2) + "\n")
        saved = args.save is None or _save_sheet(client, queries, outcomes, args)
    failed = sum(isinstance(outcome, CbirClientError) for outcome in outcomes)
    if failed and len(queries) > 1:
        sys.stderr.write(f"cbir: {failed} of {len(queries)} queries failed\n")
    return 1 if failed or not saved else 0


def _client(args: argparse.Namespace) -> Client:
    try:
        return Client(args.target, timeout=args.timeout, proxy=args.proxy, **connection(args))
    except (ValueError, OSError) as error:
        args.usage_error(str(error))
        raise


def _options(args: argparse.Namespace) -> SearchOptions:
    return {
        "limit": args.limit,
        "min_score": args.min_score,
        "fusion": args.fusion,
        "weights": dict(args.weight),
        "labels": args.label,
        "exclude_labels": args.exclude_label,
        "exclude_query": args.exclude_query,
        "crop": args.crop,
        "positive_ids": args.like,
        "negative_ids": args.unlike,
    }


def _outcomes(client: Client, queries: Sequence[NamedQuery], options: SearchOptions) -> Iterator[tuple[int, Outcome]]:
    """Yield the position and the outcome of each query, in the order in which they are ready."""
    if len(queries) == 1:
        try:
            yield 0, client.search(queries[0].query, **options)
        except (InvalidQuery, NotFound) as error:
            yield 0, error
    else:
        numbered = ((place, query.query) for place, query in enumerate(queries))
        yield from client.search_stream(numbered, **options)


def _in_order(outcomes: Iterator[tuple[int, Outcome]]) -> Iterator[Outcome]:
    """Yield the outcomes in the order of the queries, each as soon as those before it are there."""
    early: dict[int, Outcome] = {}
    turn = 0
    for place, outcome in outcomes:
        early[place] = outcome
        while turn in early:
            yield early.pop(turn)
            turn += 1


def _save_sheet(
    client: Client, queries: Sequence[NamedQuery], outcomes: Sequence[Outcome], args: argparse.Namespace
) -> bool:
    """Draw the first queries on a sheet; return whether the file could be written."""
    path: Path = args.save
    # Imported here, so that Pillow is only loaded with --save.
    from cbir.client.cli.pictures import fetch_thumbnails, query_picture
    from cbir.client.cli.sheet import PICTURE_SIDE, SheetRow, draw_sheet

    shown = list(zip(queries, outcomes, strict=True))[:_SHEET_QUERIES]
    if len(shown) < len(queries):
        sys.stderr.write(f"cbir: the sheet shows the first {len(shown)} of {len(queries)} queries\n")
    ids = {hit.image_id for _, outcome in shown if isinstance(outcome, SearchResult) for hit in outcome.hits}
    thumbnails = fetch_thumbnails(client, {*ids, *args.like, *args.unlike}, PICTURE_SIDE)
    if missing := len(ids - thumbnails.keys()):
        sys.stderr.write(f"cbir: {missing} of {len(ids)} hits have no preview\n")
    rows = [
        SheetRow(
            name=query.name,
            # Without a query, the first positive example is shown in its place.
            picture=query_picture(client, ImageId(args.like[0]) if query.query is None else query.query, PICTURE_SIDE),
            outcome=outcome if isinstance(outcome, SearchResult) else str(outcome),
            thumbnails=thumbnails,
            expected=query.expected,
            positives=args.like,
            negatives=args.unlike,
            words=query.query.text if isinstance(query.query, Text) else None,
        )
        for query, outcome in shown
    ]
    try:
        draw_sheet(rows).save(path, quality=92)
    except OSError as error:
        sys.stderr.write(f"cbir: cannot write {str(path)!r} ({error.strerror or error}): give another --save FILE\n")
        return False
    sys.stderr.write(f"cbir: saved {path}\n")
    return True


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _positive(text: str) -> float:
    value = _number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _weight(text: str) -> tuple[str, float]:
    member, equals, value = text.rpartition("=")
    try:
        if member and equals:
            return member, float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not of the form MEMBER=WEIGHT, such as clip=0.5")


def _sheet_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in _SHEET_SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} should end in {', '.join(_SHEET_SUFFIXES)}")
    if not path.parent.is_dir():
        # Checked here, before any query is sent.
        raise argparse.ArgumentTypeError(f"{text!r} is in a folder that does not exist")
    return path
