"""Metrics for Prometheus, served over HTTP on a port of their own.

The server counts with plain additions (:mod:`cbir.server.queue.tally`); the numbers are put into Prometheus's form only
when it asks, and servers in one process have separate metrics.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from itertools import accumulate
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from cbir.core.errors import ConfigurationError
from cbir.core.images import DecodingPool
from cbir.server.deployment import Deployment
from cbir.server.observe.loop_lag import LoopLag
from cbir.server.queue import Histogram, NotReadyError, Pipeline

__all__ = ["MetricsEndpoint", "ServerCollector"]


class ServerCollector(Collector):
    """Collects the metrics of one server."""

    def __init__(self, pipeline: Pipeline, deployment: Deployment, lag: LoopLag, decoding: DecodingPool) -> None:
        self._pipeline, self._deployment, self._lag, self._decoding = pipeline, deployment, lag, decoding

    def describe(self) -> Iterable[Metric]:
        """Nothing: so that registering the collector does not collect."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        yield from self._queries()
        yield from self._cache()
        yield from self._index()
        yield from self._loop()

    def _queries(self) -> Iterator[Metric]:
        tally, admission, streams = self._pipeline.tally, self._pipeline.admission, self._pipeline.streams
        outcomes = CounterMetricFamily(
            "cbir_queries", "What callers were told, by outcome and reason.", labels=["outcome", "reason"]
        )
        for (outcome, reason), count in sorted(tally.outcomes.items()):
            outcomes.add_metric([outcome, reason], count)
        yield outcomes
        yield _counter("cbir_admitted", "Queries that were let in.", tally.admitted)
        yield _counter("cbir_expired", "Queries whose deadline passed before their batch began.", tally.expired)
        yield _counter("cbir_joined", "Queries that waited for an equal query of another caller.", tally.joined)
        cancelled = CounterMetricFamily(
            "cbir_cancelled", "Queries whose callers all left, before or after their batch began.", labels=["when"]
        )
        cancelled.add_metric(["before_batch"], tally.cancelled)
        cancelled.add_metric(["after_batch"], tally.cancelled_late)
        yield cancelled
        depth = GaugeMetricFamily("cbir_queue", "Work admitted and not yet answered; an image is 1.", labels=["calls"])
        depth.add_metric(["unary"], admission.used)
        depth.add_metric(["stream"], streams.used)
        yield depth
        held = GaugeMetricFamily("cbir_queue_bytes", "Bytes of query images admitted and not yet answered.")
        held.add_metric([], admission.used_bytes + streams.used_bytes)
        yield held
        stages = HistogramMetricFamily("cbir_stage_seconds", "Seconds a query spends, by stage.", labels=["stage"])
        for stage, histogram in tally.stages.items():
            stages.add_metric([stage], *_cumulative(histogram))
        yield stages
        scores = HistogramMetricFamily("cbir_first_hit_score", "Score of the first hit of answers with hits.")
        scores.add_metric([], *_cumulative(tally.first_scores))
        yield scores
        sizes = HistogramMetricFamily("cbir_batch_size", "Queries in a batch.")
        sizes.add_metric([], *_cumulative(tally.batches))
        yield sizes

    def _cache(self) -> Iterator[Metric]:
        cache = self._pipeline.cache
        yield _counter("cbir_cache_hits", "Queries that were answered from memory.", cache.hits)
        yield _counter("cbir_cache_misses", "Queries whose answer was not in memory.", cache.misses)
        yield _counter("cbir_cache_evictions", "Answers that made room for others.", cache.evictions)
        yield _gauge("cbir_cache_entries", "Answers in memory.", len(cache))
        yield _gauge("cbir_cache_bytes", "Bytes of the answers in memory.", cache.bytes)

    def _index(self) -> Iterator[Metric]:
        reloads = CounterMetricFamily("cbir_reloads", "Reloads of the index, by outcome.", labels=["outcome"])
        reloads.add_metric(["changed"], self._deployment.reloaded)
        reloads.add_metric(["refused"], self._deployment.refused)
        yield reloads
        try:
            info = self._deployment.engine.info
        except NotReadyError:
            return
        loaded = GaugeMetricFamily("cbir_index_info", "What is loaded.", labels=["version", "ensemble", "index"])
        loaded.add_metric([info.version, info.ensemble, info.index], 1)
        yield loaded
        yield _gauge("cbir_gallery_images", "Images of the gallery.", info.images)

    def _loop(self) -> Iterator[Metric]:
        late = HistogramMetricFamily("cbir_loop_lag_seconds", "How late the event loop is, asked a few times a second.")
        late.add_metric([], *_cumulative(self._lag.lateness))
        yield late
        yield _counter(
            "cbir_decoding_workers_lost",
            "Decoding workers that were killed or died, each with one image.",
            self._decoding.lost,
        )
        yield _gauge("cbir_loop_lag_last_seconds", "How late the event loop was the last time.", self._lag.last)


class MetricsEndpoint:
    """An HTTP server, on a thread of its own, with the metrics of one server and of its process.

    Args:
        port: 0 takes any free port; :attr:`port` says which.

    Raises:
        ConfigurationError: ``PORT_IN_USE``.
    """

    def __init__(self, collector: ServerCollector, host: str, port: int) -> None:
        collectors = CollectorRegistry(auto_describe=False)
        collectors.register(collector)
        ProcessCollector("", lambda: "self", "/proc", collectors)
        PlatformCollector(collectors)
        GCCollector(collectors)
        self._http: WSGIServer
        self._thread: threading.Thread
        try:
            self._http, self._thread = start_http_server(port, host, collectors)
        except OSError as error:
            raise ConfigurationError(
                f"metrics cannot be served on port {port} of {host} ({(error.strerror or 'no reason given').lower()}): "
                "give another --metrics-port or --metrics-host",
                reason="PORT_IN_USE",
                port=port,
            ) from error
        self.port = int(self._http.server_port)

    def close(self) -> None:
        """Stop serving.  Blocks for up to half a second."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _cumulative(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True)), histogram.sum
