"""Queries in every form, options, results, and the other calls."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

import cbir.client
from cbir.client._client import Client
from cbir.client._errors import DeadlineExceeded, FailedPrecondition, InvalidQuery, NotFound, ServerError, TooLarge
from cbir.client._queries import Crop, Embedding, Fusion, ImageId, Text
from cbir.client._results import Box, ImageBytes, Reloaded, Vote
from cbir.v1 import search_pb2


def test_image_given_as_bytes_path_or_string_arrives_unchanged(server: Any, any_client: Any, tmp_path: Path) -> None:
    data = server.make_png()
    path = tmp_path / "query.png"
    path.write_bytes(data)
    for query in (data, bytearray(data), memoryview(data), path, str(path)):
        any_client.search(query)
    assert [request.query.image for request in server.requests] == [data] * 5


def test_pil_image_arrives_with_its_pixels(server: Any, any_client: Any) -> None:
    sent = Image.effect_noise((50, 40), 80).convert("RGB")
    any_client.search(sent)
    received = Image.open(io.BytesIO(server.requests[0].query.image))
    assert received.tobytes() == sent.tobytes()


def test_id_embedding_and_text_by_value_and_by_name(server: Any, any_client: Any) -> None:
    vector = np.array([0.25, -0.5], dtype=np.float32)
    any_client.search(ImageId("cat/1.png"))
    any_client.search(image_id="cat/1.png")
    any_client.search(Embedding({"vit": vector}))
    any_client.search(embedding={"vit": [0.25, -0.5]})
    any_client.search(Text("a cat"))
    any_client.search(text="a cat")
    queries = [request.query for request in server.requests]
    assert [query.WhichOneof("source") for query in queries] == ["image_id"] * 2 + ["embedding"] * 2 + ["text"] * 2
    assert queries[0].image_id == queries[1].image_id == "cat/1.png"
    assert list(queries[2].embedding.vectors["vit"].values) == [0.25, -0.5]
    assert queries[2] == queries[3]
    assert queries[4].text == queries[5].text == "a cat"


def test_embedding_without_vectors_is_sent_as_one_and_left_to_the_server(server: Any, any_client: Any) -> None:
    any_client.search(Embedding({}))
    assert server.requests[0].query.WhichOneof("source") == "embedding"


def test_positive_examples_alone_are_a_query(server: Any, any_client: Any) -> None:
    any_client.search(positive_ids=["p1", "p2"], negative_ids="n")
    assert len(list(any_client.search_stream([(1, None), (2, ImageId("x"))], positive_ids=["p1"]))) == 2
    alone, streamed, besides = (getattr(request, "request", request).query for request in server.requests)
    assert alone == search_pb2.Query(positive_ids=["p1", "p2"], negative_ids=["n"])
    assert streamed == search_pb2.Query(positive_ids=["p1"])
    assert besides == search_pb2.Query(image_id="x", positive_ids=["p1"])


def test_nothing_to_look_for_is_a_mistake_of_the_program(server: Any, any_client: Any) -> None:
    with pytest.raises(TypeError, match=r"0 queries were given: .* or positive_ids= alone"):
        any_client.search(negative_ids=["n"])
    with pytest.raises(TypeError, match="a query is None: give what to look for, or positive_ids="):
        list(any_client.search_stream([(1, None)]))
    assert server.requests == []


@pytest.mark.parametrize("arguments", [{}, {"query": b"x", "image_id": "y"}, {"image_id": "y", "text": "z"}])
def test_exactly_one_query(any_client: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="queries were given"):
        any_client.search(**arguments)


def test_a_query_of_no_known_kind_is_named(any_client: Any) -> None:
    with pytest.raises(TypeError, match="cannot be a int"):
        any_client.search(7)


def test_every_option_reaches_the_server(server: Any, any_client: Any) -> None:
    any_client.search(
        b"image",
        limit=7,
        min_score=0.25,
        fusion=Fusion.RECIPROCAL_RANK,
        weights={"vit": 0.5},
        labels=["cat", "dog"],
        exclude_labels="emu",
        metadata={"shelf": ["1", "2"], "room": "a"},
        exclude_query=True,
        crop="border",
        positive_ids=["p"],
        negative_ids=["n1", "n2"],
    )
    expected = search_pb2.SearchRequest(
        query=search_pb2.Query(image=b"image", positive_ids=["p"], negative_ids=["n1", "n2"]),
        options=search_pb2.SearchOptions(
            limit=7,
            min_score=0.25,
            fusion=search_pb2.FUSION_RECIPROCAL_RANK,
            weights={"vit": 0.5},
            filter=search_pb2.Filter(
                labels=["cat", "dog"],
                exclude_labels=["emu"],
                metadata={
                    "shelf": search_pb2.StringList(values=["1", "2"]),
                    "room": search_pb2.StringList(values=["a"]),
                },
            ),
            exclude_query=True,
            crop=search_pb2.CROP_BORDER,
        ),
    )
    assert server.requests == [expected]


def test_without_options_the_server_decides(server: Any, any_client: Any) -> None:
    any_client.search(b"image", limit=None, min_score=None, fusion=None, weights=None, crop=None)
    assert server.requests[0].options == search_pb2.SearchOptions()


def test_threshold_of_zero_is_not_no_threshold(server: Any, any_client: Any) -> None:
    any_client.search(b"image", min_score=0.0)
    assert server.requests[0].options.HasField("min_score")


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"fusion": "borda"}, "fusion is 'borda': choose one of weighted-vote, reciprocal-rank"),
        ({"crop": "middle"}, "crop is 'middle': choose one of none, border, content"),
        ({"max_side": 0}, "max_side is 0"),
    ],
)
def test_options_that_cannot_be_sent_are_refused_here(
    server: Any, any_client: Any, option: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidQuery, match=sentence):
        any_client.search(server.make_png(), **option)
    assert server.requests == []


def test_unknown_option_is_a_mistake_of_the_program(any_client: Any) -> None:
    with pytest.raises(TypeError, match="unknown option 'k'"):
        any_client.search(b"image", k=3)


def test_result_in_the_users_types(server: Any, any_client: Any) -> None:
    result = any_client.search(b"image", limit=4)
    assert len(result.hits) == 4
    hit = result.hits[1]
    assert (hit.image_id, hit.uri, hit.label) == ("dog/1.png", "gallery/dog/1.png", "dog")
    assert hit.metadata == {"shelf": "1"}
    assert hit.votes[0] == Vote("convnext", 2, pytest.approx(0.79), pytest.approx(0.425))  # type: ignore[arg-type]
    assert [vote.member for vote in hit.votes] == list(server.members)
    assert sum(vote.contribution for vote in hit.votes) + hit.label_contribution == pytest.approx(hit.fused_score)
    assert result.hits[3].label is None
    assert [(item.label, item.probability) for item in result.labels] == [("cat", 0.75), ("dog", 0.25)]
    assert result.crop == Box(2, 3, 30, 20)
    assert (result.crop.width, result.crop.height) == (28, 17)
    assert result.index_version == "v1"
    assert result.timings.decode == pytest.approx(0.0015)
    assert result.timings.total == pytest.approx(0.0215)
    with pytest.raises(AttributeError):
        hit.score = 1.0


def test_a_query_that_is_no_image_has_no_crop(any_client: Any) -> None:
    assert any_client.search(image_id="x").crop is None


def test_unreadable_file_is_an_invalid_query(any_client: Any, server: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidQuery, match=r"nowhere\.png.*No such file.*give the path") as caught:
        any_client.search(tmp_path / "nowhere.png")
    assert caught.value.reason == "FILE_UNREADABLE"
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(InvalidQuery, match="directory"):
        any_client.search(tmp_path)
    assert server.requests == []


def test_index_info(any_client: Any) -> None:
    info = any_client.index_info()
    assert (info.version, info.images, info.labels, info.ensemble, info.index) == ("v1", 1234, 12, "compact", "exact")
    assert info.created_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert info.crop is Crop.CONTENT
    assert (info.max_limit, info.max_image_bytes) == (100, 2**25)
    assert [(member.name, member.dim) for member in info.members] == [("convnext", 2), ("resnetv2", 2), ("vit", 2)]


def test_image_is_put_together_from_its_chunks(any_client: Any) -> None:
    data = any_client.image("raw:10240")
    assert data == bytes(range(256)) * 40
    assert isinstance(data, ImageBytes)
    assert data.media_type == "application/octet-stream"


def test_thumbnail_and_original(any_client: Any) -> None:
    assert Image.open(io.BytesIO(any_client.image("x"))).size == (64, 64)
    small = any_client.image("x", thumbnail=16)
    assert Image.open(io.BytesIO(small)).size == (16, 16)
    assert small.media_type == "image/png"


def test_image_that_is_not_there(any_client: Any) -> None:
    with pytest.raises(NotFound, match="no image is called 'nowhere'") as caught:
        any_client.image("nowhere")
    assert caught.value.reason == "UNKNOWN_IMAGE_ID"


def test_image_cut_short_is_noticed(any_client: Any) -> None:
    with pytest.raises(ServerError, match="10,240 of the 12,000 bytes"):
        any_client.image("raw:10240:12000")


def test_image_beyond_the_bound_is_not_fetched(server: Any, make_client: Any) -> None:
    with make_client(server.target, max_message_bytes=8000) as client, pytest.raises(TooLarge, match="ask for a thumb"):
        client.image("raw:10240")


def test_reload(any_client: Any) -> None:
    assert any_client.reload("v2") == Reloaded("v1", "v2", True)
    assert any_client.reload() == Reloaded("v1", "v1", False)
    with pytest.raises(FailedPrecondition, match="cannot be loaded"):
        any_client.reload("broken")


def test_metadata_goes_with_every_call(server: Any, make_client: Any) -> None:
    with make_client(server.target, metadata={"authorization": "Bearer x"}) as client:
        client.search(b"image")
    assert ("authorization", "Bearer x") in server.metadata


def test_credentials_are_used(start_server: Any, make_client: Any) -> None:
    server = start_server(credentials=grpc.local_server_credentials())
    with make_client(server.target, credentials=grpc.local_channel_credentials(), timeout=5.0) as client:
        assert client.search(b"image").index_version == "v1"


def test_no_proxy_is_asked_for_this_machine(server: Any, make_client: Any, monkeypatch: Any, no_server: str) -> None:
    monkeypatch.setenv("http_proxy", f"http://{no_server}")
    with make_client(server.target, timeout=5.0) as client:
        assert client.search(b"image").index_version == "v1"


def test_closed_client_says_so(server: Any, make_client: Any) -> None:
    with make_client(server.target) as client:
        client.close()
        with pytest.raises(RuntimeError, match="was closed"):
            client.search(b"image")
        with pytest.raises(RuntimeError, match="was closed"):
            list(client.search_stream([]))


@pytest.mark.parametrize(
    "setting", [{"timeout": 0}, {"attempts": 0}, {"attempts": 6}, {"max_message_bytes": 0}, {"keepalive": 0}]
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        Client("localhost:1", **setting)
    with pytest.raises(ValueError, match="target is empty"):
        Client("")


def test_ready_server_is_described_at_once(any_client: Any) -> None:
    assert any_client.wait_ready(5).version == "v1"


def test_waits_for_a_server_that_starts_and_then_warms_up(
    start_server: Any, make_client: Any, server: Any, no_server: str
) -> None:
    def start_late() -> None:
        time.sleep(0.3)
        start_server(late, port=int(no_server.rpartition(":")[2]), ready=False)
        time.sleep(0.3)
        late.ready()

    late = type(server)()
    starting = threading.Thread(target=start_late)
    starting.start()
    began = time.monotonic()
    with make_client(no_server) as client:
        assert client.wait_ready(10).version == "v1"
    assert time.monotonic() - began >= 0.6
    starting.join()


def test_waits_without_a_health_service(start_server: Any, make_client: Any) -> None:
    with make_client(start_server(with_health=False).target) as client:
        assert client.wait_ready(5).version == "v1"


def test_waiting_ends(server: Any, any_client: Any, make_client: Any, no_server: str) -> None:
    server.ready(False)
    with pytest.raises(DeadlineExceeded, match=r"not ready within 0\.3 s.*not serving yet"):
        any_client.wait_ready(0.3)
    with make_client(no_server) as client, pytest.raises(DeadlineExceeded, match=r"not ready within 0\.3 s"):
        client.wait_ready(0.3)


def test_ctrl_c_ends_a_waiting_stream() -> None:
    program = (
        "import signal, time\n"
        # Whoever runs the tests in the background has the signal ignored, which children inherit.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from cbir.client import Client\n"
        "def never():\n"
        "    print('waiting', flush=True)\n"
        "    time.sleep(60)\n"
        "    yield\n"
        "try:\n"
        "    list(Client('localhost:1').search_stream(never()))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    # In a process of its own: the signal is the test's whole point.
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        try:
            assert process.communicate(timeout=10)[0] == "interrupted\n"
        finally:
            process.kill()


async def test_a_trace_goes_on_with_the_call(server: Any) -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    span = TracerProvider().get_tracer("caller").start_span("work")

    def carried() -> tuple[int, int]:
        _, trace_id, span_id, _ = dict(server.metadata)["traceparent"].split("-")
        return int(trace_id, 16), int(span_id, 16)

    expected = span.get_span_context().trace_id, span.get_span_context().span_id
    with cbir.client.Client(server.target) as client:
        client.search(b"image")
        assert "traceparent" not in dict(server.metadata)
        with trace.use_span(span):
            client.search(b"image")
            assert carried() == expected
    server.metadata = []
    async with cbir.client.AsyncClient(server.target) as other:
        with trace.use_span(span):
            await other.search(b"image")
            assert carried() == expected
