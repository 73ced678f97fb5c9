"""``cbir web``: the search page."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import webbrowser
from typing import TYPE_CHECKING

from cbir.client.cli.argument_types import number, whole
from cbir.client.cli.connection import add_connection_arguments, connection
from cbir.core.errors import CbirError, ConfigurationError

if TYPE_CHECKING:
    from cbir.web.gateway import Settings

__all__ = ["USER_ERRORS", "add_arguments", "run"]

USER_ERRORS: tuple[type[Exception], ...] = (CbirError, OSError)
#: Seconds for one search.
_TIMEOUT = 20.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=whole(0, 65535), default=8080, help="port to listen on; 0: any (default: %(default)s)"
    )
    parser.add_argument(
        "--allow-host", metavar="NAME", action="append", default=[],
        help="a name, besides localhost, that browsers may ask for, such as that of a proxy before the page",
    )  # fmt: skip
    parser.add_argument(
        "--insecure", action="store_true", help="listen beyond this machine although the page lets everybody in"
    )
    parser.add_argument(
        "--max-upload", metavar="MB", type=whole(1, 1024), default=32, help="largest picture taken, in MB (default: 32)"
    )
    parser.add_argument(
        "--keep", metavar="MIN", type=number(above=0, most=7 * 24 * 60), default=60.0,
        help="minutes that pictures sent are kept in memory after their last use (default: 60)",
    )  # fmt: skip
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    add_connection_arguments(parser, timeout=_TIMEOUT)
    parser.add_argument("--json", action="store_true", help="print one JSON object when the page is there")


def run(args: argparse.Namespace) -> int:
    """Serve the page until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: The page cannot be served like this.
        OSError: A file with a token or certificate cannot be read.
    """
    from cbir.web.gateway import Settings

    settings = Settings(
        host=args.host,
        port=args.port,
        insecure=args.insecure,
        names=tuple(name.lower().rstrip(".") for name in args.allow_host),
        upload=args.max_upload * 2**20,
        uploads=max(8 * args.max_upload, 256) * 2**20,
        kept=60 * args.keep,
    )
    return asyncio.run(_serve(settings, args))


async def _serve(settings: Settings, args: argparse.Namespace) -> int:
    # Imported here, so that help does not wait for HTTP and gRPC.
    from cbir.client import AsyncClient
    from cbir.web.gateway import Listening, application

    try:
        # Pictures from outside are not decoded here, so they are not shrunk either.
        client = AsyncClient(downscale=False, **connection(args, timeout=_TIMEOUT))
    except (ValueError, TypeError) as error:
        raise ConfigurationError(str(error), reason="BAD_TARGET", target=args.target) from error
    async with client:
        listening = Listening(settings)
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signal_number, listening.stop)
        print(f"search page on {listening.url}, asking {client.target}", file=sys.stderr, flush=True)  # noqa: T201
        if not settings.is_local:
            print("--insecure: whoever reaches this address may search and see every image", file=sys.stderr)  # noqa: T201
        if args.json:
            print(json.dumps({"url": listening.url, "port": listening.port}), flush=True)  # noqa: T201
        if args.open:
            await asyncio.to_thread(webbrowser.open, listening.url)
        await listening.serve(application(settings, client))
    return 0
