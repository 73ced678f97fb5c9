"""Lets a bounded number of requests work at once, and a bounded number wait."""

from __future__ import annotations

import asyncio

from cbir.web.gateway.refusal import Refusal

__all__ = ["Turnstile"]


class Turnstile:
    """``async with turnstile`` waits for its turn.

    Args:
        inside: How many may be inside at once.
        waiting: How many may wait.
    """

    def __init__(self, inside: int, waiting: int) -> None:
        self._room = asyncio.Semaphore(inside)
        self._waiting, self._most = 0, waiting

    async def __aenter__(self) -> None:
        if self._room.locked() and self._waiting >= self._most:
            raise Refusal(503, "BUSY", "too many requests are waiting already: try again in a moment", 1.0)
        self._waiting += 1
        try:
            await self._room.acquire()
        finally:
            self._waiting -= 1

    async def __aexit__(self, *exception: object) -> None:
        self._room.release()
