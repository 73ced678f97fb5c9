"""Traces by OpenTelemetry: one span for each query, and below it one for each stage that its answer tells of.

Where a caller sends a ``traceparent`` (W3C Trace Context), the span belongs to its trace.  The standard environment
variables, such as ``OTEL_EXPORTER_OTLP_ENDPOINT`` and ``OTEL_TRACES_SAMPLER``, tell where spans go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import time_ns
from typing import Any

from cbir.core.errors import ConfigurationError

__all__ = ["STAGE_ORDER", "Traces"]

#: The stages of a query in the order in which it passes them.
STAGE_ORDER = ("decode", "queue", "embed", "search", "fuse")


class Traces:
    """Makes the spans.

    Args:
        exporter: Takes the spans; None: the OTLP exporter, which sends them over gRPC.

    Raises:
        ConfigurationError: ``EXTRA_MISSING``: OpenTelemetry is not installed.
    """

    def __init__(self, exporter: Any = None) -> None:
        try:
            from opentelemetry import propagate, trace
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"traces need the package {error.name}: pip install 'ensemble-cbir[server,otel]'",
                reason="EXTRA_MISSING",
            ) from error
        self._propagate, self._trace = propagate, trace
        self._provider = TracerProvider(resource=Resource.create({"service.name": "ensemble-cbir"}))
        if exporter is None:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        else:
            self._provider.add_span_processor(SimpleSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("cbir.server")

    def query(
        self,
        metadata: Iterable[tuple[str, str | bytes]],
        seconds: float,
        facts: Mapping[str, str | int],
        stages: Mapping[str, float],
        failure: str = "",
    ) -> None:
        """Record a query that has just been answered or refused.

        Args:
            metadata: Of the call.
            seconds: What it took.
            facts: Attributes of the span; neither images nor secrets.
            stages: Seconds by stage, in any order.
            failure: Why there is no answer.
        """
        carrier = {name: value for name, value in metadata if isinstance(value, str)}
        end = time_ns()
        begin = end - int(seconds * 1e9)
        span = self._tracer.start_span(
            "cbir.v1.SearchService/Search",
            context=self._propagate.extract(carrier),
            kind=self._trace.SpanKind.SERVER,
            attributes={"rpc.system": "grpc", **facts},
            start_time=begin,
        )
        if failure:
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, failure))
        inside = self._trace.set_span_in_context(span)
        at = begin
        for stage in STAGE_ORDER:
            length = int(stages.get(stage, 0.0) * 1e9)
            if length:
                self._tracer.start_span(stage, context=inside, start_time=at).end(at + length)
            at += length
        span.end(end)

    def close(self) -> None:
        """Send what is not sent yet, and end.  Blocks for some seconds at most."""
        self._provider.shutdown()
