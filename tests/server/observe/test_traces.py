"""Slow queries in the log and traces of queries, from a real server."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cbir.server.deployment import EngineConfig
from cbir.server.observe import STAGE_ORDER, LoopLag, Traces
from cbir.server.transport import QueryWatch, Server
from cbir.v1 import search_pb2 as pb
from cbir.v1 import search_pb2_grpc

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def stub(tiny: Any, spans: InMemorySpanExporter) -> AsyncIterator[Any]:
    config = EngineConfig(tiny.index, device="cpu", runtime="torch")
    async with (
        Server(config, watch=QueryWatch(0.0, Traces(spans))) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield search_pb2_grpc.SearchServiceStub(channel)


def by_stage(found: Sequence[ReadableSpan]) -> dict[str, ReadableSpan]:
    return {span.name: span for span in found}


async def test_a_query_goes_on_with_its_callers_trace(
    stub: Any, tiny: Any, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    request = pb.SearchRequest(query=pb.Query(image=tiny.bytes_of("blue-rings-2")))
    metadata = [("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "from.caller:1")]
    with caplog.at_level(logging.WARNING, "cbir.server.queries"):
        answer = await stub.Search(request, metadata=metadata)
    found = by_stage(spans.get_finished_spans())
    whole = found["cbir.v1.SearchService/Search"]
    assert format(whole.context.trace_id, "032x") == TRACE
    assert whole.parent is not None
    assert format(whole.parent.span_id, "016x") == PARENT
    assert whole.attributes is not None
    assert whole.attributes["cbir.request_id"] == "from.caller:1"
    assert whole.attributes["cbir.index_version"] == answer.index_version
    stages = [found[stage] for stage in STAGE_ORDER if stage in found]
    assert {"decode", "embed", "search"} <= set(found)
    for one, after in itertools.pairwise(stages):
        assert one.parent is not None
        assert one.parent.span_id == whole.context.span_id
        assert one.end_time == after.start_time
    assert stages[0].start_time == whole.start_time
    assert stages[-1].end_time <= whole.end_time
    decode = found["decode"]
    # Both ends are rounded to whole nanoseconds.
    assert abs(decode.end_time - decode.start_time - answer.timings.decode.ToNanoseconds()) <= 1
    # Slow is whatever takes longer than nothing here.
    [record] = caplog.records
    assert "a query took" in record.message
    assert "decode=" in record.message
    assert record.request_id == "from.caller:1"  # type: ignore[attr-defined]


async def test_a_failure_is_a_span_too_and_odd_ids_are_not_taken(stub: Any, spans: InMemorySpanExporter) -> None:
    request = pb.SearchRequest(query=pb.Query(image=b"no image"))
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Search(request, metadata=[("x-request-id", "a" * 65)])
    [span] = spans.get_finished_spans()
    assert span.status.description == "IMAGE_FORMAT"
    assert span.attributes is not None
    assert len(str(span.attributes["cbir.request_id"])) == 16


async def test_the_loops_lag_is_measured() -> None:
    lag = LoopLag(every=0.01)
    lag.start()
    await asyncio.sleep(0.03)
    # The loop stands still meanwhile.
    import time

    time.sleep(0.1)  # noqa: ASYNC251
    await asyncio.sleep(0.03)
    lag.stop()
    late = dict(zip([*lag.lateness.bounds, float("inf")], lag.lateness.counts, strict=True))
    assert sum(count for bound, count in late.items() if bound > 0.05) >= 1
