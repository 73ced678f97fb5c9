"""``cbir bench``: measure speed."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from cbir.client.cli.argument_types import number, numbers, whole
from cbir.core.errors import CbirError, ConfigurationError
from cbir.core.machine import idle_quietly

__all__ = ["USER_ERRORS", "add_arguments", "run"]

USER_ERRORS: tuple[type[Exception], ...] = (CbirError, OSError)

_KINDS = ("image", "embedding", "id")
_count = whole(1, 4096)
_amount = number(above=0, most=3600)
_amounts = numbers(_amount)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    # These are the indexer's; whoever calls them never comes here.
    what.add_parser("index", help="the indexer: images a second, against its limits")
    what.add_parser("search", help="search in a large gallery, by kinds of index")
    serve = what.add_parser("serve", help="the server: latency, throughput, overload, against its limits")
    serve.add_argument("index", metavar="INDEX", type=Path, nargs="?", help="a server is started on it")
    serve.add_argument("--target", metavar="HOST:PORT", help="a server that runs already")
    queries = serve.add_argument_group("queries")
    queries.add_argument(
        "--images",
        type=Path,
        metavar="SOURCE",
        help="folder or .zip of query images (default: the gallery's, or drawn)",
    )
    queries.add_argument(
        "--embeddings",
        type=Path,
        metavar="FILE",
        help=".npz with an array of vectors a member, for --kind embedding (default: random ones, like nothing)",
    )
    queries.add_argument(
        "--kind", dest="kinds", choices=_KINDS, nargs="+", default=list(_KINDS),
        help="the first is used for open loops, reloads and cancellation (default: all)",
    )  # fmt: skip
    queries.add_argument("--channels", type=_count, default=1, metavar="N", help="connections (default: %(default)s)")
    queries.add_argument(
        "--generators", type=_count, default=1, metavar="N",
        help="processes that send the open loops, each with so many connections (default: %(default)s)",
    )  # fmt: skip
    load = serve.add_argument_group("load")
    load.add_argument(
        "--concurrency", type=_counts, default=(1, 2, 4, 8, 16, 32, 64), metavar="N,N..",
        help="requests in flight, closed loop (default: 1,2,4,8,16,32,64)",
    )  # fmt: skip
    load.add_argument(
        "--seconds", type=_amount, default=3.0, metavar="S", help="a load and round (default: %(default)s)"
    )
    load.add_argument("--rounds", type=_count, default=2, metavar="N", help="default: %(default)s")
    load.add_argument(
        "--open", dest="fractions", type=_amounts, default=(0.7, 3.0), metavar="X,X..",
        help="open loops at these fractions of the measured capacity (default: 0.7,3)",
    )  # fmt: skip
    load.add_argument(
        "--open-seconds", type=_amount, metavar="S", help="of an open loop (default: four times --seconds)"
    )
    load.add_argument("--arrivals", choices=("poisson", "constant"), default="poisson", help="default: %(default)s")
    load.add_argument(
        "--deadline", type=_amount, metavar="S",
        help="within which an answer is good, open loop (default: 1, or 20 times the median of one in flight)",
    )  # fmt: skip
    load.add_argument("--quick", action="store_true", help="a fraction of a second each: shows that it works, no more")
    load.add_argument("--seed", type=int, default=0, help="of arrivals and embeddings (default: %(default)s)")
    more = serve.add_argument_group("more measurements")
    more.add_argument("--no-limits", action="store_true", help="no echo, and no second engine to compare with")
    more.add_argument("--reloads", type=_count, default=0, metavar="N", help="reload that often under load")
    more.add_argument(
        "--reload-load", type=_amount, default=0.3, metavar="X", help="fraction of capacity (default: %(default)s)"
    )
    more.add_argument("--cancel", action="store_true", help="cancel half of the requests and read the counters")
    more.add_argument("--cached", action="store_true", help="few images again and again, with the server's cache on")
    more.add_argument(
        "--processes", type=_count, default=1, metavar="N", help="compare with N servers that share the cores"
    )
    served = serve.add_argument_group("the server that is started")
    served.add_argument("--ensemble", metavar="NAME|FILE", help="where the weights are now")
    served.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    served.add_argument("--runtime", choices=("auto", "openvino", "torch"), default="auto", help="default: %(default)s")
    served.add_argument("--max-batch", type=_count, default=32, metavar="N", help="default: %(default)s")
    served.add_argument(
        "--serve", default="", metavar="OPTIONS", help='further options of cbir serve: --serve="--queue 64"'
    )
    output = serve.add_argument_group("output")
    output.add_argument("--out", type=Path, metavar="DIR", help="write results.json and serve.png there")
    output.add_argument("--json", action="store_true", help="one JSON document on stdout")


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({_count(part) for part in text.split(",")}))


def run(args: argparse.Namespace) -> int:
    """Measure, print the results, and write them to files.

    Raises:
        CbirError: The server or the engine cannot be loaded.
    """
    # As in ``cbir serve``, so that the bare engine computes under the same conditions as the server.
    idle_quietly()
    # Imported here, so that --help and wrong usage do not wait for torch.
    import grpc
    import uvloop
    from rich.console import Console

    from cbir.server.bench import draw, measure, print_tables

    # Without this, gRPC prints a line for each server that is started.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=True, highlight=False, width=150)
    plan = _plan(args)
    with console.status("") as status:
        say = status.update if console.is_terminal else lambda text: console.print(text, style="dim", soft_wrap=True)
        try:
            document = uvloop.run(measure(plan, say))
        except grpc.RpcError as error:
            raise ConfigurationError(
                f"the server failed while it was measured ({error}): look at its log", reason="BENCH_SERVER"
            ) from error
    document["command"] = shlex.join(["cbir", *sys.argv[1:]])
    print_tables(console, document)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        draw(document, args.out / "serve.png")
        console.print(f"{args.out / 'results.json'}, {args.out / 'serve.png'}", soft_wrap=True)
    if args.json:
        print(json.dumps(document, indent=1), flush=True)  # noqa: T201
    return 0


def _plan(args: argparse.Namespace) -> Any:
    from cbir.server.bench import Plan

    quick = args.quick
    return Plan(
        index=args.index, target=args.target, images=args.images, embeddings=args.embeddings,
        kinds=tuple(dict.fromkeys(args.kinds)),
        concurrency=(1, 8, 32) if quick else args.concurrency,
        seconds=min(args.seconds, 0.4) if quick else args.seconds,
        rounds=1 if quick else args.rounds,
        fractions=args.fractions, arrivals=args.arrivals, deadline=args.deadline, limits=not args.no_limits,
        reloads=args.reloads, reload_load=args.reload_load, cancel=args.cancel, cached=args.cached,
        processes=args.processes, channels=args.channels, generators=args.generators,
        open_seconds=None if quick else args.open_seconds, seed=args.seed, serve=tuple(_serve_options(args)),
    )  # fmt: skip


def _serve_options(args: argparse.Namespace) -> list[str]:
    options = ["--device", args.device, "--runtime", args.runtime, "--max-batch", str(args.max_batch)]
    if args.ensemble:
        options += ["--ensemble", args.ensemble]
    return [*options, *shlex.split(args.serve)]
