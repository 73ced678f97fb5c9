"""Listing the gallery, and its facets, over a real loopback connection."""

from __future__ import annotations

import base64
from collections import Counter
from typing import Any

import grpc
import pytest

from cbir.core.artifacts import Gallery, GalleryImage
from cbir.core.errors import QueryError
from cbir.core.images import Box
from cbir.server.engine import Filter, facets, list_page
from cbir.server.engine import listing as listing_module
from cbir.v1 import search_pb2 as pb


async def pages(running: Any, **request: Any) -> list[pb.ListImagesResponse]:
    found = [await running.search.ListImages(pb.ListImagesRequest(**request))]
    while found[-1].next_page_token:
        token = found[-1].next_page_token
        found.append(await running.search.ListImages(pb.ListImagesRequest(**request, page_token=token)))
    return found


async def test_all_pages_together_are_the_gallery(serve: Any, tiny: Any, engine: Any) -> None:
    async with serve() as running:
        found = await pages(running, page_size=20)
        info = await running.search.GetIndexInfo(pb.GetIndexInfoRequest())
    assert [len(page.images) for page in found] == [20, 20, 20, 5]
    images = [image for page in found for image in page.images]
    assert [image.image_id for image in images] == list(engine.gallery.ids) == sorted(engine.gallery.ids)
    assert {page.total for page in found} == {65}
    assert {page.index_version for page in found} == {tiny.version}
    twin = next(image for image in images if image.image_id == "twin")
    assert (twin.HasField("label"), twin.width, twin.height, dict(twin.metadata)) == (False, 80, 64, {})
    red = next(image for image in images if image.image_id == "red-rings-2")
    assert (red.label, dict(red.metadata)) == ("red", {"pattern": "rings"})
    # JPEGs are reduced to this in any case, and no member of the tiny ensemble sees more.
    assert info.query_side == 384


async def test_conditions_and_beginnings(serve: Any) -> None:
    async with serve() as running:
        condition = pb.Filter(labels=["red", "blue"], metadata={"pattern": pb.StringList(values=["rings"])})
        found = await pages(running, filter=condition, page_size=3)
        assert [image.image_id for page in found for image in page.images] == [
            f"{colour}-rings-{number}" for colour in ("blue", "red") for number in range(4)
        ]
        assert {page.total for page in found} == {8}
        found = await pages(running, id_prefix="red-ch", filter=pb.Filter(exclude_labels=["blue"]))
        assert [image.image_id for image in found[0].images] == [f"red-checks-{number}" for number in range(4)]
        found = await pages(running, id_prefix="nothing begins so")
        assert (len(found[0].images), found[0].total, found[0].next_page_token) == (0, 0, "")


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (pb.ListImagesRequest(page_token="%"), "BAD_PAGE_TOKEN", "page_token"),
        (pb.ListImagesRequest(page_token="a" * 100_000), "BAD_PAGE_TOKEN", "page_token"),
        (pb.ListImagesRequest(filter=pb.Filter(labels=["mauve"])), "BAD_FILTER", "options.filter"),
        (pb.ListImagesRequest(filter=pb.Filter(labels=[""] * 9000)), "TOO_MANY_FIELDS", "query"),
    ],
)
async def test_what_cannot_be_listed_is_refused_by_name(
    serve: Any, failure: Any, request_: pb.ListImagesRequest, reason: str, field: str
) -> None:
    async with serve() as running:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.search.ListImages(request_)
    taken = failure(caught.value)
    assert (caught.value.code(), taken.reason, taken.field) == (grpc.StatusCode.INVALID_ARGUMENT, reason, field)


async def test_facets(serve: Any) -> None:
    async with serve() as running:
        found = await running.search.GetFacets(pb.GetFacetsRequest())
        first = await running.search.GetFacets(pb.GetFacetsRequest(limit=1))
    assert [(value.value, value.images) for value in found.labels.values] == [
        ("blue", 16), ("green", 16), ("grey", 16), ("red", 16)
    ]  # fmt: skip
    assert [value.value for value in first.labels.values] == ["blue"]
    assert (first.labels.distinct, set(found.metadata)) == (4, {"pattern"})
    patterns = found.metadata["pattern"]
    assert {value.value: value.images for value in patterns.values} == Counter(
        {"stripes": 16, "checks": 16, "rings": 16, "noise": 16}
    )


def gallery(*ids: str, **metadata: str) -> Gallery:
    return Gallery.from_images(
        GalleryImage(name, name, name[:1], 8, 8, "0" * 64, 0, Box(0, 0, 8, 8), "", metadata) for name in sorted(ids)
    )


def test_a_listing_goes_on_in_another_version() -> None:
    first = list_page(gallery("a1", "a2", "b1", "b2"), Filter(), "", 2, "")
    assert ([image.id for image in first.images], first.total) == (["a1", "a2"], 4)
    # The last image that was listed is gone; others came before and behind it.
    second = list_page(gallery("a0", "a1", "a3", "b1"), Filter(), "", 2, first.token)
    assert ([image.id for image in second.images], second.token) == (["a3", "b1"], "")


def test_a_page_ends_before_its_message_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "_PAGE_BYTES", 100)
    full = gallery("a", "b", "c", note="x" * 60)
    found, token = [], ""
    while True:
        page = list_page(full, Filter(), "", 1000, token)
        found.append([image.id for image in page.images])
        if not (token := page.token):
            break
    assert found == [["a"], ["b"], ["c"]]


def test_tokens_are_text_that_nobody_need_trust() -> None:
    known = gallery("a", "ü", "z")
    assert [image.id for image in list_page(known, Filter(), "", 9, _token("b")).images] == ["z", "ü"]
    with pytest.raises(QueryError, match="begin with the first page"):
        list_page(known, Filter(), "", 9, "\N{SNOWMAN}")
    with pytest.raises(QueryError):
        list_page(known, Filter(), "", 9, base64.b64encode(b"\xff").decode())


def _token(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def test_many_columns_of_many_values_are_told_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "MOST_COLUMNS", 2)
    monkeypatch.setattr(listing_module, "MOST_VALUES", 1)
    rows = [
        GalleryImage(f"{i}", "", None, 8, 8, "0" * 64, 0, Box(0, 0, 8, 8), "", {"a": "same", "b": f"{i}", "c": "x"})
        for i in range(3)
    ]
    found = facets(Gallery.from_images(rows))
    assert (found.labels.values, found.labels.distinct) == ((), 0)
    assert {name: (facet.values, facet.distinct) for name, facet in found.metadata.items()} == {
        "a": ((("same", 3),), 1),
        "b": ((("0", 1),), 3),
    }
