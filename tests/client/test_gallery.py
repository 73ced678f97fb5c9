"""Listing a gallery, and what filters can name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cbir.client import AsyncClient, Facet, Facets, GalleryImage, InvalidQuery


def listed(client: Any, **how: Any) -> list[GalleryImage]:
    """All images, from either kind of client."""
    if hasattr(client, "_client"):

        async def collect() -> list[GalleryImage]:
            return [image async for image in client._client.images(**how)]

        return list(client._runner.run(collect()))
    return list(client.images(**how))


def test_images_come_page_by_page_in_the_order_of_their_ids(any_client: Any, server: Any) -> None:
    images = listed(any_client, prefix="cat/", labels="cat", metadata={"shelf": ["1", "2"]})
    assert [image.image_id for image in images] == [f"cat/{row}.png" for row in range(5)]
    assert images[0] == GalleryImage("cat/0.png", "cat", 40, 30, {"shelf": "1"})
    assert [request.page_token for request in server.requests] == ["", "3"]
    condition = server.requests[1].filter
    assert (list(condition.labels), list(condition.metadata["shelf"].values)) == (["cat"], ["1", "2"])


def test_pages_are_fetched_as_they_are_taken(client: Any, server: Any) -> None:
    images = client.images()
    assert next(images).image_id == "cat/0.png"
    assert len(server.requests) == 1
    images.close()


def test_a_page_tells_how_many_there_are(any_client: Any) -> None:
    page = any_client.image_page(page_size=2)
    assert ([image.image_id for image in page], len(page)) == (["cat/0.png", "cat/1.png"], 2)
    assert (page.total, page.next_page_token, page.index_version) == (10, "2", "v1")
    with pytest.raises(InvalidQuery, match="page_size is 0"):
        any_client.image_page(page_size=0)


def test_facets_tell_what_filters_can_name(any_client: Any) -> None:
    both = Facet({"cat": 5, "dog": 5}, 2)
    assert any_client.facets() == Facets(both, {"shelf": both}, "v1")
    assert any_client.facets(limit=1).labels == Facet({"cat": 5}, 2)


async def test_a_listing_that_is_left_early_asks_for_no_more(server: Any) -> None:
    async with AsyncClient(server.target) as client:
        async for _ in client.images():
            break
        await asyncio.sleep(0)
    assert len(server.requests) == 1
