"""``cbir bench search``: measure how fast a large gallery is written, loaded and searched, by kinds of index."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from cbir.indexer.commands.console import USER_ERRORS, positive, write_measurement

__all__ = ["USER_ERRORS", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--images", type=int, default=100_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--members", type=positive, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--dim", type=positive, default=128, metavar="N", help="of each member (default: %(default)s)")
    parser.add_argument(
        "--kind", dest="kinds", action="append", metavar="KIND",
        help="exact, faiss:<factory string> or annoy:<trees>; may be given several times (default: one of each family)",
    )  # fmt: skip
    parser.add_argument("--queries", type=positive, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--no-change", action="store_true", help="do not measure a small change of the gallery")
    parser.add_argument("--quick", action="store_true", help="a small gallery: shows that it works, no more")
    parser.add_argument("--seed", type=int, default=0, help="of vectors and queries (default: %(default)s)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder with room for the gallery")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write results.json and bench.png there")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    """Measure, print the results, and write them to files."""
    from cbir.core.vector_index import check_index
    from cbir.indexer.bench import SearchPlan, measure_search

    images = min(args.images, 3000) if args.quick else args.images
    kinds = tuple(args.kinds or default_kinds(images, args.dim))
    for kind in kinds:
        check_index(kind)
    with tempfile.TemporaryDirectory(prefix="cbir-bench-", dir=args.work) as work:
        plan = SearchPlan(
            images, args.members, args.dim, kinds, min(args.queries, 20) if args.quick else args.queries, args.seed,
            Path(work) / "work", not args.no_change,
        )  # fmt: skip
        return write_measurement(args, lambda say: measure_search(plan, say))


def default_kinds(images: int, dim: int) -> list[str]:
    """One of each family, for a gallery of this size; Annoy where it is installed."""
    import importlib.util

    lists = max(4, min(int(4 * images**0.5), images // 64))
    parts = next(parts for parts in (dim // 2, dim // 4, 1) if parts and dim % parts == 0)
    kinds = ["exact", f"faiss:IVF{lists},PQ{parts}x4fs", f"faiss:IVF{lists},SQ8", "faiss:HNSW32,SQ8"]
    return [*kinds, "annoy:20"] if importlib.util.find_spec("annoy") else kinds
