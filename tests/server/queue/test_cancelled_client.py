"""A search that the SDK's user cancels is not computed."""

from __future__ import annotations

import asyncio
from typing import Any

from cbir.client import AsyncClient


async def test_a_search_that_is_cancelled_is_not_computed(serve: Any, gated: Any, tiny: Any, until: Any) -> None:
    gate, engine = gated
    async with serve(engine=engine) as running, AsyncClient(running.server.address, timeout=60.0) as client:
        calls = running.server._search
        first = asyncio.ensure_future(client.search(tiny.bytes_of("red-rings-0")))
        await until(gate.entered.is_set)
        # It waits behind the first, which has the engine.
        second = asyncio.ensure_future(client.search(tiny.bytes_of("blue-rings-1")))
        await until(lambda: calls.under_way == 2)
        second.cancel()
        await until(lambda: calls.under_way == 1)
        gate.gate.set()
        assert (await first).hits[0].image_id == "red-rings-0"
        await client.search(tiny.bytes_of("grey-rings-2"))
    assert sum(gate.batches) == 2
