"""Prometheus metrics of real servers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import urllib.request
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cbir.core.errors import ConfigurationError
from cbir.server.deployment import EngineConfig
from cbir.server.engine import Engine
from cbir.server.limits import Limits
from cbir.server.queue import Histogram, Lane
from cbir.server.transport import Server
from cbir.v1 import admin_pb2
from cbir.v1 import search_pb2 as pb

Samples = dict[tuple[str, tuple[str, ...]], float]


async def scrape(server: Server) -> Samples:
    """Every sample by name and label values, those in the order of the labels' names."""
    assert server.metrics is not None
    url = f"http://127.0.0.1:{server.metrics.port}/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
    families = text_string_to_metric_families(text)
    return {
        (s.name, tuple(v for _, v in sorted(s.labels.items()))): s.value for family in families for s in family.samples
    }


def by_id(image_id: str) -> pb.SearchRequest:
    return pb.SearchRequest(query=pb.Query(image_id=image_id))


def test_histograms_count_by_upper_bound() -> None:
    histogram = Histogram((1, 2, 4))
    for value in (0, 1, 1.5, 2, 5, 100):
        histogram.add(value)
    assert histogram.counts == [2, 2, 0, 2]
    assert histogram.sum == 109.5


async def test_what_queries_leave_behind(own_tiny: Any, publish: Any, engine: Engine) -> None:
    limits = Limits(max_batch=4, queue=1, cache_entries=10)
    config = EngineConfig(own_tiny.index, device="cpu", runtime="torch", limits=limits)
    server = Server(config, metrics=("127.0.0.1", 0))
    await server.start()
    loading = await scrape(server)
    assert ("cbir_gallery_images", ()) not in loading
    assert loading["cbir_admitted_total", ()] == 0
    try:
        await server.load()
        async with (
            grpc.aio.insecure_channel(server.address) as channel,
            grpc.aio.insecure_channel(server.admin_address) as private,
        ):
            from cbir.v1 import admin_pb2_grpc, search_pb2_grpc

            search = search_pb2_grpc.SearchServiceStub(channel).Search
            picture = pb.SearchRequest(query=pb.Query(image=own_tiny.bytes_of("twin")))
            for request in (picture, by_id("twin"), by_id("twin")):
                assert (await search(request)).hits
            with pytest.raises(grpc.aio.AioRpcError):
                await search(by_id("nobody"))
            server.pipeline.admission.take(Lane("somebody"), 1, 77, 0)
            with pytest.raises(grpc.aio.AioRpcError):
                await search(by_id("red-rings-1"))
            seen = await scrape(server)
            admin = admin_pb2_grpc.AdminServiceStub(private)
            with pytest.raises(grpc.aio.AioRpcError):
                await admin.ReloadIndex(admin_pb2.ReloadIndexRequest(version="nobody"))
            new = publish(own_tiny.index)
            await admin.ReloadIndex(admin_pb2.ReloadIndexRequest())
            reloaded = await scrape(server)
    finally:
        await server.stop()
    assert seen["cbir_queries_total", ("answered", "")] == 3
    assert seen["cbir_queries_total", ("rejected", "UNKNOWN_IMAGE_ID")] == 1
    assert seen["cbir_queries_total", ("refused", "OVERLOADED")] == 1
    assert seen["cbir_admitted_total", ()] == 3
    assert (seen["cbir_queue", ("unary",)], seen["cbir_queue", ("stream",)], seen["cbir_queue_bytes", ()]) == (1, 0, 77)
    # One image and one id reached a batch; the second id was answered from memory.
    assert seen["cbir_stage_seconds_count", ("decode",)] == seen["cbir_stage_seconds_count", ("embed",)] == 1
    for stage in ("queue", "search", "fuse", "total"):
        assert seen["cbir_stage_seconds_count", (stage,)] == seen["cbir_stage_seconds_bucket", ("+Inf", stage)] == 2
        assert seen["cbir_stage_seconds_sum", (stage,)] > 0
    assert (seen["cbir_batch_size_bucket", ("1",)], seen["cbir_batch_size_sum", ()]) == (2, 2)
    assert [seen[f"cbir_cache_{name}", ()] for name in ("hits_total", "misses_total", "entries")] == [1, 4, 2]
    assert seen["cbir_cache_bytes", ()] > 2 * 256
    assert seen["cbir_index_info", ("tiny", "exact", own_tiny.version)] == 1
    assert seen["cbir_gallery_images", ()] == 65
    assert seen["process_cpu_seconds_total", ()] > 0
    assert reloaded["cbir_reloads_total", ("changed",)] == reloaded["cbir_reloads_total", ("refused",)] == 1
    assert reloaded["cbir_index_info", ("tiny", "exact", new)] == 1
    assert ("cbir_index_info", ("tiny", "exact", own_tiny.version)) not in reloaded
    assert reloaded["cbir_cache_entries", ()] == 0


async def test_servers_of_one_process_share_nothing(tiny: Any, engine: Engine) -> None:
    config = EngineConfig(tiny.index, device="cpu", runtime="torch")
    servers = [Server(config, metrics=("127.0.0.1", 0)) for _ in range(2)]
    for server in servers:
        await server.start()
    servers[0].pipeline.tally.admitted = 7
    assert [(await scrape(server))["cbir_admitted_total", ()] for server in servers] == [7, 0]
    taken = servers[0].metrics
    assert taken is not None
    third = Server(config, metrics=("127.0.0.1", taken.port))
    with pytest.raises(
        ConfigurationError, match=f"metrics cannot be served on port {taken.port} of 127.0.0.1"
    ) as caught:
        await third.start()
    assert caught.value.reason == "PORT_IN_USE"
    for server in servers:
        await server.stop(0)
    with pytest.raises(OSError):
        await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{taken.port}/metrics", timeout=5)


def test_a_server_without_metrics_does_without_the_package() -> None:
    modules = "cbir.server.transport.lifecycle, cbir.server.commands.serve"
    code = f"import sys; sys.modules['prometheus_client'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
