"""``cbir list``: the images of a server's gallery, whose ids other commands take."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cbir.client import CbirClientError
from cbir.client.cli.argument_types import positive
from cbir.client.cli.connection import add_connection_arguments, connect
from cbir.client.cli.terminal import printable

if TYPE_CHECKING:
    from cbir.client import Client, Facet, GalleryImage

__all__ = ["EXAMPLES", "USER_ERRORS", "add_arguments", "run"]

USER_ERRORS: tuple[type[Exception], ...] = (CbirClientError,)
EXAMPLES = (
    ("cbir list --limit 20", "the first ids"),
    ("cbir list --label cat --prefix 2024/ --json", "cats whose ids begin so, with all that is known of them"),
    ("cbir list --facets", "labels and metadata columns, and how many images have each"),
    ("cbir search --id \"$(cbir list --label cat --limit 1 --ids)\"", "more like the first cat"),
)  # fmt: skip

_TERMINAL_LIMIT = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--prefix", default="", metavar="TEXT", help="only ids that begin so")
    parser.add_argument("--label", action="append", default=[], help="only images of this label; may be repeated")
    parser.add_argument("--exclude-label", action="append", default=[], help="none of this label; may be repeated")
    parser.add_argument(
        "--metadata", type=_condition, action="append", default=[], metavar="COLUMN=VALUE",
        help="only images with this value there; may be repeated",
    )  # fmt: skip
    parser.add_argument("--limit", type=positive, metavar="N", help="list the first N only")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--ids", action="store_true", help="print ids alone, one a line")
    what.add_argument("--facets", action="store_true", help="list labels and metadata columns in place of images")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_connection_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """List what was asked for."""
    with connect(args) as client:
        if args.facets:
            return _facets(client, args)
        images: Iterable[GalleryImage] = client.images(
            labels=args.label,
            exclude_labels=args.exclude_label,
            metadata=_merged(args.metadata),
            prefix=args.prefix,
            page_size=min(args.limit or 1000, 1000),
        )
        if args.limit:
            images = itertools.islice(images, args.limit)
        if args.json:
            _print_document(images)
        elif sys.stdout.isatty() and not args.ids:
            _print_table(images)
        else:
            for image in images:
                line = (image.image_id,) if args.ids else (image.image_id, image.label or "")
                sys.stdout.write("\t".join(printable(part) for part in line) + "\n")
    return 0


def _facets(client: Client, args: argparse.Namespace) -> int:
    found = client.facets(limit=args.limit or 1000)
    facets = {"label": found.labels, **{f"metadata {name}": facet for name, facet in found.metadata.items()}}
    if args.json:
        document = {name: {"distinct": facet.distinct, "values": dict(facet.values)} for name, facet in facets.items()}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return 0
    for name, facet in facets.items():
        for value, images in facet.values.items():
            sys.stdout.write(f"{printable(name)}\t{printable(value)}\t{images}\n")
        _say_what_is_left_out(name, facet)
    return 0


def _say_what_is_left_out(name: str, facet: Facet) -> None:
    if facet.distinct > len(facet.values):
        left = facet.distinct - len(facet.values)
        sys.stderr.write(f"cbir: {left} more values of {printable(name)} are left out\n")


def _print_document(images: Iterable[GalleryImage]) -> None:
    """Write a list of any length, each image as it comes."""
    start = "["
    for image in images:
        document = {"image_id": image.image_id, "label": image.label, "width": image.width, "height": image.height,
                    "metadata": dict(image.metadata)}  # fmt: skip
        sys.stdout.write(f"{start}\n{json.dumps(document)}")
        start = ","
    sys.stdout.write("[]\n" if start == "[" else "\n]\n")


def _print_table(images: Iterable[GalleryImage]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(markup=False, highlight=False, emoji=False)
    table = Table("id", "label", "pixels", box=None, header_style="dim", pad_edge=False)
    images = iter(images)
    for image in itertools.islice(images, _TERMINAL_LIMIT):
        pixels = Text(f"{image.width} x {image.height}", style="dim")
        table.add_row(Text(printable(image.image_id)), Text(printable(image.label or "-"), style="cyan"), pixels)
    console.print(table)
    if next(images, None) is not None:
        sys.stderr.write(f"cbir: these are the first {_TERMINAL_LIMIT}; a pipe or --json gets all\n")


def _condition(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not (column and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form COLUMN=VALUE, such as shelf=7")
    return column, value


def _merged(conditions: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Values of one column are alternatives."""
    merged: dict[str, list[str]] = {}
    for column, value in conditions:
        merged.setdefault(column, []).append(value)
    return merged
