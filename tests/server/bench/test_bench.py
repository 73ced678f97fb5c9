"""``cbir bench serve``: the arithmetic by hand, and small runs against real servers."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cbir.core.artifacts import IndexStore
from cbir.core.errors import ArtifactError, ConfigurationError, SourceError
from cbir.core.images import decode_image
from cbir.core.search import Retriever
from cbir.core.vote import SearchSpec
from cbir.server.bench import Plan, measure
from cbir.server.bench.bare_process import bare_process
from cbir.server.bench.cancellation import account
from cbir.server.bench.echo import echo_server
from cbir.server.bench.figures.faults import faults
from cbir.server.bench.figures.ratios import ratios
from cbir.server.bench.figures.stages import mean_stages
from cbir.server.bench.figures.summary import closed_rate, latency_figures, open_figures, percentile, refusal_figures
from cbir.server.bench.load import payloads as supply
from cbir.server.bench.load.arrivals import constant, poisson
from cbir.server.bench.load.crowd import Crowd
from cbir.server.bench.load.frame_generator import FrameGenerator
from cbir.server.bench.load.generator import SEARCH, Generator, Window
from cbir.server.bench.load.outcomes import Outcomes, Recorder
from cbir.server.bench.load.payloads import Payloads
from cbir.server.bench.load.query_images import drawn_images, read_images
from cbir.server.bench.reloads import during, reload_under_load, two_versions
from cbir.server.bench.replicas import shares_of
from cbir.server.bench.server_process import read_metrics
from cbir.server.commands import bench as command
from cbir.server.queue import OverloadedError
from cbir.server.transport.status import to_status
from cbir.v1 import search_pb2 as pb


def outcomes(*rows: tuple[float, float, float, int], failed: dict[int, tuple[str, bytes]] | None = None) -> Outcomes:
    """Rows of due, sent, done and place; those of ``failed`` with code and details."""
    recorder = Recorder()
    for number, row in enumerate(rows):
        if failed and number in failed:
            recorder.fail(*row, *failed[number])
        else:
            recorder.answer(*row, b"reply")
    return recorder.outcomes()


REFUSED = ("RESOURCE_EXHAUSTED", to_status(OverloadedError("busy: try again", 0.5)).SerializeToString())


def test_percentiles_are_values_of_nearest_rank() -> None:
    ten = np.arange(1.0, 11.0)
    # 50 % of ten are five values; 95 % are 9.5, so that ten are needed.
    assert [percentile(ten, share) for share in (10, 50, 51, 95, 100)] == [1, 5, 6, 10, 10]
    assert percentile(np.arange(1.0, 101.0), 99) == 99
    assert percentile([7.0], 1) == 7
    assert np.isnan(percentile([], 50))
    assert latency_figures(np.array([0.002, 0.001, 0.006])) == {
        "count": 3, "mean_ms": pytest.approx(3), "p50_ms": pytest.approx(2), "p95_ms": pytest.approx(6),
        "p99_ms": pytest.approx(6),
    }  # fmt: skip
    assert latency_figures(np.array([])) == dict.fromkeys(("mean_ms", "p50_ms", "p95_ms", "p99_ms")) | {"count": 0}


def test_arrivals_are_fixed_in_advance() -> None:
    assert constant(4, 1).tolist() == [0, 0.25, 0.5, 0.75]
    assert len(constant(3, 0.5)) == 2  # 0 and 1/3
    times = poisson(200, 50, seed=1)
    assert (np.diff(times) > 0).all()
    assert times[0] > 0
    assert times[-1] < 50
    assert np.array_equal(times, poisson(200, 50, seed=1))
    assert not np.array_equal(times[:5], poisson(200, 50, seed=2)[:5])
    # 10,000 are expected, with a standard deviation of 100; gaps of a Poisson process vary as much as they last.
    assert abs(len(times) - 10_000) < 400
    assert np.std(np.diff(times)) / np.mean(np.diff(times)) == pytest.approx(1, abs=0.05)


def test_the_rate_of_a_closed_loop_is_littles_law() -> None:
    # Place 0 ends at 1, 2 and 3, place 1 at 1.5 and 3.5: cycles of 1, 1 and 2 seconds, 4/3 on average.
    loop = outcomes((0, 0, 1, 0), (0, 0, 1.5, 1), (1, 1, 2, 0), (2, 2, 3, 0), (1.5, 1.5, 3.5, 1))
    assert closed_rate(loop, 2) == pytest.approx(2 / (4 / 3))
    # One of five ends in a failure, which takes a place but is no answer.
    spoilt = outcomes(
        (0, 0, 1, 0), (0, 0, 1.5, 1), (1, 1, 2, 0), (2, 2, 3, 0), (1.5, 1.5, 3.5, 1), failed={2: REFUSED}
    )  # fmt: skip
    assert closed_rate(spoilt, 2) == pytest.approx(0.8 * 2 / (4 / 3))
    # A second round a minute later: the minute between them is no cycle.
    later = outcomes((60, 60, 61, 0), (61, 61, 62, 0))
    assert closed_rate(Outcomes.merged([loop, later]), 2) == pytest.approx(2 / (5 / 4))
    assert np.isnan(closed_rate(outcomes((0, 0, 1, 0)), 1))


def test_merged_outcomes_keep_their_failures() -> None:
    merged = Outcomes.merged([outcomes((0, 0, 1, 0)), outcomes((0, 0, 1, 0), (1, 1, 2, 0), failed={1: REFUSED})])
    assert merged.answered.tolist() == [True, True, False]
    assert merged.refused.tolist() == [False, False, True]
    assert len(set(merged.place.tolist())) == 2
    assert merged.picked(np.array([False, False, True])).errors() == {"OVERLOADED": 1}


def test_an_open_loop_counts_from_when_a_request_was_due() -> None:
    # The server, or the generator, stood still from 0.1 to 1.2: who was due then has waited, though he was sent late.
    load = outcomes(
        (0.0, 0.0, 0.1, 0), (0.5, 1.2, 1.3, 1), (1.0, 1.2, 1.3, 2), (1.5, 1.5, 1.51, 3), (1.9, 1.9, 2.4, 4),
        failed={3: REFUSED},
    )  # fmt: skip
    figures = open_figures(load, 0.0, 2.0, deadline=0.5)
    # Latencies 0.1, 0.8, 0.3 and 0.5 s; the mean of what was sent would have hidden 0.7 and 0.2 of them.
    assert (figures["count"], figures["p50_ms"], figures["p99_ms"]) == (4, pytest.approx(300), pytest.approx(800))
    assert figures["offered_per_second"] == 2.5
    # Three answers ended within two seconds, the last came after; of those three two were within half a second.
    assert figures["answered_per_second"] == 1.5
    assert figures["goodput_per_second"] == 1.0
    assert figures["errors"] == {"OVERLOADED": 1}
    assert figures["refused"]["count"] == 1
    assert figures["generator_late_p99_ms"] == pytest.approx(700)
    # What is due, or ends, before the window is watched is no part of it.
    assert open_figures(load, 0.4, 2.0, deadline=0.5)["count"] == 3


def test_refusals_are_timed_and_asked_for_a_time_to_retry() -> None:
    silent = ("RESOURCE_EXHAUSTED", b"")
    load = outcomes(
        *((0.0, 0.0, t, 0) for t in (0.010, 0.020, 0.040, 0.5, 0.6)),
        failed={0: REFUSED, 1: silent, 2: REFUSED, 3: ("DEADLINE_EXCEEDED", b"")},
    )  # fmt: skip
    figures = refusal_figures(load)
    assert (figures["count"], figures["p50_ms"], figures["p99_ms"]) == (3, pytest.approx(20), pytest.approx(40))
    assert figures["with_retry_info"] == pytest.approx(2 / 3)
    assert load.errors() == {"OVERLOADED": 2, "RESOURCE_EXHAUSTED": 1, "DEADLINE_EXCEEDED": 1}
    assert refusal_figures(outcomes((0, 0, 1, 0)))["with_retry_info"] is None


def test_what_the_transport_turns_away_is_refused_without_words() -> None:
    load = outcomes(
        *((0.0, 0.0, t, 0) for t in (0.010, 0.020, 0.040, 0.5, 0.6)),
        failed={0: REFUSED, 1: ("CANCELLED", b""), 2: ("UNAVAILABLE", b""), 3: ("DEADLINE_EXCEEDED", b"")},
    )  # fmt: skip
    figures = refusal_figures(load)
    assert (figures["count"], figures["turned_away"], figures["p99_ms"]) == (3, 2, pytest.approx(40))
    assert figures["with_retry_info"] == 1


def test_requests_during_a_reload() -> None:
    load = outcomes((0, 0, 1, 0), (0.9, 0.9, 2.1, 0), (3, 3, 3.5, 0), (4.1, 4.1, 4.2, 0))
    # The second spans the reload, the third lies in the other one.
    assert during(load, [(1.5, 2.0), (2.9, 4.0)]).tolist() == [False, True, True, False]


def test_no_two_images_are_alike_and_all_look_the_same(tiny: Any) -> None:
    data = tiny.bytes_of("red-rings-1")
    payloads = supply.images([data])
    sent = [pb.SearchRequest.FromString(payloads()).query.image for _ in range(300)]
    assert len(set(sent)) == 300
    pixels = decode_image(data).pixels
    for one in (*sent[:2], sent[-1]):
        assert np.array_equal(decode_image(one).pixels, pixels)
    again = payloads.repeated(1)
    assert again() == again()


def test_no_two_embeddings_are_alike_and_all_point_the_same_way() -> None:
    payloads = supply.embeddings({"a": 8, "b": 5}, distinct=1, seed=0)
    requests = [payloads() for _ in range(300)]
    assert len(set(requests)) == 300
    vectors = []
    for request in (requests[0], requests[-1]):
        found = pb.SearchRequest.FromString(request).query.embedding.vectors
        vectors.append(np.concatenate([found["a"].values, found["b"].values]))
        assert {name: len(vector.values) for name, vector in found.items()} == {"a": 8, "b": 5}
    assert np.allclose(vectors[0], vectors[1], rtol=0.01)
    assert np.linalg.norm(vectors[0]) == pytest.approx(2**0.5, rel=0.01)


@pytest.mark.parametrize("size", [0, 5, 127, 128, 300, 70_000])
def test_streamed_requests_are_framed_as_protobuf_does(size: int) -> None:
    request = pb.SearchRequest(query=pb.Query(image=bytes(size)))
    framed = pb.SearchStreamRequest.FromString(supply.in_stream(12, request.SerializeToString()))
    assert framed == pb.SearchStreamRequest(request_id="12", request=request)


def test_streamed_answers_are_told_apart() -> None:
    answer = pb.SearchStreamResponse(request_id="7", response=pb.SearchResponse(index_version="v"))
    error = pb.SearchStreamResponse(request_id="63")
    error.error.CopyFrom(to_status(OverloadedError("busy", 1.0)))
    assert supply.stream_place(answer.SerializeToString()) == (7, True)
    assert supply.stream_place(error.SerializeToString()) == (63, False)


def test_stages_are_means_in_milliseconds() -> None:
    replies = []
    for milliseconds in (1, 3):
        response = pb.SearchResponse()
        response.timings.decode.FromMilliseconds(milliseconds)
        response.timings.embed.FromMilliseconds(10 * milliseconds)
        replies.append(response.SerializeToString())
    stages = mean_stages(replies)
    assert (stages["decode"], stages["embed"], stages["queue"]) == (pytest.approx(2), pytest.approx(20), 0)
    assert mean_stages([]) == {}


def test_metrics_account_for_what_was_cancelled() -> None:
    page = (
        "# HELP cbir_admitted_total Queries.\n# TYPE cbir_admitted_total counter\ncbir_admitted_total 20.0\n"
        'cbir_cancelled_total{when="before_batch"} 6.0\ncbir_cancelled_total{when="after_batch"} 2.0\n'
        'cbir_batch_size_bucket{le="+Inf"} 5\ncbir_batch_size_sum 13 1700000000\ncbir_expired_total 1e0\n'
    )
    values = read_metrics(page)
    assert values['cbir_cancelled_total{when="after_batch"}'] == 2
    assert len(values) == 6
    # 20 admitted: 13 in batches (2 of them in vain), 6 cancelled and 1 expired before.
    assert account(values) == {
        "admitted": 20, "processed": 13, "cancelled_before": 6, "expired": 1, "unaccounted": 0,
    }  # fmt: skip
    # One was forwarded and counted as cancelled before its batch began all the same.
    assert account(values | {"cbir_batch_size_sum": 14})["unaccounted"] == -1
    assert account({"cbir_admitted_total": 20})["unaccounted"] is None


def test_cores_are_dealt_evenly() -> None:
    assert shares_of([0, 1, 2, 3, 4], 2) == [[0, 2, 4], [1, 3]]
    assert shares_of([3, 7], 1) == [[3, 7]]


def test_images_come_from_folders_and_archives(tiny: Any, tmp_path: Path) -> None:
    files = sorted(tiny.pictures.glob("*.png"))
    every = read_images(tiny.pictures, 1000)
    assert every == [file.read_bytes() for file in files]
    few = read_images(tiny.pictures, 3)
    assert few == [every[0], every[len(every) // 2], every[-1]]
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("a/readme.txt", b"no picture")
        archive.write(files[0], "a/b.png")
    assert read_images(tmp_path / "some.zip", 9) == [files[0].read_bytes()]
    for source, words in ((tmp_path / "nothing", "no images can be read"), (tmp_path, "there are no images")):
        with pytest.raises(SourceError, match=words):
            read_images(source, 9)
    assert decode_image(drawn_images(1)[0]).pixels.shape == (480, 640, 3)


def test_an_index_is_doubled_by_links(tiny: Any) -> None:
    before = sorted(tiny.index.rglob("*"))
    with two_versions(tiny.index) as (index, names):
        store = IndexStore(index)
        assert store.current() == names[0]
        first, second = (store.open(name, verify=True) for name in names)
        assert (first.name, second.name) == names
        assert second.gallery.ids == first.gallery.ids
    assert sorted(tiny.index.rglob("*")) == before
    assert not index.exists()


def test_a_drawn_gallery_is_an_index_like_any_other(tmp_path: Path) -> None:
    file = Path(__file__).parents[3] / "benchmarks/synthetic_gallery.py"
    spec = importlib.util.spec_from_file_location("synthetic_gallery", file)
    assert spec is not None
    assert spec.loader is not None
    drawn = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawn)
    name = drawn.publish(tmp_path / "index", 400, 5)
    version = IndexStore(tmp_path / "index").open(verify=True)
    assert (version.name, len(version.gallery), len(version.gallery.labels)) == (name, 400, 5)
    retriever = Retriever.load(version, "cpu")
    assert retriever.dims == retriever.raw_dims == (320, 320)
    rows = [0, 123, 399]
    for row, ranking in zip(rows, retriever.search(retriever.vectors_of(rows), [SearchSpec()] * 3), strict=True):
        assert ranking.rows[0] == row
        same = [version.gallery[hit].label == version.gallery[row].label for hit in ranking.rows.tolist()]
        assert sum(same) >= 8


def test_ratios_are_made_of_one_run() -> None:
    def loop(kind: str, concurrency: int, rate: float, p50: float, p99: float, mode: str = "unary") -> dict[str, Any]:
        return {
            "kind": kind, "concurrency": concurrency, "per_second": rate, "p50_ms": p50, "p99_ms": p99, "mode": mode,
            "server_cpu_ms_each": 0.3, "generator_cpu_ms_each": 0.1,
        }  # fmt: skip

    parts = {"event loop": 0.1, "gRPC": 0.1, "engine and models": 1.6, "generator": 0.1}
    document = {
        "machine": {"cores": 2},
        "closed": [
            loop("image", 1, 50, 21.0, 30), loop("image", 32, 72, 400, 1200), loop("embedding", 1, 900, 1.2, 2),
            loop("embedding", 64, 3000, 20, 30), loop("embedding", 64, 3600, 18, 20, "stream"),
        ],
        "limits": {
            "echo": [
                loop("image", 1, 1000, 0.75, 1), loop("embedding", 1, 1500, 0.6, 1),
                loop("embedding", 64, 4000, 15, 20),
            ],
            "bare": {
                "whole": {"p50_ms": 20.0, "per_second": 50}, "decode": {"p50_ms": 1.5},
                "decode_apart": {"p50_ms": 2.25}, "decode_workers": {"per_second": 300.0},
                "forward": {"per_second": 100.0}, "forward_batch": {"per_second": 100.0, "each": 32},
                "search": {"p50_ms": 0.5}, "search_batch": {"per_second": 600.0, "core_ms_each": 1.6},
            },
        },
        "open": [
            {"kind": "image", "fraction": 0.7, "p99_ms": 84.0, "arrivals": "constant"},
            {
                "kind": "image", "fraction": 3.0, "p99_ms": 900.0, "goodput_per_second": 68.4, "deadline_ms": 1000.0,
                "capacity_per_second": 78.0, "after_per_second": 66.0, "errors": {"OVERLOADED": 9},
                "refused": {"count": 9, "turned_away": 4, "p50_ms": 3.0, "p99_ms": 45.0, "with_retry_info": 1.0},
                "resident_mib": [1000.0, 1200.0],
                "cores": {"at capacity": parts, "flooded": {**parts, "engine and models": 1.2}},
            },
            {
                "kind": "embedding", "fraction": 3.0, "p99_ms": 900.0, "goodput_per_second": 85.0,
                "deadline_ms": 1000.0, "capacity_per_second": 100.0, "after_per_second": 100.0, "errors": {},
                "refused": {"count": 0, "turned_away": 0, "p50_ms": None, "p99_ms": None, "with_retry_info": None},
                "resident_mib": [], "cores": {"at capacity": {}, "flooded": {}},
            },
        ],
        "reloads": {
            "reloads": 20, "failed": 0, "requests": 500, "reload_ms": {"p50_ms": 900.0}, "during": {"p99_ms": 90.0},
            "without": {"p99_ms": 60.0},
        },
        "cancelled": {
            "answered": 11, "admitted": 20, "processed": 13, "cancelled_before": 6, "expired": 1, "unaccounted": 0,
        },
    }  # fmt: skip
    told = ratios(document)
    found = {ratio.name: (pytest.approx(ratio.value), ratio.reached) for ratio in told}
    limits = {ratio.name: pytest.approx(ratio.limit) for ratio in told if ratio.limit is not None}
    # An empty call takes 0.4 ms of the cores, of which there are two.
    assert limits == {
        "embedding, 64 in flight: rate / empty echo": 2 / 0.002 / 4000,
        "embedding, 1 in flight: p50, ms": 1.1,
        "image, open loop at 3 of capacity: goodput / capacity": 0.75,
        "image, 1 in flight: p50 minus bare, ms": 1.5,
        # 15 ms of decoding, forward passes and search, and 0.2 of an empty call.
        "image, 32 in flight: rate / bare batched": 1000 / 15.2 / 100,
        "image, 32 in flight: rate / bare stages one after the other": 15 / 15.2,
    }
    assert found == {
        "image, 1 in flight: p50 minus bare, ms": (1.0, True),
        "image, 32 in flight: rate / bare batched": (0.72, False),
        # Decode, forward and search in turn: 1 / (1/300 + 1/100 + 1/600) = 1000/15 a second.
        "image, 32 in flight: rate / bare stages one after the other": (72 / (1000 / 15), True),
        "image, 32 in flight: p99 / p50": (3.0, False),
        "embedding, 64 in flight: rate / empty echo": (0.75, True),
        "embedding: bare search in batches / rate": (0.2, False),
        "embedding, 1 in flight: p50, ms": (1.2, False),
        "embedding, 64 in flight: stream / unary, per item": (1.2, True),
        "image, open loop at 0.7 of capacity: p99 / p50 of 1 in flight": (4.0, True),
        "image, open loop at 3 of capacity: goodput / capacity": (0.95, True),
        "image, open loop at 3 of capacity: refusals, p99, ms": (45.0, True),
        "image, open loop at 3 of capacity: refusals in words with RetryInfo": (1.0, True),
        # Of 72 a second, the mean of before and after.
        "image, open loop at 3 of capacity: rate two seconds after / before": (66 / 78, False),
        "image, open loop at 3 of capacity: memory after / before": (1.2, False),
        # A refused embedding has cost as much as half of an answered one, so the aim is lower.
        "embedding, open loop at 3 of capacity: goodput / capacity": (0.85, True),
        "embedding, open loop at 3 of capacity: rate two seconds after / before": (1.0, True),
        "20 reloads: failed requests": (0, True),
        "20 reloads: p99 during / without": (1.5, True),
        "half cancelled: admitted - in batches - given up before, queries": (0, True),
    }
    assert ratios({"closed": [], "limits": {"echo": [], "bare": None}, "open": []}) == []


class Stalling(grpc.GenericRpcHandler):
    """Answers at once, but the first call stops the whole event loop, generator included."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer) if details.method == SEARCH else None

    async def _answer(self, request: bytes, context: object) -> bytes:
        time.sleep(self._seconds)  # noqa: ASYNC251 - that is the point
        self._seconds = 0.0
        return b""


async def test_a_stall_is_not_omitted() -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Stalling(0.5),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with FrameGenerator([f"127.0.0.1:{port}"]) as generator:
        load = await generator.scheduled(Payloads("id", [b""]), constant(20, 0.4))
    await server.stop(0)
    assert len(load.outcomes) == load.answered == 8
    waited = load.outcomes.latencies[np.argsort(load.outcomes.due)]
    # Eight were due before the stall was over.  However late they could be sent, they have waited for its end.
    assert (waited > 0.5 - np.arange(8) / 20 - 0.25).all()
    assert waited[1] > 0.25
    assert (load.outcomes.sent - load.outcomes.due).max() > 0.2


async def test_a_crowd_sends_one_schedule_between_its_processes() -> None:
    seen: list[bytes] = []

    class Listening(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(self._answer) if details.method == SEARCH else None

        async def _answer(self, request: bytes, context: object) -> bytes:
            seen.append(request)
            return b"reply"

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Listening(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    payloads = supply.embeddings({"one": 8}, 4, seed=0)
    load = await Crowd([f"127.0.0.1:{port}"], channels=2, processes=2).scheduled(payloads, constant(100, 0.5))
    await server.stop(0)
    assert load.requests == load.answered == len(load.outcomes) == 50
    assert load.replies == [b"reply"] * 50
    assert len(set(seen)) == 50
    # Both began at the same time, and each sends every other request.
    np.testing.assert_allclose(np.sort(load.outcomes.due) - load.begin, constant(100, 0.5), atol=1e-6)


async def test_a_generator_that_dies_is_told() -> None:
    with pytest.raises(ConfigurationError, match="fewer --generators") as caught:
        # Nobody listens there, and the port is none.
        await Crowd(["127.0.0.1:99999"], processes=2, timeout=0.1).scheduled(Refusing("id", [b""]), constant(10, 0.1))
    assert caught.value.reason == "BENCH_GENERATOR"


class Refusing(Payloads):
    """Cannot be used in another process."""

    def __setstate__(self, state: object) -> None:
        raise SystemExit(3)

    def beginning_at(self, first: int) -> Payloads:
        return self


def test_a_measurement_tells_what_of_it_cannot_be_believed() -> None:
    good: dict[str, Any] = {
        "machine": {"load_before": 0.4, "cores": 2},
        "closed": [{"kind": "embedding", "per_second": 900.0}, {"kind": "image", "per_second": 70.0}],
        "limits": {"bare": {"search_batch": {"per_second": 880.0}, "forward_batch": {"per_second": 60.0}}},
        "open": [{"fraction": 3.0, "generator_late_p99_ms": 2.0, "p50_ms": 30.0}],
    }
    assert faults(good) == []
    wrong = good | {
        "machine": {"load_before": 0.6, "cores": 2},
        "limits": {"bare": {"search_batch": {"per_second": 684.0}}},
        "open": [{"fraction": 3.0, "generator_late_p99_ms": 31.5, "p50_ms": 30.0}],
    }
    busy, limit, late = faults(wrong)
    assert "load was 0.6 on 2 cores" in busy
    assert "search batch was measured wrongly: 684 a second alone, and 900 queries by embedding" in limit
    assert "late by 31.5 ms" in late
    assert len(faults(good | {"closed": list(reversed(good["closed"]))})) == 1


async def test_cancelled_requests_are_counted() -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Patient(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    turn = iter(range(10**6))
    async with Generator([f"127.0.0.1:{port}"]) as generator:
        load = await generator.closed(
            Payloads("id", [b""]), 4, Window(0.3, warm=0.0), lambda: 0.001 if next(turn) % 2 else None
        )
    await server.stop(0)
    assert load.answered + load.cancelled == load.requests
    assert abs(load.answered - load.cancelled) <= 1


class Patient(grpc.GenericRpcHandler):
    """Takes its time."""

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer) if details.method == SEARCH else None

    async def _answer(self, request: bytes, context: object) -> bytes:
        await asyncio.sleep(0.05)
        return b""


async def test_the_echo_sends_the_same_reply_by_both_calls() -> None:
    reply = pb.SearchResponse(index_version="v" * 300).SerializeToString()
    payloads = Payloads("id", [pb.SearchRequest(query=pb.Query(image_id="x")).SerializeToString()])
    with echo_server(reply) as (address, _):
        async with Generator([address], channels=2) as generator:
            unary = await generator.closed(payloads, 3, Window(0.1))
            stream = await generator.streamed(payloads, 3, Window(0.1))
    assert set(unary.replies) == {reply}
    answers = [pb.SearchStreamResponse.FromString(one) for one in stream.replies]
    assert {one.request_id for one in answers} == {"0", "1", "2"}
    assert {one.response.SerializeToString() for one in answers} == {reply}
    for load in (unary, stream):
        assert load.answered == load.requests >= 12
        assert (load.outcomes.latencies > 0).all()


async def test_a_server_that_runs_already_is_measured(serve: Any, tiny: Any) -> None:
    said: list[str] = []
    async with serve() as running:
        plan = Plan(
            target=running.server.address, limits=False, seconds=0.1, rounds=1, concurrency=(1, 4),
            kinds=("embedding", "image", "id"),
        )  # fmt: skip
        document = await measure(plan, said.append)
    loops = {(one["kind"], one["mode"], one["concurrency"]): one for one in document["closed"]}
    assert set(loops) == {
        *(("embedding", "unary", count) for count in (1, 4, 32)), ("embedding", "stream", 4),
        *(("image", "unary", count) for count in (1, 4)), ("image", "stream", 4),
        *(("id", "unary", count) for count in (1, 4)),
    }  # fmt: skip
    for one in document["closed"]:
        assert one["errors"] == {}
        assert one["per_second"] > 0
        assert one["p50_ms"] <= one["p95_ms"] <= one["p99_ms"]
    stages = loops["image", "unary", 1]["stages"]
    assert 0 < stages["embed"] < loops["image", "unary", 1]["mean_ms"]
    assert loops["embedding", "unary", 1]["stages"]["embed"] == 0
    assert document["settings"]["query_images"]["from"] == "the gallery"
    assert [flood["fraction"] for flood in document["open"]] == [0.7, 3.0]
    assert int(document["index"]["images"]) == 65
    assert any("image, stream" in line for line in said)
    json.dumps(document)


async def test_reloads_under_load_are_told_apart_from_calm(serve: Any, tiny: Any) -> None:
    payloads = supply.ids(["red-rings-1", "twin"])
    async with serve() as running, FrameGenerator([running.server.address]) as generator:
        told = await reload_under_load(
            generator, payloads, running.server.admin_address, ("one", "other"), reloads=2, rate=50, seconds=0.3,
            seed=0,
        )  # fmt: skip
    assert (told["reloads"], told["failed"], told["errors"]) == (2, 0, {})
    assert told["reload_ms"]["count"] == 2
    # It loads the same engine twice, at once: hardly a request is under way then.
    assert 0 <= told["during"]["count"] < told["requests"]
    assert told["without"]["count"] == len(poisson(50, 0.3, 0))


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def test_the_command_measures_an_index(tiny: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "serve", str(tiny.index), "--seconds", "0.1", "--rounds", "1", "--concurrency", "1,4", "--open", "3", "--kind",
        "image", "embedding", "--device", "cpu", "--runtime", "torch", "--max-batch", "8", "--cancel",
        "--serve=--queue 20", "--json", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert command.run(parse(*arguments)) == 0
    out, err = capfd.readouterr()
    document = json.loads(out)
    assert document == json.loads((tmp_path / "out/results.json").read_text())
    assert (tmp_path / "out/serve.png").read_bytes().startswith(b"\x89PNG")
    assert document["machine"]["cores"] >= 1
    assert set(document["limits"]["bare"]["runtimes"].values()) == {"torch-cpu"}
    assert document["limits"]["bare"]["matrix_bytes"] == 65 * (16 + 12) * 2
    assert document["limits"]["bare"]["forward_batch"]["each"] == 8
    assert {one["mode"] for one in document["limits"]["echo"]} == {"unary", "stream"}
    cancelled = document["cancelled"]
    assert cancelled["answered"] + cancelled["left_early"] <= cancelled["sent"]
    names = [ratio["name"] for ratio in document["ratios"]]
    assert "image, 1 in flight: p50 minus bare, ms" in names
    assert "embedding, 4 in flight: rate / empty echo" in names
    assert "against the limits of this run" in err
    # 32 in flight do not fit into a queue of 20: the option has reached the server.
    loops = {(one["kind"], one["mode"], one["concurrency"]): one for one in document["closed"]}
    assert loops["image", "unary", 32]["errors"].keys() == {"OVERLOADED"}


def test_wrong_usage_and_what_cannot_be_measured(tmp_path: Path) -> None:
    for wrong in (("serve", "--concurrency", "1,x"), ("serve", "--open", "0"), ("serve", "--kind", "word"), ()):
        with pytest.raises(SystemExit) as caught:
            parse(*wrong)
        assert caught.value.code == 2
    for arguments, words in (
        (("serve",), "there is nothing to measure"),
        (("serve", "--target", "localhost:1", "--reloads", "3"), "needs a server that is started for it"),
        (("serve", str(tmp_path), "--processes", "4000"), "cores to share"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            command.run(parse(*arguments))
    with pytest.raises(ArtifactError, match="there is no index"):
        command.run(parse("serve", str(tmp_path / "nothing")))


def test_what_the_bare_engine_says_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere") as caught, bare_process([str(tmp_path / "nowhere")], []):
        pass
    assert caught.value.reason == "INDEX_NOT_FOUND"


def test_what_the_server_says_is_passed_on(tiny: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"the server did not start.*--queue.*0 is not at least 1"):
        command.run(parse("serve", str(tiny.index), "--serve=--queue 0"))
