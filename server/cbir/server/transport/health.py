"""The standard gRPC health service.

The servicer that comes with ``grpcio-health-checking`` forgets its other watchers when one of them leaves, and its
watchers hold up a graceful stop; this one does neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

__all__ = ["Health"]

_Response = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Tells whether the services of this process answer: all of them alike.

    Args:
        services: Full names; ``""`` (the server as a whole) is added.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = {"", *services}
        self._status = _Response.NOT_SERVING
        self._stopped = False
        self._changed = asyncio.Condition()

    async def set_serving(self, serving: bool) -> None:
        """Change the status; ignored once stopped."""
        async with self._changed:
            if not self._stopped:
                self._status = _Response.SERVING if serving else _Response.NOT_SERVING
            self._changed.notify_all()

    async def stop(self) -> None:
        """NOT_SERVING for good: watchers are told, and their calls end."""
        async with self._changed:
            self._stopped, self._status = True, _Response.NOT_SERVING
            self._changed.notify_all()

    async def Check(  # noqa: N802 - the name is the protocol's
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Answer with the status now."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r}")
        return _Response(status=self._status)

    async def Watch(  # noqa: N802 - the name is the protocol's
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> None:
        """Answer with the status now and whenever it changes."""
        known = request.service in self._services
        told: int | None = None
        while True:
            status = self._status if known else _Response.SERVICE_UNKNOWN
            if status != told:
                told = status
                await context.write(_Response(status=status))
                continue
            if self._stopped:
                return
            async with self._changed:
                if self._stopped or (known and self._status != told):
                    continue
                await self._changed.wait()
