"""``cbir web``: the search page."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import webbrowser

from cbir.client import AsyncClient
from cbir.client.cli.connection import add_connection_arguments, connection
from cbir.core.errors import CbirError, ConfigurationError
from cbir.web.gateway import Listening, Settings, application

__all__ = ["USER_ERRORS", "add_arguments", "run"]

USER_ERRORS: tuple[type[Exception], ...] = (CbirError, OSError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--target", default="localhost:50051", help="address of the search server (default: %(default)s)"
    )
    parser.add_argument(
        "--proxy", metavar="URL", help="HTTP proxy for a server elsewhere; '' for none (default: as http_proxy says)"
    )
    parser.add_argument("--timeout", metavar="S", type=_seconds, default=20.0, help="for one search (default: 20)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8080, help="port to listen on; 0: any (default: %(default)s)")
    parser.add_argument(
        "--allow-host", metavar="NAME", action="append", default=[],
        help="a name, besides localhost, that browsers may ask for, such as that of a proxy before the page",
    )  # fmt: skip
    parser.add_argument(
        "--insecure", action="store_true", help="listen beyond this machine although the page lets everybody in"
    )
    parser.add_argument(
        "--max-upload", metavar="MB", type=_size, default=32, help="largest picture taken, in MB (default: 32)"
    )
    parser.add_argument(
        "--keep", metavar="MIN", type=_minutes, default=60.0,
        help="minutes that pictures sent are kept in memory after their last use (default: 60)",
    )  # fmt: skip
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    add_connection_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object when the page is there")


def run(args: argparse.Namespace) -> int:
    """Serve the page until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: The page cannot be served like this.
        OSError: A file with a token or certificate cannot be read.
    """
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
    try:
        # Pictures from outside are not decoded here, so they are not shrunk either.
        client = AsyncClient(args.target, timeout=args.timeout, proxy=args.proxy, downscale=False, **connection(args))
    except ValueError as error:
        raise ConfigurationError(str(error), reason="BAD_TARGET", target=args.target) from error
    async with client:
        listening = Listening(settings)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, listening.stop)
        print(f"search page on {listening.url}, asking {args.target}", file=sys.stderr, flush=True)  # noqa: T201
        if not settings.is_local:
            print("--insecure: whoever reaches this address may search and see every image", file=sys.stderr)  # noqa: T201
        if args.json:
            print(json.dumps({"url": listening.url, "port": listening.port}), flush=True)  # noqa: T201
        if args.open:
            await asyncio.to_thread(webbrowser.open, listening.url)
        await listening.serve(application(settings, client))
    return 0


def _port(text: str) -> int:
    return _whole(text, 0, 65535)


def _size(text: str) -> int:
    return _whole(text, 1, 1024)


def _whole(text: str, least: int, most: int) -> int:
    value = int(text)
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text} is not from {least} to {most}")
    return value


def _seconds(text: str) -> float:
    return _positive(text, 3600)


def _minutes(text: str) -> float:
    return _positive(text, 7 * 24 * 60)


def _positive(text: str, most: float) -> float:
    value = float(text)
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0 and at most {most:g}")
    return value
