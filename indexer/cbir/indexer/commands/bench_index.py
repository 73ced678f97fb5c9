"""``cbir bench index``: measure how fast images are embedded."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from cbir.indexer.commands.console import USER_ERRORS, add_device_arguments, positive, write_measurement

__all__ = ["USER_ERRORS", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="images (default: pictures are drawn)")
    parser.add_argument("--ensemble", metavar="NAME|FILE", help="default: the built-in one of `cbir index`")
    parser.add_argument("--images", type=positive, default=512, metavar="N", help="default: %(default)s")
    parser.add_argument("--loop", type=positive, default=64, metavar="N", help="images of the loop that users write")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--batch", type=positive, default=32, help="images a forward pass (default 32)")
    parser.add_argument("--workers", type=positive, default=None, help="decoding threads (default: one a core)")
    add_device_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="few images, once: shows that it works, no more")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn and chosen (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write results.json and bench.png there")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    """Measure, print the results, and write them to files."""
    from cbir.core.ensemble import DEFAULT_ENSEMBLE, load_ensemble
    from cbir.indexer.bench import IndexPlan, measure_index
    from cbir.indexer.build import RunSettings

    quick = args.quick
    with tempfile.TemporaryDirectory(prefix="cbir-bench-") as work:
        plan = IndexPlan(
            load_ensemble(args.ensemble or DEFAULT_ENSEMBLE), tuple(args.sources),
            min(args.images, 24) if quick else args.images, min(args.loop, 4) if quick else args.loop,
            1 if quick else args.rounds,
            RunSettings(args.device, args.runtime, args.batch, args.workers or 0), args.seed, Path(work) / "work",
        )  # fmt: skip
        return write_measurement(args, lambda say: measure_index(plan, say))
