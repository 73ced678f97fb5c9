"""The RPCs, over a real loopback connection."""

from __future__ import annotations

import asyncio
import io
import struct
import threading
import zlib
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from grpc_reflection.v1alpha import reflection_pb2
from PIL import Image
from precision import f32

from cbir.core.images import Crop, decode_image, find_content, prepare
from cbir.core.images.decode import FORMATS
from cbir.server.deployment import EngineConfig
from cbir.server.engine import Engine
from cbir.server.engine.picture import Picture, media_type
from cbir.v1 import search_pb2 as pb


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Callers cannot tell where the vectors are kept: all of this holds for every store."""
    if "kept_in" in metafunc.fixturenames:
        metafunc.parametrize("kept_in", ["local", "milvus"], indirect=True, scope="session")


def by_bytes(data: bytes, **options: Any) -> pb.SearchRequest:
    return pb.SearchRequest(query=pb.Query(image=data), options=pb.SearchOptions(**options))


def by_id(image_id: str, **options: Any) -> pb.SearchRequest:
    return pb.SearchRequest(query=pb.Query(image_id=image_id), options=pb.SearchOptions(**options))


def bomb(side: int) -> bytes:
    """A PNG that says it has side x side pixels, in a few hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((200, 160), 60).convert("RGB").save(file, "JPEG")
    return file.getvalue()


async def refused(call: Any, failure: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    taken = failure(caught.value)
    assert taken.code == caught.value.code().value[0]
    return taken


async def test_search_by_bytes_id_and_embedding_agree(serve: Any, tiny: Any, engine: Engine) -> None:
    data = tiny.bytes_of("blue-rings-2")
    pixels = decode_image(data).pixels
    box = find_content(pixels, Crop.BORDER)
    vectors = {
        name: pb.Vector(values=e.embed(np.stack([prepare(pixels, box, e.size, e.interpolation)]))[0])
        for name, e in engine.embedders.items()
    }
    embedding = pb.SearchRequest(query=pb.Query(embedding=pb.EnsembleEmbedding(vectors=vectors)))
    async with serve() as running:
        answers = [await running.search.Search(r) for r in (by_bytes(data), by_id("blue-rings-2"), embedding)]
    for answer in answers:
        assert [h.image_id for h in answer.hits] == [h.image_id for h in answers[0].hits]
        assert len(answer.hits) == 10
        assert answer.index_version == tiny.version
        assert answer.labels[0].label == "blue"
    first = answers[0].hits[0]
    assert (first.image_id, first.label, dict(first.metadata)) == ("blue-rings-2", "blue", {"pattern": "rings"})
    assert first.uri == first.image_id == "blue-rings-2"
    for hit in answers[0].hits:
        assert sum(v.contribution for v in hit.votes) + hit.label_contribution == pytest.approx(
            hit.fused_score, abs=f32(256)
        )
        assert [v.member for v in hit.votes] == ["resnet", "convnext"]
        assert 0 <= hit.score <= 1
    assert (answers[0].crop.right, answers[0].crop.bottom) == (box.right, box.bottom)
    assert not answers[1].HasField("crop")
    timings = answers[0].timings
    for stage in ("decode", "queue", "embed", "search", "fuse"):
        assert getattr(timings, stage).ToTimedelta().total_seconds() > 0


async def test_options_reach_the_engine(serve: Any, tiny: Any) -> None:
    async with serve() as running:
        search = running.search.Search
        filtered = await search(
            by_id(
                "red-noise-1",
                limit=100,
                filter=pb.Filter(
                    labels=["red", "blue"],
                    exclude_labels=["blue"],
                    metadata={"pattern": pb.StringList(values=["noise"])},
                ),
            )
        )
        assert sorted(h.image_id for h in filtered.hits) == [f"red-noise-{i}" for i in range(4)]
        twin = await search(by_bytes(tiny.bytes_of("twin"), exclude_query=True, limit=65))
        assert len(twin.hits) == 63
        whole = await search(by_id("red-noise-1", limit=20))
        cut = await search(by_id("red-noise-1", limit=20, min_score=whole.hits[9].score))
        assert len(cut.hits) == 10
        assert len((await search(by_id("red-noise-1", limit=20, min_score=0))).hits) == 20
        weighted = await search(by_id("red-noise-1", weights={"resnet": 2.0}))
        assert all(h.votes[1].contribution == 0 for h in weighted.hits)
        ranks = await search(by_id("red-noise-1", fusion=pb.FUSION_RECIPROCAL_RANK))
        assert ranks.hits[0].votes[0].contribution == pytest.approx(1 / 3, abs=f32(32))
        whole_image = await search(by_bytes(tiny.bytes_of("twin"), crop=pb.CROP_NONE))
        assert (whole_image.crop.right, whole_image.crop.bottom) == (80, 64)
        moved = await search(pb.SearchRequest(query=pb.Query(positive_ids=["blue-rings-0"], negative_ids=["twin"])))
        assert "blue-rings-0" not in {h.image_id for h in moved.hits}
        assert moved.hits[0].label == "blue"
        unlabelled = next(h for h in (await search(by_id("twin", limit=65))).hits if h.image_id == "twin")
        assert not unlabelled.HasField("label")


async def streamed(running: Any, *requests: pb.SearchRequest) -> list[pb.SearchStreamResponse]:
    """The answers of one stream, in the order of the requests."""
    numbered = [pb.SearchStreamRequest(request_id=str(n), request=request) for n, request in enumerate(requests)]
    answers = {answer.request_id: answer async for answer in running.search.SearchStream(iter(numbered))}
    return [answers[str(n)] for n in range(len(requests))]


async def test_feedback_decides_between_two_classes(serve: Any, tiny: Any) -> None:
    # Half red rings, half blue rings: the query is between the classes.
    files = [Image.open(tiny.pictures / f"{colour}-rings-1.png").convert("RGB") for colour in ("red", "blue")]
    between = io.BytesIO()
    Image.blend(*files, 0.5).save(between, "PNG")

    def ask(positives: tuple[str, ...] = (), negatives: tuple[str, ...] = ()) -> pb.SearchRequest:
        request = by_bytes(between.getvalue(), limit=8, filter=pb.Filter(labels=["red", "blue"]))
        request.query.positive_ids.extend(positives)
        request.query.negative_ids.extend(negatives)
        return request

    red, blue = ("red-rings-2", "red-checks-1"), ("blue-rings-2", "blue-checks-1")
    requests = [ask(), ask(red), ask(blue), ask((), red), ask((), blue), ask(red, blue), ask(blue, red)]
    async with serve() as running:
        unary = [await running.search.Search(request) for request in requests]
        stream = [answer.response for answer in await streamed(running, *requests)]
    assert [[h.image_id for h in a.hits] for a in unary] == [[h.image_id for h in a.hits] for a in stream]
    reds = [sum(hit.label == "red" for hit in answer.hits) for answer in unary]
    plain, to_red, to_blue, from_red, from_blue, to_red_from_blue, to_blue_from_red = reds
    assert 0 < plain < 8
    assert to_blue < plain < to_red
    assert from_red < plain < from_blue
    assert (to_blue_from_red, to_red_from_blue) == (0, 8)
    for answer, request in zip(unary, requests, strict=True):
        assert not {h.image_id for h in answer.hits} & {*request.query.positive_ids, *request.query.negative_ids}


async def test_bad_examples_are_refused_alike_by_both_calls(serve: Any, failure: Any) -> None:
    def examples(positives: list[str], negatives: list[str]) -> pb.SearchRequest:
        return pb.SearchRequest(query=pb.Query(positive_ids=positives, negative_ids=negatives))

    cases = {
        "UNKNOWN_IMAGE_ID": examples(["twin", "nobody"], []),
        "TOO_MANY_EXAMPLES": examples(["twin"] * 3, ["red-noise-0"] * 2),
        "CONTRADICTORY_EXAMPLES": examples(["twin"], ["twin"]),
        "EMPTY_QUERY": examples([], ["twin"]),
    }
    async with serve(max_examples=4) as running:
        alone = [await refused(running.search.Search(request), failure) for request in cases.values()]
        in_band = [failure(answer.error) for answer in await streamed(running, *cases.values())]
    assert alone == in_band
    assert [taken.reason for taken in alone] == list(cases)
    assert "'nobody'" in alone[0].message
    assert "has 5 positive and negative ids; at most 4" in alone[1].message
    assert "'twin' is named as a positive and as a negative example" in alone[2].message


async def test_exclude_query_leaves_a_reencoded_copy_out(serve: Any, tiny: Any) -> None:
    copy = io.BytesIO()
    Image.open(tiny.pictures / "blue-rings-2.png").save(copy, "JPEG", quality=60)
    asked = by_bytes(copy.getvalue(), limit=65), by_bytes(copy.getvalue(), limit=65, exclude_query=True)
    async with serve() as running:
        with_it, without = [await running.search.Search(request) for request in asked]
        stream = [answer.response for answer in await streamed(running, *asked)]
    assert with_it.hits[0].image_id == "blue-rings-2"
    found = [{hit.image_id for hit in answer.hits} for answer in (with_it, without, *stream)]
    assert found[0] - found[1] == {"blue-rings-2"}
    assert found[2:] == found[:2]


JPEG = jpeg()
BAD_IMAGES = {
    "truncated": (JPEG[: len(JPEG) // 2], "INVALID_ARGUMENT", "IMAGE_TRUNCATED"),
    "text": (b"this is no picture at all", "INVALID_ARGUMENT", "IMAGE_FORMAT"),
    "empty": (b"", "INVALID_ARGUMENT", "IMAGE_EMPTY"),
    "bomb": (bomb(30_000), "INVALID_ARGUMENT", "IMAGE_TOO_MANY_PIXELS"),
    "oversize": (bytes(100_001), "RESOURCE_EXHAUSTED", "IMAGE_TOO_LARGE"),
}


async def test_bad_images_are_refused_by_name_and_the_next_is_answered(serve: Any, tiny: Any, failure: Any) -> None:
    async with serve(max_image_bytes=100_000) as running:
        for name, (data, code, reason) in BAD_IMAGES.items():
            taken = await refused(running.search.Search(by_bytes(data)), failure)
            assert (taken.code, taken.reason) == (grpc.StatusCode[code].value[0], reason), name
            assert taken.retry_after is None
            assert taken.field == ("query.image" if code == "INVALID_ARGUMENT" else None)
            answer = await running.search.Search(by_bytes(tiny.bytes_of("twin")))
            assert answer.hits, name


@pytest.mark.parametrize(
    ("request_", "code", "reason", "field"),
    [
        (pb.SearchRequest(), "INVALID_ARGUMENT", "EMPTY_QUERY", "query"),
        (pb.SearchRequest(query=pb.Query(text="a dog")), "INVALID_ARGUMENT", "TEXT_UNSUPPORTED", "query.text"),
        (by_id("nobody"), "NOT_FOUND", "UNKNOWN_IMAGE_ID", None),
        (by_id("twin", limit=101), "INVALID_ARGUMENT", "BAD_LIMIT", "options.limit"),
        (by_id("twin", min_score=2), "INVALID_ARGUMENT", "BAD_MIN_SCORE", "options.min_score"),
        (by_id("twin", weights={"vgg": 1}), "INVALID_ARGUMENT", "UNKNOWN_MEMBER", "options.weights"),
        (by_id("twin", weights={"resnet": -1}), "INVALID_ARGUMENT", "BAD_WEIGHT", "options.weights"),
        (by_id("twin", weights={"resnet": 0}), "INVALID_ARGUMENT", "BAD_WEIGHT", "options.weights"),
        (by_id("twin", filter=pb.Filter(labels=["mauve"])), "INVALID_ARGUMENT", "BAD_FILTER", "options.filter"),
        (by_id("twin", fusion=9), "INVALID_ARGUMENT", "BAD_FUSION", "options.fusion"),
        (by_id("twin", crop=9), "INVALID_ARGUMENT", "BAD_CROP", "options.crop"),
        # Far longer than HTTP/2 trailers may be.
        (by_id("é" * 100_000), "NOT_FOUND", "UNKNOWN_IMAGE_ID", None),
        (by_id("twin", filter=pb.Filter(labels=["字" * 9999])), "INVALID_ARGUMENT", "BAD_FILTER", "options.filter"),
    ],
)
async def test_refusals(
    serve: Any, failure: Any, request_: pb.SearchRequest, code: str, reason: str, field: str | None
) -> None:
    async with serve() as running:
        taken = await refused(running.search.Search(request_), failure)
        assert (taken.code, taken.reason, taken.field) == (grpc.StatusCode[code].value[0], reason, field)


async def test_bad_embeddings_are_refused(serve: Any, failure: Any) -> None:
    async with serve() as running:
        for vectors, reason in (
            ({"vgg": pb.Vector(values=[1.0])}, "UNKNOWN_MEMBER"),
            ({"resnet": pb.Vector(values=[1.0, 2.0])}, "BAD_EMBEDDING"),
            ({"resnet": pb.Vector(values=[float("nan")] * 96)}, "BAD_EMBEDDING"),
            ({"resnet": pb.Vector()}, "BAD_EMBEDDING"),
            ({}, "EMPTY_QUERY"),
        ):
            query = pb.Query(embedding=pb.EnsembleEmbedding(vectors=vectors))
            taken = await refused(running.search.Search(pb.SearchRequest(query=query)), failure)
            assert (taken.code, taken.reason) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], reason)


async def test_faults_of_the_server_are_logged_and_not_told(
    serve: Any, gated: Any, failure: Any, tiny: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gate, engine = gated
    gate.embed = lambda batch: 1 / 0
    async with serve(engine=engine) as running:
        taken = await refused(running.search.Search(by_bytes(tiny.bytes_of("twin"))), failure)
        assert (taken.code, taken.reason) == (grpc.StatusCode.INTERNAL.value[0], "INTERNAL")
        assert "division" not in taken.message
        assert "ZeroDivisionError" in caplog.text
        assert taken.metadata["incident"] in caplog.text
        assert (await running.search.Search(by_id("twin"))).hits


async def test_get_index_info(serve: Any, tiny: Any) -> None:
    async with serve(max_limit=50) as running:
        info = await running.search.GetIndexInfo(pb.GetIndexInfoRequest())
    searched = {"local": "exact", "milvus": "milvus FLAT"}[tiny.vectors.kind]
    assert (info.version, info.images, info.labels, info.ensemble, info.index) == (
        tiny.version,
        65,
        4,
        "tiny",
        searched,
    )
    assert (info.max_limit, info.max_image_bytes, info.crop) == (50, 32 * 2**20, pb.CROP_BORDER)
    assert info.created_at.ToDatetime().year >= 2024
    assert info.server_version
    member = info.members[1]
    assert (member.name, member.backend, member.model) == ("convnext", "timm", "test_convnext")
    assert (member.embedding_dim, member.dim, member.metric, member.runtime) == (64, 12, "pca", "torch-cpu")
    assert (len(member.fingerprint), member.text) == (32, False)
    assert (member.precision, member.threads) == ("f32", torch.get_num_threads())
    assert member.weight == pytest.approx(2 / 3)


async def test_get_image_streams_the_original_and_thumbnails(
    serve: Any, make_tiny: Any, tmp_path: Any, failure: Any
) -> None:
    own = make_tiny(tmp_path)
    async with serve(config=EngineConfig(own.index, device="cpu", runtime="torch")) as running:

        async def get(image_id: str, thumbnail: int | None = None) -> list[pb.GetImageResponse]:
            return [
                c async for c in running.search.GetImage(pb.GetImageRequest(image_id=image_id, thumbnail=thumbnail))
            ]

        chunks = await get("grey-noise-3")
        data = own.bytes_of("grey-noise-3")
        assert b"".join(c.chunk for c in chunks) == data
        assert (chunks[0].media_type, chunks[0].total_bytes) == ("image/png", len(data))
        assert all(not c.media_type for c in chunks[1:])
        assert all(len(c.chunk) <= 65536 for c in chunks)
        small = await get("grey-noise-3", 20)
        assert small[0].media_type == "image/jpeg"
        assert Image.open(io.BytesIO(b"".join(c.chunk for c in small))).size == (20, 16)
        assert Image.open(io.BytesIO((await get("grey-noise-3", 500))[0].chunk)).size == (80, 64)
        for image_id, thumbnail, code, reason in (
            ("nobody", None, "NOT_FOUND", "UNKNOWN_IMAGE_ID"),
            ("../../etc/passwd", None, "NOT_FOUND", "UNKNOWN_IMAGE_ID"),
            ("twin", 0, "INVALID_ARGUMENT", "BAD_THUMBNAIL"),
            ("twin", 10_000, "INVALID_ARGUMENT", "BAD_THUMBNAIL"),
        ):
            taken = await refused(get(image_id, thumbnail), failure)
            assert (taken.code, taken.reason) == (grpc.StatusCode[code].value[0], reason)
        (own.pictures / "twin.png").write_bytes(b"secret")
        (own.pictures / "red-checks-0.png").unlink()
        for image_id, reason in (("twin", "IMAGE_CHANGED"), ("red-checks-0", "IMAGE_GONE")):
            for thumbnail in (None, 64):
                taken = await refused(get(image_id, thumbnail), failure)
                assert (taken.code, taken.reason) == (grpc.StatusCode.NOT_FOUND.value[0], reason)


def test_media_types_of_all_formats() -> None:
    picture = Image.new("RGB", (8, 8))
    for kind in FORMATS:
        file = io.BytesIO()
        picture.save(file, kind)
        assert media_type(file.getvalue()) == Image.MIME[kind]
    assert media_type(b"") == "application/octet-stream"


async def test_large_originals_come_in_chunks(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).bytes(200_000)
    monkeypatch.setattr("cbir.server.transport.service.read_picture", lambda *_: Picture(data, "image/x"))
    async with serve() as running:
        chunks = [c async for c in running.search.GetImage(pb.GetImageRequest(image_id="twin"))]
    assert [len(c.chunk) for c in chunks] == [65536, 65536, 65536, 200_000 - 3 * 65536]
    assert b"".join(c.chunk for c in chunks) == data


async def test_too_many_downloads_are_told_to_come_again(
    serve: Any, monkeypatch: pytest.MonkeyPatch, failure: Any
) -> None:
    reading, gate = threading.Event(), threading.Event()

    def read(*_: object) -> Picture:
        reading.set()
        gate.wait(10)
        return Picture(b"x", "image/x")

    monkeypatch.setattr("cbir.server.transport.service.read_picture", read)
    async with serve(downloads=1) as running:
        first = running.search.GetImage(pb.GetImageRequest(image_id="twin"))
        started = asyncio.ensure_future(first.read())
        await asyncio.to_thread(reading.wait, 10)
        taken = await refused(running.search.GetImage(pb.GetImageRequest(image_id="twin")).read(), failure)
        assert (taken.reason, taken.retry_after is not None) == ("OVERLOADED", True)
        gate.set()
        assert (await started).chunk == b"x"


@pytest.mark.parametrize("version", ["v1alpha", "v1"])
async def test_reflection_lists_the_services(serve: Any, version: str) -> None:
    service = f"grpc.reflection.{version}.ServerReflection"
    async with serve() as running:
        ask = running.admin_channel.stream_stream(
            f"/{service}/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="cbir.v1.SearchService"),
        ]
        answers = [answer async for answer in ask(iter(requests))]
        # It is for operators: where queries are taken, there is none.
        # Asked as a unary call, whose message cannot still be on its way when the refusal is there.
        public = running.channel.unary_unary(f"/{service}/ServerReflectionInfo")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await public(b"")
    names = {service.name for service in answers[0].list_services_response.service}
    assert names == {
        "cbir.v1.SearchService",
        "cbir.v1.AdminService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        *([service] if version == "v1" else []),
    }
    assert answers[1].file_descriptor_response.file_descriptor_proto
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
