"""``cbir index``: build or update an index and publish a new version."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cbir.client.cli.argument_types import number
from cbir.core.errors import ConfigurationError
from cbir.indexer.commands.console import (
    USER_ERRORS,
    add_device_arguments,
    add_exclude_argument,
    add_sign_argument,
    add_store_arguments,
    amount,
    positive,
    print_json,
    printable,
    progress_printer,
    signing_key,
    stderr,
    vectors_of,
    writing_to,
)

if TYPE_CHECKING:
    from cbir.core.search import VectorStore
    from cbir.indexer.build import IndexReport

__all__ = ["USER_ERRORS", "add_arguments", "run"]

_SHOWN = 10
#: Fewest images that metrics are fitted on.
_FEWEST = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from cbir.core.ensemble import BUILT_IN, DEFAULT_ENSEMBLE
    from cbir.core.images import DecodeLimits

    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folder, .zip, .tar, .csv, .parquet or .arrow of images, shards such as data-{000..099}.tar, or a URL",
    )
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
    _add_ray_arguments(parser)
    parser.add_argument(
        "--index", default=None, metavar="KIND", help="auto, exact, faiss:<factory string> or annoy:<trees>, for all"
    )
    parser.add_argument(
        "--pseudo-labels", action="store_true", help="fit the GLRT metric on neighbours even where there are labels"
    )
    parser.add_argument(
        "--label-vote", type=number(0, 100), default=None, metavar="LAMBDA",
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
    parser.add_argument(
        "--fit-sample", type=amount, default=None, metavar="N",
        help="fit metrics on so many images of a larger gallery (default 50,000, at least 1,000)",
    )  # fmt: skip
    parser.add_argument("--forget-tuning", action="store_true", help="drop what `cbir tune` chose")
    parser.add_argument("--rebuild", action="store_true", help="publish anew though nothing changed (mends damage)")
    parser.add_argument(
        "--store", choices=("local", "milvus"), default=None,
        help="where vectors are kept (default: milvus where --milvus-uri is given, else the index's files)",
    )  # fmt: skip
    add_store_arguments(parser)
    add_sign_argument(parser)
    parser.add_argument(
        "--background", action="store_true",
        help="compute only while no other program wants the processor, such as a server on the same machine",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a JSON report to stdout")


def _add_ray_arguments(parser: argparse.ArgumentParser) -> None:
    from cbir.indexer.build import RUNNERS

    group = parser.add_argument_group("a cluster that embeds", "see docs/scaling.md; extra `ray`")
    group.add_argument("--runner", choices=tuple(RUNNERS), default="local", help="where embedding runs (local)")
    group.add_argument("--ray-address", metavar="ADDRESS", help="of the cluster (default: one is started here)")
    group.add_argument("--ray-workers", type=positive, metavar="N", help="workers (default: as many as fit)")
    group.add_argument("--ray-cpus", type=_part, default=1.0, metavar="N", help="CPUs of a worker (1)")
    group.add_argument("--ray-gpus", type=_part, default=0.0, metavar="N", help="GPUs of a worker, such as 0.5 (0)")
    group.add_argument(
        "--ray-blocks", metavar="URL",
        help="where workers leave what they embedded, such as s3://bucket/run, if they do not see the index's folder",
    )  # fmt: skip


def _part(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1024:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1024")
    return value


def _store(args: argparse.Namespace) -> VectorStore:
    """The store that the options name; an index whose vectors are in Milvus stays there unless told otherwise."""
    from cbir.indexer.build import store_of_index

    if args.store == "local" and args.milvus_uri:
        raise ConfigurationError("--store local has no use for --milvus-uri: leave one out", reason="BAD_OPTION")
    if args.store == "milvus" and not args.milvus_uri:
        raise ConfigurationError("--store milvus needs --milvus-uri: say where Milvus is", reason="BAD_OPTION")
    store = vectors_of(args, args.out)
    if args.store is None and (kept := store_of_index(args.out)) not in (None, store.kind):
        raise ConfigurationError(
            f"the vectors of the index {args.out} are in the store {kept!r}: say where that is with --{kept}-uri, or "
            f"move them with --store {store.kind}",
            reason="STORE_MISMATCH",
        )
    return store


def run(args: argparse.Namespace) -> int:
    """Build or update the index, and say what was done."""
    from cbir.core.ensemble import DEFAULT_ENSEMBLE, load_ensemble
    from cbir.core.images import DecodeLimits
    from cbir.core.machine import give_way
    from cbir.indexer.build import FitSettings, RaySettings, RunSettings, build, ensemble_of_index
    from cbir.indexer.sources import open_sources

    if args.background:
        give_way()
    vectors = _store(args)
    kept = None if args.ensemble else ensemble_of_index(args.out)
    ensemble = kept or load_ensemble(args.ensemble or DEFAULT_ENSEMBLE)
    key = signing_key(args)
    limits = DecodeLimits(max_bytes=args.max_bytes, max_pixels=args.max_pixels)
    cluster = RaySettings(args.ray_address, args.ray_workers or 0, args.ray_cpus, args.ray_gpus, args.ray_blocks)
    settings = RunSettings(
        args.device, args.runtime, args.batch, args.workers or 0, limits=limits, runner=args.runner, ray=cluster
    )
    sample = None if args.fit_sample is None else max(_FEWEST, args.fit_sample)
    fit = FitSettings(args.pseudo_labels, args.label_vote, args.index, args.rebuild, not args.forget_tuning, sample)
    sources = open_sources(args.sources, exclude=args.exclude, max_bytes=args.max_bytes)
    try:
        with progress_printer() as report, writing_to(args.out):
            result = build(sources, args.out, ensemble, settings, fit, report, key=key, vectors=vectors)
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
