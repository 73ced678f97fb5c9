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
from typing import TYPE_CHECKING, Any

from cbir.core.errors import CbirError
from cbir.core.machine import idle_quietly, share_arenas, take_turns
from cbir.server.deployment import access, add_arguments, engine_config
from cbir.server.observe import configure_logs

if TYPE_CHECKING:
    from cbir.server.deployment import EngineConfig
    from cbir.server.transport import Server

__all__ = ["USER_ERRORS", "add_arguments", "run"]

USER_ERRORS: tuple[type[Exception], ...] = (CbirError,)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; a second signal ends the process at once.

    Raises:
        CbirError: The index cannot be served, or the port cannot be opened.
    """
    idle_quietly()
    share_arenas()
    take_turns()
    # Without this, gRPC prints a line whenever a library starts a program while it loads.  The server itself never
    # forks.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    configure_logs(args.log_format)
    # Who had what changed is always told, whatever else is not.
    logging.getLogger("cbir.audit").setLevel(logging.INFO)
    # Imported here, so that --help works without it.
    import uvloop

    return uvloop.run(_serve(engine_config(args), args))


async def _serve(config: EngineConfig, args: argparse.Namespace) -> int:
    from cbir.server.observe import Traces
    from cbir.server.transport import QueryWatch, Server

    # Before anything listens: who names no index is told so, and not that the port is taken.
    await asyncio.to_thread(config.resolve)
    metrics = (args.metrics_host or args.host, args.metrics_port) if args.metrics_port else None
    watch = QueryWatch(args.slow_query_ms, Traces() if args.traces else None)
    server = Server(config, host=args.host, port=args.port, metrics=metrics, watch=watch, access=access(args))
    asked, insisted = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    # Until there is something to reload, a hang-up is no reason to end.
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
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
    # Everything loaded so far stays alive, so the garbage collector need not scan it again while queries wait.
    gc.collect()
    gc.freeze()
    where = f"{server.address}, admin calls on {server.admin_address}"
    print(f"serving {engine.version} ({len(engine.gallery)} images) on {where}", file=sys.stderr, flush=True)  # noqa: T201
    if args.insecure:
        print("--insecure: whoever reaches this address is let in, and may be listened in on", file=sys.stderr)  # noqa: T201
    if args.json:
        ready = {"address": server.address, "port": server.port, "version": engine.version}
        ready |= {"admin": server.admin_address}
        print(json.dumps(ready), flush=True)  # noqa: T201
    del engine
    unasked = _reload_unasked(server, args)
    await stop
    for task in unasked:
        task.cancel()
    stopping = asyncio.create_task(server.stop(args.grace))
    at_once = asyncio.create_task(insisted.wait())
    await asyncio.wait({stopping, at_once}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        await _leave_at_once(server)
    at_once.cancel()
    await stopping
    gc.unfreeze()
    return 0


def _reload_unasked(server: Server, args: argparse.Namespace) -> set[asyncio.Task[Any]]:
    """Reload at SIGHUP, and when another version goes live where that is wanted; return the tasks that do it."""
    from cbir.server.deployment import reload_unasked, watch

    tasks: set[asyncio.Task[Any]] = set()

    def keep(task: asyncio.Task[Any]) -> None:
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def hang_up() -> None:
        keep(asyncio.ensure_future(reload_unasked(server.deployment, "signal")))

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up)
    if args.watch:
        keep(asyncio.ensure_future(watch(server.deployment, args.watch)))
    return tasks


async def _leave_at_once(server: Server) -> None:
    """End the process even while a model is being loaded or computes: its thread cannot be interrupted."""
    await server.stop(0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
