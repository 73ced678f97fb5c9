"""What the page's server bounds and refuses, piece by piece."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from images import encode, pattern

from cbir.client import Crop, ImageId, InvalidQuery, Overloaded, Unauthenticated, Unavailable
from cbir.core.errors import ConfigurationError
from cbir.web.gateway import Settings
from cbir.web.gateway.media_types import UNKNOWN, media_type
from cbir.web.gateway.refusal import Refusal, failure
from cbir.web.gateway.turnstile import Turnstile
from cbir.web.gateway.uploads import Uploads
from cbir.web.gateway.wishes import read_wish


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (Unavailable("nobody"), 503, "SEARCH_SERVER_UNAVAILABLE"),
        (Unauthenticated("who are you", reason="NO_TOKEN"), 502, "NO_TOKEN"),
        (InvalidQuery("bad", reason="IMAGE_FORMAT"), 400, "IMAGE_FORMAT"),
    ],
)
def test_errors_have_the_status_that_browsers_understand(error: Any, status: int, reason: str) -> None:
    answer = failure(error)
    assert (answer.status_code, json.loads(bytes(answer.body))["error"]["reason"]) == (status, reason)


def test_an_overloaded_server_says_when_to_come_again() -> None:
    answer = failure(Overloaded("full", retry_after=1.2))
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "2"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"options": {"min_score": NaN}}', "JSON"),
        (b"[]", "the request must be an object"),
        (b'{"query": {"path": "/etc/passwd"}}', "query.path is not known"),
        (b'{"query": {"text": "a", "image_id": "b"}}', "give one of them"),
        (b'{"query": {"text": "\\ud800"}}', "query.text must be a text"),
        (b'{"options": {"limit": "5"}}', "options.limit must be a whole number"),
        (b'{"options": {"limit": true}}', "options.limit must be a whole number"),
        (b'{"options": {"min_score": 1e999}}', "options.min_score must be a number"),
        (b'{"options": {"weights": {"m": "1"}}}', "options.weights.m must be a number"),
        (b'{"options": {"labels": "cat"}}', "options.labels must be a list"),
        (b'{"options": {"metadata": {"a": [1]}}}', "options.metadata.a[0] must be a text"),
        (b'{"options": {"crop": "all"}}', "options.crop must be one of none, border, content"),
        (b'{"options": {"max_side": 5}}', "options.max_side is not known"),
    ],
)
def test_a_request_that_is_not_meant_is_refused_with_its_place(body: bytes, said: str) -> None:
    with pytest.raises(Refusal) as caught:
        read_wish(body)
    assert caught.value.status == 400
    assert said in str(caught.value)


def test_a_request_is_read_into_the_clients_types() -> None:
    wish = read_wish(
        b'{"query": {"image_id": "a/1"}, "options": {"limit": 4, "min_score": null, "crop": "none",'
        b' "weights": {"m": 1}, "metadata": {"shelf": ["1", "2"]}, "exclude_query": true, "positive_ids": ["b"]}}'
    )
    assert wish.query == ImageId("a/1")
    assert wish.options == {
        "limit": 4,
        "crop": Crop.NONE,
        "weights": {"m": 1.0},
        "metadata": {"shelf": ["1", "2"]},
        "exclude_query": True,
        "positive_ids": ["b"],
    }


def test_uploads_are_bounded_in_size_and_time() -> None:
    now = [0.0]
    uploads = Uploads(most=10, kept=60, clock=lambda: now[0])
    first, second = uploads.add(b"12345"), uploads.add(b"1234")
    assert len({first, second}) == 2
    assert min(len(first), len(second)) >= 24
    now[0] = 50
    assert uploads.get(first) == b"12345"
    now[0] = 70
    # The first was used twenty seconds ago, the second seventy.
    assert uploads.get(second) is None
    assert uploads.get(first) == b"12345"
    third = uploads.add(b"123456")
    assert uploads.get(first) is None
    assert uploads.get(third) == b"123456"
    assert (len(uploads), uploads.size) == (1, 6)
    assert uploads.get(uploads.add(bytes(11))) is None
    assert uploads.size == 0


def test_pictures_are_known_by_their_bytes() -> None:
    for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "AVIF"):
        assert media_type(encode(pattern(0, 0), form)) == f"image/{form.lower()}"
    for data in (b"", b"<svg xmlns=", b"%PDF-1.7", b"RIFF0000WAVE", b"PK\x03\x04"):
        assert media_type(data) == UNKNOWN


async def test_a_turnstile_lets_few_in_and_few_wait() -> None:
    turnstile, leave = Turnstile(1, 1), asyncio.Event()

    async def enter() -> None:
        async with turnstile:
            await leave.wait()

    tasks = [asyncio.create_task(enter()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Refusal) as caught:
        await enter()
    assert (caught.value.status, caught.value.reason) == (503, "BUSY")
    leave.set()
    await asyncio.gather(*tasks)
    await enter()


def test_beyond_this_machine_needs_a_word() -> None:
    for host in ("0.0.0.0", "192.0.2.1", "::", "photos.example"):
        with pytest.raises(ConfigurationError, match="--insecure"):
            Settings(host=host)
        assert Settings(host=host, insecure=True).host == host
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert Settings(host=host).is_local
