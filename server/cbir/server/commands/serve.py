"""``cbir serve``: the gRPC server over an index."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cbir.core.errors import CbirError
from cbir.core.threads import Threads, idle_quietly, share_out
from cbir.server.limits import GRACE, Limits

if TYPE_CHECKING:
    from cbir.server.deployment import EngineConfig
    from cbir.server.lifecycle import Server

__all__ = ["USER_ERRORS", "add_arguments", "engine_config", "run"]

USER_ERRORS: tuple[type[Exception], ...] = (CbirError,)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    defaults = Limits()
    parser.add_argument("path", metavar="INDEX", type=Path, help="folder that `cbir index` wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=50051, help="0: any free one (default: %(default)s)")
    parser.add_argument(
        "--ensemble", metavar="NAME|FILE", help="where the weights are now (default: where the index was made)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    parser.add_argument("--runtime", choices=("auto", "openvino", "torch"), default="auto", help="default: %(default)s")
    parser.add_argument(
        "--precision", choices=("auto", "f32", "bf16", "f16", "int8"), default="auto",
        help="what models compute with; auto: half precision where it is fast and agrees; int8: faster on any CPU, "
        "calibrated with indexed images at the first start (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=_positive, metavar="N",
        help="threads of a model's forward pass on a CPU (default: as many as its runtime thinks best)",
    )  # fmt: skip
    parser.add_argument("--index", dest="search", choices=("exact",), help="ignore approximate indexes")
    parser.add_argument(
        "--max-batch", type=_positive, default=defaults.max_batch, metavar="N", help="default: %(default)s queries"
    )
    parser.add_argument(
        "--max-delay", type=_milliseconds, default=defaults.max_delay, metavar="MS",
        help="milliseconds that an idle engine waits for a batch to fill (default: 0, it starts at once)",
    )  # fmt: skip
    parser.add_argument(
        "--queue", type=_positive, default=defaults.queue, metavar="N",
        help="query images that may wait; more are refused (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--cache-entries", type=_whole_number, default=defaults.cache_entries, metavar="N",
        help="answers that are kept for when the same is asked again; 0: none (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--max-image-bytes", type=_positive, default=defaults.max_image_bytes, metavar="N",
        help="largest query image (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--no-text", action="store_true", help="load no text towers: saves their memory, takes no queries in words"
    )
    parser.add_argument("--verify", action="store_true", help="compare every file with its checksum first")
    parser.add_argument("--version-name", metavar="V", help="the version to serve (default: the live one)")
    parser.add_argument(
        "--grace", type=_seconds, default=GRACE, metavar="S",
        help="seconds that calls under way get when the server is stopped (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--metrics-port",
        type=_port,
        default=0,
        metavar="PORT",
        help="for Prometheus (default: no metrics)",
    )
    parser.add_argument("--metrics-host", metavar="HOST", help="address for the metrics (default: the same as --host)")
    parser.add_argument("--json", action="store_true", help="once ready, one line with address, port and version")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; a second one stops at once.

    Raises:
        CbirError: The index cannot be served, or the port not be had.
    """
    idle_quietly()
    # Libraries that start programs while they load would make gRPC print a line for each fork; this server never forks.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Here and not above: whoever only asks for help need not have it.
    import uvloop

    return uvloop.run(_serve(engine_config(args), args))


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """What the command's arguments say is to be loaded."""
    # Here and not above: help and wrong usage need not wait for torch.
    from cbir.server.deployment import EngineConfig

    # Images are prepared on as many threads as there are cores, so none of them needs helpers.
    share_out(Threads(inference=args.threads or 0, images=1))
    limits = Limits(
        max_batch=args.max_batch, max_delay=args.max_delay, queue=args.queue, cache_entries=args.cache_entries,
        max_image_bytes=args.max_image_bytes,
    )  # fmt: skip
    return EngineConfig(
        args.path, args.version_name, args.ensemble, args.device, args.runtime, args.search, args.verify, limits,
        not args.no_text, args.precision,
    )  # fmt: skip


async def _serve(config: EngineConfig, args: argparse.Namespace) -> int:
    from cbir.server.lifecycle import Server

    metrics = (args.metrics_host or args.host, args.metrics_port) if args.metrics_port else None
    server = Server(config, host=args.host, port=args.port, metrics=metrics)
    asked, insisted = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: insisted.set() if asked.is_set() else asked.set())
    await server.start()
    loading = asyncio.create_task(server.load())
    stop = asyncio.create_task(asked.wait())
    await asyncio.wait({loading, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        await _leave_at_once(server)
    try:
        engine = loading.result()
    except BaseException:
        await server.stop(0)
        raise
    # What is loaded stays: the collector need not look through it again and again while queries wait.
    gc.collect()
    gc.freeze()
    print(f"serving {engine.version} ({len(engine.gallery)} images) on {server.address}", file=sys.stderr, flush=True)  # noqa: T201
    if args.json:
        ready = {"address": server.address, "port": server.port, "version": engine.version}
        print(json.dumps(ready), flush=True)  # noqa: T201
    del engine
    await stop
    stopping = asyncio.create_task(server.stop(args.grace))
    at_once = asyncio.create_task(insisted.wait())
    await asyncio.wait({stopping, at_once}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        await _leave_at_once(server)
    at_once.cancel()
    await stopping
    gc.unfreeze()
    return 0


async def _leave_at_once(server: Server) -> None:
    """End the process although a model is being loaded or is at work: its thread cannot be interrupted."""
    await server.stop(0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _port(text: str) -> int:
    port = _whole(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: give 0 to 65535")
    return port


def _positive(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def _whole_number(text: str) -> int:
    number = _whole(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def _milliseconds(text: str) -> float:
    """Seconds."""
    try:
        seconds = float(text) / 1000
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of milliseconds") from None
    if not 0 <= seconds <= 10:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 10000 milliseconds")
    return seconds


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 3600 seconds")
    return seconds
