"""What logs and traces are told of single queries: slow ones, and every one where traces are on.

A caller may name its request by the metadata ``x-request-id``; else it gets a number when there is something to tell.
Neither images nor tokens are told.
"""

from __future__ import annotations

import logging
import re
import secrets
from time import perf_counter

import grpc

from cbir.core.errors import CbirError
from cbir.server.observe import STAGE_ORDER, Traces
from cbir.v1 import search_pb2

__all__ = ["REQUEST_ID", "QueryWatch", "request_id"]

REQUEST_ID = "x-request-id"
_USABLE = re.compile(r"[A-Za-z0-9._:\-]{1,64}")
_log = logging.getLogger("cbir.server.queries")


def request_id(context: grpc.aio.ServicerContext) -> str:
    """The caller's name of a request where it is short and plain, else a new one."""
    for name, value in context.invocation_metadata() or ():
        if name == REQUEST_ID and isinstance(value, str) and _USABLE.fullmatch(value):
            return value
    return secrets.token_hex(8)


class QueryWatch:
    """Tells of unary queries.  Where nothing is asked for, a query costs one comparison.

    Args:
        slow_seconds: Queries that take longer are logged with the time of each stage; None: none is.
        traces: Where spans are made; None: nowhere.
    """

    def __init__(self, slow_seconds: float | None = None, traces: Traces | None = None) -> None:
        self._slow, self.traces = float("inf") if slow_seconds is None else slow_seconds, traces

    def answered(self, context: grpc.aio.ServicerContext, answer: bytes, begun: float) -> None:
        """A query was answered.

        Args:
            begun: When it came, on the clock of :func:`time.perf_counter`.
        """
        seconds = perf_counter() - begun
        if self.traces is None and seconds < self._slow:
            return
        response = search_pb2.SearchResponse.FromString(answer)
        stages = {stage: getattr(response.timings, stage).ToNanoseconds() / 1e9 for stage in STAGE_ORDER}
        facts: dict[str, str | int] = {"cbir.index_version": response.index_version, "cbir.hits": len(response.hits)}
        name = request_id(context)
        self._trace(context, seconds, {"cbir.request_id": name, **facts}, stages)
        if seconds >= self._slow:
            told = " ".join(f"{stage}={1e3 * length:.1f}" for stage, length in stages.items())
            extra = {"request_id": name, "seconds": round(seconds, 4), "version": response.index_version}
            _log.warning("a query took %.0f ms, of which in ms: %s", 1e3 * seconds, told, extra=extra)

    def failed(self, context: grpc.aio.ServicerContext, error: Exception, begun: float) -> None:
        """A query was refused, or could not be answered."""
        seconds = perf_counter() - begun
        if self.traces is None and seconds < self._slow:
            return
        reason = error.reason if isinstance(error, CbirError) else "INTERNAL"
        name = request_id(context)
        self._trace(context, seconds, {"cbir.request_id": name, "cbir.reason": reason}, {}, reason)
        if seconds >= self._slow:
            extra = {"request_id": name, "seconds": round(seconds, 4), "reason": reason}
            _log.warning("a query took %.0f ms and failed: %s", 1e3 * seconds, reason, extra=extra)

    def _trace(
        self,
        context: grpc.aio.ServicerContext,
        seconds: float,
        facts: dict[str, str | int],
        stages: dict[str, float],
        failure: str = "",
    ) -> None:
        if self.traces is not None:
            self.traces.query(context.invocation_metadata() or (), seconds, facts, stages, failure)
