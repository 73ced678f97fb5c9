"""``cbir search``: query a server from the shell."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbir.client import (
    CbirClientError,
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
from cbir.client.cli.argument_types import number, picture_path, positive
from cbir.client.cli.connection import add_connection_arguments, connect
from cbir.client.cli.document import search_document
from cbir.client.cli.query_files import NamedQuery, listed_queries, named_queries
from cbir.client.cli.terminal import printable

if TYPE_CHECKING:
    from cbir.client import Client

__all__ = ["EXAMPLES", "USER_ERRORS", "add_arguments", "run"]

USER_ERRORS: tuple[type[Exception], ...] = (CbirClientError, OSError)
EXAMPLES = (
    ("cbir search cat.jpg --save hits.png", "the hits as a table and as a picture"),
    ("cbir search photos/ --jsonl > hits.jsonl", "every image below a folder, each answer as it comes"),
    ("find . -name '*.jpg' | cbir search --files-from - --json", "the files that another program names"),
    ("cbir search --text 'a red car' --exclude-label truck", "by words, where the ensemble reads"),
    ("cbir search --like photos/1.jpg --like photos/2.jpg --unlike photos/3.jpg", "by examples of the gallery"),
    ("cbir search cat.jpg --weight clip=1 --weight vit=0.5", "with other weights of the members"),
)

_PIPE_WIDTH = 200
#: Most queries on a sheet: a taller one could not be looked at, nor held in memory.
_SHEET_QUERIES = 24

Outcome = SearchResult | CbirClientError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="image file, folder of images, or - for stdin")
    parser.add_argument(
        "--files-from", metavar="FILE", help="a file that names an image file on each line, or - for stdin"
    )
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
    parser.add_argument("--limit", metavar="N", type=positive, help="the largest number of hits (default: 10)")
    parser.add_argument("--min-score", metavar="P", type=number(), help="leave hits with a lower score (0..1) out")
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
    parser.add_argument(
        "--expect", metavar="LABEL", action="append", default=[],
        help="a label that hits may have, others are marked wrong; may be repeated (default: the names of the "
        "sub-folders, for images of a folder)",
    )  # fmt: skip
    parser.add_argument(
        "--expect-folder", action="store_true", help="each file's hits should have the name of its own folder as label"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON document: a list with one object a query")
    output.add_argument(
        "--jsonl", action="store_true",
        help="print one JSON object a line, each as soon as its answer is there: for any number of files",
    )  # fmt: skip
    parser.add_argument("--save", metavar="FILE", type=picture_path, help="draw the hits into a .png, .jpg or .webp")
    add_connection_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Search, print, and draw if asked; 0 when every query was answered, else 1."""
    from rich.console import Console

    from cbir.client.cli.table import print_result

    if not (args.images or args.files_from or args.id or args.text or args.like):
        args.usage_error(
            "--unlike ID needs something to move away from it: give an IMAGE, --id ID or --like ID"
            if args.unlike
            else "give at least one IMAGE, --files-from FILE, --id ID, --text WORDS or --like ID"
        )
    if both := set(args.like) & set(args.unlike):
        args.usage_error(f"{min(both)!r} cannot be both --like and --unlike: leave it out of one of them")
    if args.expect and args.expect_folder:
        args.usage_error("--expect and --expect-folder both say which labels are right: leave one of them out")
    queries = _queries(args)
    # A file or pipe has no width; one that has room for all columns is assumed.
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    console = Console(markup=False, highlight=False, emoji=False, width=width)
    with connect(args) as client:
        asked = _Asked(queries, keep=_SHEET_QUERIES if args.save else 0)
        started = False
        for query, outcome in _in_order(_outcomes(client, asked, _options(args))):
            if isinstance(outcome, CbirClientError):
                sys.stderr.write(f"cbir: {printable(query.name)}: {printable(str(outcome))}\n")
            if args.json or args.jsonl:
                document = search_document(query.name, outcome, query.expected, args.like, args.unlike)
                _write_document(document, args.json, started)
            elif not isinstance(outcome, CbirClientError):
                colours = member_colours(outcome.hits)
                print_result(console, query.name, outcome, colours, query.expected, args.like, args.unlike)
            started = True
            asked.answered(query, outcome)
        if args.json:
            sys.stdout.write("\n]\n" if started else "[]\n")
        saved = args.save is None or _save_sheet(client, asked, args)
    if asked.failed and asked.count > 1:
        sys.stderr.write(f"cbir: {asked.failed} of {asked.count} queries failed\n")
    return 1 if asked.failed or not saved else 0


def _queries(args: argparse.Namespace) -> Iterator[NamedQuery]:
    """The queries, one after the other: there may be more of them than memory has room for."""
    expected = tuple(args.expect)
    given = named_queries(args.images, args.id, args.text, expected, folder_names=args.expect_folder)
    yield from given
    listed = 0
    if args.files_from:
        for query in listed_queries(args.files_from, expected, folder_names=args.expect_folder):
            listed += 1
            yield query
    if not given and not listed and args.like:
        more = f" and {len(args.like) - 1} more" if len(args.like) > 1 else ""
        yield NamedQuery(f"--like {args.like[0]}{more}", None, expected)


def _write_document(document: dict[str, Any], in_list: bool, started: bool) -> None:
    """Write one answer: a line of its own, or the next item of a list."""
    if in_list:
        text = json.dumps(document, indent=2)
        indented = "\n".join(f"  {line}" for line in text.splitlines())
        sys.stdout.write(f"{',' if started else '['}\n{indented}")
    else:
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()


class _Asked:
    """What has been asked, by number: queries that are under way, and the first ones with their answers.

    Attributes:
        shown: The first queries with their answers.
        count: Queries that were answered.
        failed: Those without a result.
    """

    def __init__(self, queries: Iterator[NamedQuery], keep: int) -> None:
        self._queries, self._keep = queries, keep
        self.under_way: dict[int, NamedQuery] = {}
        self.shown: list[tuple[NamedQuery, Outcome]] = []
        self.count = self.failed = 0

    def __iter__(self) -> Iterator[tuple[int, NamedQuery]]:
        for place, query in enumerate(self._queries):
            self.under_way[place] = query
            yield place, query

    def answered(self, query: NamedQuery, outcome: Outcome) -> None:
        """Count an answer, and keep it if it is one of the first."""
        self.count += 1
        self.failed += isinstance(outcome, CbirClientError)
        if len(self.shown) < self._keep:
            self.shown.append((query, outcome))


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


def _outcomes(client: Client, asked: _Asked, options: SearchOptions) -> Iterator[tuple[int, NamedQuery, Outcome]]:
    """Yield the number, the query and the outcome of each query, in the order in which they are ready."""
    numbered = iter(asked)
    first = list(itertools.islice(numbered, 2))
    if len(first) == 1:
        place, query = first[0]
        try:
            yield place, query, client.search(query.query, **options)
        except (InvalidQuery, NotFound) as error:
            yield place, query, error
        return
    pairs = ((place, query.query) for place, query in itertools.chain(first, numbered))
    for place, outcome in client.search_stream(pairs, **options):
        yield place, asked.under_way.pop(place), outcome


def _in_order(outcomes: Iterator[tuple[int, NamedQuery, Outcome]]) -> Iterator[tuple[NamedQuery, Outcome]]:
    """Yield the outcomes in the order of the queries, each as soon as those before it are there."""
    early: dict[int, tuple[NamedQuery, Outcome]] = {}
    turn = 0
    for place, query, outcome in outcomes:
        early[place] = query, outcome
        while turn in early:
            yield early.pop(turn)
            turn += 1


def _save_sheet(client: Client, asked: _Asked, args: argparse.Namespace) -> bool:
    """Draw the first queries on a sheet; return whether there was something to draw and the file could be written."""
    path: Path = args.save
    shown = asked.shown
    if not any(isinstance(outcome, SearchResult) for _, outcome in shown):
        sys.stderr.write(f"cbir: {path} is not written: none of the queries was answered\n")
        return False
    # Imported here, so that Pillow is only loaded with --save.
    from cbir.client.cli.canvas import save_picture
    from cbir.client.cli.pictures import fetch_thumbnails, query_picture
    from cbir.client.cli.sheet import PICTURE_SIDE, SheetRow, draw_sheet

    if len(shown) < asked.count:
        sys.stderr.write(f"cbir: the sheet shows the first {len(shown)} of {asked.count} queries\n")
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
        save_picture(draw_sheet(rows), path)
    except OSError as error:
        sys.stderr.write(f"cbir: cannot write {str(path)!r} ({error.strerror or error}): give another --save FILE\n")
        return False
    sys.stderr.write(f"cbir: saved {path}\n")
    return True


def _weight(text: str) -> tuple[str, float]:
    member, equals, value = text.rpartition("=")
    try:
        if member and equals:
            return member, float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not of the form MEMBER=WEIGHT, such as clip=0.5")
