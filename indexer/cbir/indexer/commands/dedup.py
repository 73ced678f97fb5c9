"""``cbir dedup``: list the near duplicates of an index.  Nothing is ever deleted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cbir.core.artifacts import IndexStore
from cbir.core.search import BITS
from cbir.indexer.commands.console import USER_ERRORS, add_store_arguments, print_json, stderr, vectors_of
from cbir.indexer.dedup import GROUPS_SHOWN, DedupReport, StoredFile, draw_duplicates, find_duplicates, size_text

__all__ = ["USER_ERRORS", "add_arguments", "run"]

#: Largest --bits: hashes of unrelated images differ in about 32 of 64 bits, and much nearer to that, closeness means
#: nothing.
_MOST_BITS = 16
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_PIPE_WIDTH = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("index", type=Path, metavar="INDEX", help="folder of the index")
    parser.add_argument(
        "--bits",
        type=_bits,
        default=BITS,
        metavar="N",
        help=f"most bits of 64 in which the perceptual hashes differ, 0 to {_MOST_BITS} (default: %(default)s)",
    )
    add_store_arguments(parser)
    parser.add_argument("--version-name", default=None, metavar="VERSION", help="default: the live version")
    parser.add_argument("--save", type=_picture_path, metavar="FILE", help="draw the groups into a .png, .jpg or .webp")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print a JSON document to stdout")
    output.add_argument(
        "--list-extra", action="store_true", help="print the uris of the superfluous images alone, one a line"
    )


def _bits(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if not 0 <= value <= _MOST_BITS:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to {_MOST_BITS}")
    return value


def _picture_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in _SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text!r} should end in {', '.join(_SUFFIXES)}")
    if not path.parent.is_dir():
        # Checked here, before any work is done.
        raise argparse.ArgumentTypeError(f"{text!r} is in a folder that does not exist")
    return path


def run(args: argparse.Namespace) -> int:
    """Find near duplicates, list them, and draw them if asked to."""
    version = IndexStore(args.index).open(args.version_name)
    searcher = vectors_of(args, args.index).open(version) if version.manifest.store else None
    report = find_duplicates(str(args.index), version, args.bits, searcher)
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
    if not report.groups:
        return f"no near duplicates among {report.images} images"
    return (
        f"{len(report.groups)} groups with {report.extras} superfluous images ({size_text(report.extra_bytes)}) among "
        f"{report.images}; nothing was deleted"
    )


def _print(report: DedupReport) -> None:
    # A pipe has no width; one that has room for all columns is assumed.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    table = Table("", "id", "pixels", "size", "bits", "alike", "uri")
    for group in report.groups:
        table.add_row("keep", *_facts(group.keep), "", "", Text(group.keep.image.uri))
        for place, extra in enumerate(group.extras, 1):
            alike = "bytes" if extra.same_bytes else f"{extra.similarity:.2f}"
            table.add_row(
                "extra", *_facts(extra.file), str(extra.bits), alike, Text(extra.file.image.uri),
                end_section=place == len(group.extras),
            )  # fmt: skip
    console.print(table)


def _facts(file: StoredFile) -> tuple[Text, str, str]:
    image = file.image
    return Text(image.id), f"{image.width} x {image.height}", size_text(file.bytes)
