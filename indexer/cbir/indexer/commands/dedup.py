"""``cbir dedup``: list the near duplicates of an index.  Nothing is ever deleted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cbir.client.cli.argument_types import picture_path, whole
from cbir.indexer.commands.console import USER_ERRORS, add_store_arguments, print_json, stderr, vectors_of

if TYPE_CHECKING:
    from rich.text import Text

    from cbir.indexer.dedup import DedupReport, StoredFile

__all__ = ["USER_ERRORS", "add_arguments", "run"]

#: Largest --bits: hashes of unrelated images differ in about 32 of 64 bits, and much nearer to that, closeness means
#: nothing.
_MOST_BITS = 16
_PIPE_WIDTH = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("index", type=Path, metavar="INDEX", help="folder of the index")
    parser.add_argument(
        "--bits",
        type=whole(0, _MOST_BITS),
        metavar="N",
        help=f"most bits of 64 in which the perceptual hashes differ, 0 to {_MOST_BITS} (default: as in searches)",
    )
    parser.add_argument(
        "--symmetries", action="store_true",
        help="find copies that were rotated by 90, 180 or 270 degrees or mirrored too: takes longer, and reads images",
    )  # fmt: skip
    add_store_arguments(parser)
    parser.add_argument("--version-name", default=None, metavar="VERSION", help="default: the live version")
    parser.add_argument("--save", type=picture_path, metavar="FILE", help="draw the groups into a .png, .jpg or .webp")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print a JSON document to stdout")
    output.add_argument(
        "--list-extra", action="store_true", help="print the uris of the superfluous images alone, one a line"
    )


def run(args: argparse.Namespace) -> int:
    """Find near duplicates, list them, and draw them if asked to."""
    from cbir.core.artifacts import IndexStore
    from cbir.core.search import BITS
    from cbir.indexer.dedup import GROUPS_SHOWN, draw_duplicates, find_duplicates

    version = IndexStore(args.index).open(args.version_name)
    searcher = vectors_of(args, args.index).open(version) if version.manifest.store else None
    bits = BITS if args.bits is None else args.bits
    report = find_duplicates(str(args.index), version, bits, searcher, args.symmetries)
    if args.json:
        print_json(report.to_json())
    elif args.list_extra:
        for group in report.groups:
            for extra in group.extras:
                sys.stdout.write(extra.file.image.uri + "\n")
    elif report.groups:
        _print(report)
    summary = _summary(report)
    stderr().print(summary, soft_wrap=True, markup=False)
    if args.save:
        draw_duplicates(report.groups, summary).save(args.save, quality=92)
        note = f" (the first {GROUPS_SHOWN} groups)" if len(report.groups) > GROUPS_SHOWN else ""
        stderr().print(f"saved {args.save}{note}", soft_wrap=True, markup=False)
    return 0


def _summary(report: DedupReport) -> str:
    from cbir.indexer.dedup import size_text

    if not report.groups:
        return f"no near duplicates among {report.images} images"
    return (
        f"{len(report.groups)} groups with {report.extras} superfluous images ({size_text(report.extra_bytes)}) among "
        f"{report.images}; nothing was deleted"
    )


def _print(report: DedupReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A pipe has no width; one that has room for all columns is assumed.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    table = Table("", "id", "pixels", "size", "bits", "alike", "turned", "uri")
    for group in report.groups:
        table.add_row("keep", *_facts(group.keep), "", "", "", Text(group.keep.image.uri))
        for place, extra in enumerate(group.extras, 1):
            alike = "bytes" if extra.same_bytes else f"{extra.similarity:.2f}"
            table.add_row(
                "extra", *_facts(extra.file), str(extra.bits), alike, extra.symmetry or "", Text(extra.file.image.uri),
                end_section=place == len(group.extras),
            )  # fmt: skip
    console.print(table)


def _facts(file: StoredFile) -> tuple[Text, str, str]:
    from rich.text import Text

    from cbir.indexer.dedup import size_text

    image = file.image
    return Text(image.id), f"{image.width} x {image.height}", size_text(file.bytes)
