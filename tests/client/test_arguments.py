"""What a caller gives wrongly is told by its name, with the way out; nothing of it reaches the server."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest

from cbir.client import (
    Client,
    Compression,
    Embedding,
    ImageId,
    InvalidQuery,
    Keepalive,
    Limits,
    Proxy,
    Retry,
    Text,
    Tls,
)


@pytest.mark.parametrize(
    ("option", "sentence", "reason"),
    [
        ({"limit": "5"}, "limit is '5': give at least 1 hit", "BAD_LIMIT"),
        ({"limit": 2.5}, "limit is 2.5", "BAD_LIMIT"),
        ({"limit": True}, "limit is True", "BAD_LIMIT"),
        ({"limit": 2**40}, "limit is 1099511627776", "BAD_LIMIT"),
        ({"min_score": "high"}, "min_score is 'high': give a number from 0 to 1", "BAD_MIN_SCORE"),
        ({"weights": [0.5]}, r"weights is \[0.5\]: give a dictionary of names, each with a number", "BAD_WEIGHTS"),
        ({"weights": {"vit": "much"}}, "the weight of member 'vit' is 'much': give a number", "BAD_WEIGHTS"),
        ({"labels": 7}, "labels is 7: give a text or a list of texts", "BAD_LABELS"),
        ({"labels": ["a", 7]}, "an item of labels is 7: give a text", "BAD_LABELS"),
        ({"exclude_labels": b"cat"}, "exclude_labels is b'cat'", "BAD_EXCLUDE_LABELS"),
        ({"metadata": ["shelf"]}, "metadata is .* the values wanted", "BAD_METADATA"),
        ({"metadata": {"shelf": 3}}, r"metadata\['shelf'\] is 3", "BAD_METADATA"),
        ({"positive_ids": [b"x"]}, "an item of positive_ids is b'x'", "BAD_POSITIVE_IDS"),
        ({"negative_ids": ["\ud800"]}, "whole letters", "BAD_NEGATIVE_IDS"),
        ({"exclude_query": "yes"}, "exclude_query is 'yes': give True or False", "BAD_EXCLUDE_QUERY"),
        ({"max_side": "1k"}, "max_side is '1k': give a positive number of pixels", "BAD_MAX_SIDE"),
        ({"fusion": 3}, "fusion is 3: choose one of", "BAD_FUSION"),
    ],
)
def test_options_of_a_wrong_type(
    server: Any, any_client: Any, option: dict[str, Any], sentence: str, reason: str
) -> None:
    with pytest.raises(InvalidQuery, match=sentence) as caught:
        any_client.search(server.make_png(), **option)
    assert caught.value.reason == reason
    assert server.requests == []


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        (ImageId(5), "image_id is 5: give a text"),  # type: ignore[arg-type]
        (Text(None), "text is None: give a text"),  # type: ignore[arg-type]
        (Embedding([1.0]), r"embedding is \[1.0\]"),  # type: ignore[arg-type]
        (Embedding({"vit": 3}), "the embedding of member 'vit' is no row of numbers"),  # type: ignore[dict-item]
        (Embedding({"vit": np.zeros((2, 2))}), "the embedding of member 'vit' is no row of numbers"),
    ],
)
def test_queries_of_a_wrong_type(server: Any, any_client: Any, query: Any, sentence: str) -> None:
    with pytest.raises(InvalidQuery, match=sentence):
        any_client.search(query)
    assert server.requests == []


def test_numbers_of_numpy_count_as_numbers(server: Any, any_client: Any) -> None:
    any_client.search(b"image", limit=np.int64(3), min_score=np.float32(0.5), weights={"vit": np.float64(1)})
    assert server.requests[0].options.limit == 3


def test_other_calls_check_what_they_are_given(any_client: Any) -> None:
    with pytest.raises(InvalidQuery, match="thumbnail is 'small'"):
        any_client.image("x", thumbnail="small")
    with pytest.raises(InvalidQuery, match="image_id is 7"):
        any_client.image(7)
    with pytest.raises(InvalidQuery, match="limit is 0"):
        any_client.facets(limit=0)
    with pytest.raises(TypeError, match="timeout is '5': give a positive number of seconds"):
        any_client.search(b"image", timeout="5")
    with pytest.raises(ValueError, match="window is '8'"):
        list(any_client.search_stream([], window="8"))


@pytest.mark.parametrize(
    ("setting", "kind", "sentence"),
    [
        ({"metadata": {"X-Request-Id": "7"}}, ValueError, "'X-Request-Id' cannot be sent: write 'x-request-id'"),
        ({"metadata": {"a b": "7"}}, ValueError, "use letters a to z"),
        ({"metadata": {"grpc-timeout": "7"}}, ValueError, "kept for gRPC"),
        ({"metadata": {"note": "caf\u00e9"}}, ValueError, "printable ASCII"),
        ({"metadata": {"number": 7}}, TypeError, "both texts"),
        ({"metadata": "x"}, TypeError, "both texts"),
        ({"timeout": "5"}, TypeError, "timeout is '5'"),
        ({"tls": True}, TypeError, r"tls is True: give a Tls\(...\)"),
        ({"token": b"secret"}, TypeError, "give a Token"),
        ({"retry": 3}, TypeError, "retry is 3: give a Retry"),
        ({"retry": Retry(2), "attempts": 3}, ValueError, "either retry or attempts"),
        ({"limits": Limits(), "max_message_bytes": 3}, ValueError, "either limits or max_message_bytes"),
        ({"keepalive": "often"}, TypeError, "keepalive interval is 'often'"),
        ({"compression": "zip"}, ValueError, "choose one of none, deflate, gzip"),
        ({"proxy": True}, ValueError, "give the URL of an HTTP proxy"),
        ({"target": 50051}, TypeError, "target is 50051: give the server's address"),
    ],
)
def test_settings_that_cannot_be_used(setting: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        Client(**{"target": "localhost:1", **setting})


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Retry(0), "attempts is 0"),
        (lambda: Retry(first_pause=-1), "first_pause is -1"),
        (lambda: Keepalive(0), "keepalive interval is 0"),
        (lambda: Keepalive(timeout=0), "keepalive timeout is 0"),
        (lambda: Limits(received_bytes=0), "received_bytes is 0"),
        (lambda: Proxy("ftp://x"), "HTTP proxy"),
        (lambda: Tls(key="k"), "both certificate and key"),
    ],
)
def test_values_are_checked_where_they_are_made(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


def test_settings_become_arguments_of_the_channel() -> None:
    with Client(
        "example.com:1",
        retry=Retry(3, 0.5, 1.0),
        keepalive=Keepalive(400, 7, idle=True),
        limits=Limits(1000, 2000),
        proxy=Proxy(None),
    ) as client:
        options = dict(client._settings.options())
    assert options["grpc.max_send_message_length"] == 1000
    assert options["grpc.max_receive_message_length"] == 2000
    assert (options["grpc.keepalive_time_ms"], options["grpc.keepalive_timeout_ms"]) == (400_000, 7000)
    assert options["grpc.keepalive_permit_without_calls"] == 1
    assert options["grpc.enable_http_proxy"] == 0
    assert '"maxAttempts": 3' in str(options["grpc.service_config"])


def test_requests_may_be_compressed(server: Any, make_client: Any) -> None:
    with Client(server.target, compression="gzip") as client:
        assert client._settings.channel_compression is grpc.Compression.Gzip
    with make_client(server.target, compression=Compression.GZIP) as client:
        client.search(embedding={"vit": [0.25] * 4000})
    assert len(server.requests[0].query.embedding.vectors["vit"].values) == 4000
