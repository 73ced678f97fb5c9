"""Hits that are the query image or near duplicates of it: marked, where that is asked for."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from cbir.client import AsyncClient, InvalidQuery, SearchResult

ALL = 65


def marked(result: SearchResult) -> set[str]:
    return {hit.image_id for hit in result.hits if hit.near_duplicate}


def ids(result: SearchResult) -> list[str]:
    return [hit.image_id for hit in result.hits]


def saved_again(data: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


async def test_what_would_be_left_out_is_marked(serve: Any, tiny: Any) -> None:
    original = tiny.bytes_of("red-checks-0")
    queries: list[Any] = [{"query": original}, {"query": saved_again(original)}, {"image_id": "red-checks-0"}]
    queries.append({"positive_ids": ["blue-rings-1"], "image_id": "red-checks-0"})
    async with serve() as running, AsyncClient(running.server.address) as client:
        for query in queries:
            plain = await client.search(**query, limit=ALL)
            asked = await client.search(**query, limit=ALL, mark_near_duplicates=True)
            without = await client.search(**query, limit=ALL, exclude_query=True, mark_near_duplicates=True)
            # Asking changes nothing but the marks, whose length in the answer differs.
            assert [(hit.image_id, hit.score, hit.votes) for hit in asked.hits] == [
                (hit.image_id, hit.score, hit.votes) for hit in plain.hits
            ]
            assert marked(plain) == marked(without) == set()
            assert marked(asked) == set(ids(plain)) - set(ids(without))
        # The same bytes are known whatever the ensemble says.
        assert {"red-checks-0", "twin"} <= marked(await client.search(original, mark_near_duplicates=True))
        with pytest.raises(InvalidQuery, match="mark_near_duplicates"):
            await client.search(original, mark_near_duplicates="yes")  # type: ignore[arg-type]
