"""The server process: listens, loads, answers, stops."""

from __future__ import annotations

import asyncio
import errno
import socket
from time import monotonic
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cbir.core.errors import ConfigurationError
from cbir.core.images import DecodingPool
from cbir.server.deployment import Deployment, EngineConfig
from cbir.server.engine import Engine
from cbir.server.limits import GRACE, Limits
from cbir.server.observe import LoopLag
from cbir.server.queue import Pipeline
from cbir.server.transport.answer_bytes import warm_up, write_result
from cbir.server.transport.health import Health
from cbir.server.transport.query_watch import QueryWatch
from cbir.server.transport.service import AdminService, SearchService
from cbir.v1 import admin_pb2, admin_pb2_grpc, search_pb2

if TYPE_CHECKING:
    from cbir.server.observe import MetricsEndpoint

__all__ = ["Server"]

_SEARCH = search_pb2.DESCRIPTOR.services_by_name["SearchService"].full_name
_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Server:
    """One gRPC server on one event loop.

    From :meth:`start` on it listens and refuses queries with UNAVAILABLE; from :meth:`load` on it answers.

    Args:
        host: Name or address to listen on.
        port: 0 takes any free one; :attr:`port` tells which.
        metrics: Host and port where Prometheus finds metrics, port 0 as above; None: nowhere.
        watch: What logs and traces are told of single queries; None: nothing.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        metrics: tuple[str, int] | None = None,
        watch: QueryWatch | None = None,
    ) -> None:
        self._config, self._host, self._wanted_port, self._wanted_metrics = config, host, port, metrics
        self.port = 0
        self.metrics: MetricsEndpoint | None = None
        self._stopping = asyncio.Event()
        self.pipeline = Pipeline(config.limits, write_result)
        limits = config.limits
        #: Where images are decoded, query images and those of the gallery.
        self.decoding = DecodingPool(
            limits.decoders, seconds=limits.decode_seconds, in_flight_bytes=limits.decode_bytes,
            max_pixels=limits.max_pixels,
        )  # fmt: skip
        self.deployment = Deployment(config, self.pipeline, self.decoding)
        self._health = Health([_SEARCH])
        self._watch, self._lag = watch, LoopLag()
        self._search = SearchService(
            self.deployment, self.pipeline, config.limits, self._stopping, self.decoding, watch
        )
        self._grpc = grpc.aio.server(options=_options(config.limits), maximum_concurrent_rpcs=config.limits.max_calls)
        self._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SEARCH, self._search.handlers()),))
        admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(self.deployment), self._grpc)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reflection.enable_server_reflection((_SEARCH, _ADMIN, _HEALTH, reflection.SERVICE_NAME), self._grpc)

    @property
    def address(self) -> str:
        """``host:port`` to connect to."""
        return _join(self._host, self.port)

    async def __aenter__(self) -> Server:
        await self.start()
        try:
            await self.load()
        except BaseException:
            await self.stop(0)
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigurationError: ``PORT_IN_USE`` or ``ADDRESS_UNUSABLE``, of calls or of metrics.
        """
        try:
            await asyncio.to_thread(_try_address, self._host, self._wanted_port)
            try:
                self.port = self._grpc.add_insecure_port(_join(self._host, self._wanted_port))
            except RuntimeError as error:
                # Somebody was faster between the trial and now.
                raise _unusable(self._host, self._wanted_port, errno.EADDRINUSE, "") from error
        except ConfigurationError:
            await self.stop(0)
            raise
        await self._grpc.start()
        self._lag.start()
        if self._wanted_metrics is not None:
            # Here and not above: a server without metrics does without the package.
            from cbir.server.observe import MetricsEndpoint, ServerCollector

            try:
                self.metrics = MetricsEndpoint(
                    ServerCollector(self.pipeline, self.deployment, self._lag, self.decoding), *self._wanted_metrics
                )
            except ConfigurationError:
                await self.stop(0)
                raise

    async def load(self) -> Engine:
        """Load the index and its models, answer a query with them, and report SERVING.

        Raises:
            CbirError: They cannot be loaded.
        """
        engine = await self.deployment.load()
        await asyncio.to_thread(warm_up)
        await self._health.set_serving(True)
        return engine

    async def stop(self, grace: float = GRACE) -> None:
        """Report NOT_SERVING, take no new calls, let those under way end, and free the threads.

        May be called again with less grace to stop sooner.

        Args:
            grace: Seconds after which calls under way are cut off.
        """
        self._stopping.set()
        end = monotonic() + grace
        await self._health.stop()
        await self._grpc.stop(grace)
        await self.pipeline.close(max(0.0, end - monotonic()))
        self._search.close()
        self._lag.stop()
        if self._watch is not None and self._watch.traces is not None:
            await asyncio.to_thread(self._watch.traces.close)
        await asyncio.to_thread(self.decoding.close)
        if self.metrics is not None:
            await asyncio.to_thread(self.metrics.close)
            self.metrics = None


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        # Two servers on one port would share its calls; a port in use is to be an error.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        # Clients may send keepalive pings this often, with or without calls; those that ping more often are cut off.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", limits.ping_seconds * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 2),
    ]


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _try_address(host: str, port: int) -> None:
    """Bind and let go again: gRPC does not tell why it could not bind."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(
            f"the host {host!r} is not known ({error.strerror}): give --host an address of this machine",
            reason="ADDRESS_UNUSABLE",
        ) from error
    failures: list[OSError] = []
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as trial:
                # As servers do: connections of a server that has just ended do not count.
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
                trial.listen(1)
        except OSError as error:
            failures.append(error)
    # A name may stand for addresses of which this machine has only some; but all that it has must be free.
    taken = [error for error in failures if error.errno == errno.EADDRINUSE]
    if taken or len(failures) == len(found):
        first = (taken or failures)[0]
        raise _unusable(host, port, first.errno, first.strerror or "") from first


def _unusable(host: str, port: int, number: int | None, detail: str) -> ConfigurationError:
    if number == errno.EADDRINUSE:
        return ConfigurationError(
            f"port {port} on {host} is in use: stop the program that listens there, or give another --port "
            "(0 takes any free one)",
            reason="PORT_IN_USE",
            port=port,
        )
    return ConfigurationError(
        f"port {port} on {host} cannot be listened on ({detail.lower()}): give another --host or --port",
        reason="ADDRESS_UNUSABLE",
        port=port,
    )
