"""Reading what a browser sends, within bounds, and stopping when it has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from cbir.web.gateway.refusal import Refusal

__all__ = ["read_body", "while_connected"]

T = TypeVar("T")


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """The body of a request.

    Args:
        most: Bytes after which reading stops.
        seconds: How long it may take.

    Raises:
        Refusal: It is larger, or takes longer.
    """
    too_large = Refusal(413, "TOO_LARGE", f"this is larger than {_size(most)}: send a smaller picture")
    claimed = request.headers.get("content-length", "0")
    # Compared as text of digits: a number of a million digits would take long to read.
    if not claimed.isascii() or not claimed.isdigit() or len(claimed) > 15 or int(claimed) > most:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                data += chunk
                if len(data) > most:
                    raise too_large
    except TimeoutError as error:
        message = f"this took longer than {seconds:g} s to arrive: try again, or send a smaller picture"
        raise Refusal(408, "TOO_SLOW", message) from error
    return bytes(data)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do something for a browser; cancel it when the browser has gone.

    Raises:
        ClientDisconnect: It has gone.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _size(count: int) -> str:
    return f"{count / 2**20:.3g} MB" if count >= 2**20 else f"{count:,} bytes"
