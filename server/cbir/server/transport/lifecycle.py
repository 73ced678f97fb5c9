"""The server process: listens, loads, answers, stops."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from cbir.core.errors import ConfigurationError
from cbir.core.images import DecodingPool
from cbir.server.access import Access, Gate, Listener, Scope, Signpost, TokenFile
from cbir.server.deployment import Deployment, EngineConfig
from cbir.server.engine import Engine
from cbir.server.limits import GRACE, Limits
from cbir.server.observe import LoopLag, Notifier
from cbir.server.queue import Pipeline
from cbir.server.transport import status
from cbir.server.transport.answer_bytes import warm_up, write_results
from cbir.server.transport.connections import ConnectionGuard
from cbir.server.transport.health import Health
from cbir.server.transport.query_watch import QueryWatch
from cbir.server.transport.service import AdminService, SearchService
from cbir.server.transport.supervision import Supervisor
from cbir.v1 import admin_pb2, admin_pb2_grpc, search_pb2

if TYPE_CHECKING:
    from cbir.server.observe import MetricsEndpoint

__all__ = ["Server"]

_DRAIN_EVERY = 0.02

_SEARCH = search_pb2.DESCRIPTOR.services_by_name["SearchService"]
_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
_REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
_SCOPES = {
    "Search": Scope.SEARCH,
    "SearchStream": Scope.SEARCH,
    "GetIndexInfo": Scope.SEARCH,
    "GetImage": Scope.IMAGE,
    "ListImages": Scope.SEARCH,
    "GetFacets": Scope.SEARCH,
    "ReloadIndex": Scope.ADMIN,
}


class Server:
    """One gRPC server on one event loop: a listener for queries and one for admin calls.

    From :meth:`start` on it listens and refuses queries with UNAVAILABLE; from :meth:`load` on it answers.

    Args:
        host: Name or address to listen on.
        port: 0 takes any free one; :attr:`port` tells which.
        metrics: Host and port where Prometheus finds metrics, port 0 as above; None: nowhere.
        watch: What logs and traces are told of single queries; None: nothing.
        access: Who is let in.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        metrics: tuple[str, int] | None = None,
        watch: QueryWatch | None = None,
        access: Access | None = None,
    ) -> None:
        self._public, self._access, self._wanted_metrics = Listener(host, port), access or Access(), metrics
        self._private = self._access.admin_beside(self._public)
        for listener in (self._public, self._private):
            self._access.check(listener)
        self._tokens = TokenFile(self._access.tokens) if self._access.tokens else None
        self.port = self._admin_port = 0
        self.metrics: MetricsEndpoint | None = None
        self._stopping = asyncio.Event()
        self.pipeline = Pipeline(config.limits, partial(write_results, expose_paths=config.expose_paths))
        limits = config.limits
        #: Where images are decoded, query images and those of the gallery.
        self.decoding = DecodingPool(
            limits.decoders, seconds=limits.decode_seconds, in_flight_bytes=limits.decode_bytes,
            max_pixels=limits.max_pixels,
        )  # fmt: skip
        self.deployment = Deployment(config, self.pipeline, self.decoding)
        self._health = Health([_SEARCH.full_name])
        self._watch, self._lag = watch, LoopLag()
        self._search = SearchService(self.deployment, self.pipeline, limits, self._stopping, self.decoding, watch)
        self._guard = ConnectionGuard(limits.connections_per_peer)
        self._notifier = Notifier()
        self._supervisor = Supervisor(self.deployment, self.pipeline, self._health, limits, self._notifier)
        self._grpc, self._admin = self._serve_queries(limits), self._serve_operators(limits)

    def _serve_queries(self, limits: Limits) -> grpc.aio.Server:
        exposed = self._access.expose
        told = f"admin calls are taken at another address ({self._private.path or self._private.host}): see --admin"
        scopes = {method.name: _SCOPES[method.name] for method in _SEARCH.methods}
        gates = self._gates(_by_path(_SEARCH, scopes))
        server = grpc.aio.server(interceptors=gates, options=_options(limits), maximum_concurrent_rpcs=limits.max_calls)
        handlers = self._search.handlers()
        # First what is asked most: gRPC asks one handler after the other.
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SEARCH.full_name, handlers),))
        server.add_generic_rpc_handlers((Signpost(dict.fromkeys(_paths(_ADMIN), told), status.abort),))
        # As generated code does: where gRPC is recent, each method then has a list of waiting calls to itself, so that
        # a flood of searches fills no other.
        server.add_registered_method_handlers(_SEARCH.full_name, handlers)
        if "health" in exposed:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if "reflection" in exposed:
            _reflect((_SEARCH.full_name, _HEALTH.full_name), server)
        return server

    def _gates(self, scopes: dict[str, Scope | None]) -> list[Gate]:
        """None without tokens: a gate that lets everybody in would only cost every call its time."""
        return [Gate(self._tokens, scopes, status.abort)] if self._tokens else []

    def _serve_operators(self, limits: Limits) -> grpc.aio.Server:
        scopes = {method.name: Scope.ADMIN for method in _ADMIN.methods} | {"ServerReflectionInfo": Scope.ADMIN}
        wanted = {**_by_path(_ADMIN, scopes), **_by_path(_REFLECTION, scopes)}
        wanted[f"/{_REFLECTION_V1}/ServerReflectionInfo"] = Scope.ADMIN
        server = grpc.aio.server(
            interceptors=self._gates(wanted), options=_options(limits), maximum_concurrent_rpcs=limits.max_admin_calls
        )
        admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(self.deployment), server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        _reflect((_SEARCH.full_name, _ADMIN.full_name, _HEALTH.full_name), server)
        return server

    @property
    def address(self) -> str:
        """``host:port`` to connect to."""
        return self._public.address(self.port)

    @property
    def admin_address(self) -> str:
        """``host:port`` or ``unix:PATH`` of admin calls."""
        return self._private.address(self._admin_port)

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
            ConfigurationError: ``PORT_IN_USE``, ``ADDRESS_UNUSABLE`` or ``TLS_UNUSABLE``, of calls or of metrics.
        """
        try:
            self.port = await self._listen(self._grpc, self._public)
            self._admin_port = await self._listen(self._admin, self._private)
        except ConfigurationError:
            await self.stop(0)
            raise
        await self._search.acceptance.start(self._grpc)
        self._lag.start()
        await self._admin.start()
        self._guard.watch({self.port, self._admin_port} - {0})
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

    async def _listen(self, server: grpc.aio.Server, listener: Listener) -> int:
        await asyncio.to_thread(listener.try_it)
        # What stays on this machine need not be encrypted, unless it is the listener that others are meant to use.
        tls = self._access.tls if listener is self._public or not listener.is_local else None
        before = os.umask(0o177)  # of a Unix socket, which is its owner's alone
        try:
            address = listener.address(listener.port)
            if tls is not None:
                return int(server.add_secure_port(address, tls.credentials()))
            return int(server.add_insecure_port(address))
        except RuntimeError as error:
            raise listener.taken() from error
        finally:
            os.umask(before)

    async def load(self) -> Engine:
        """Load the index and its models, answer a query with them, and report SERVING.

        Raises:
            CbirError: They cannot be loaded.
        """
        engine = await self.deployment.load()
        await asyncio.to_thread(warm_up)
        await self._health.set_serving(True)
        self._supervisor.start()
        self._notifier.ready(f"serving {engine.version}, {len(engine.gallery)} images, on {self.address}")
        return engine

    async def stop(self, grace: float = GRACE) -> None:
        """Report NOT_SERVING, take no new calls, let those under way end, and free the threads.

        May be called again with less grace to stop sooner.

        Args:
            grace: Seconds after which calls under way are cut off.
        """
        self._stopping.set()
        end = monotonic() + grace
        self._notifier.stopping()
        await self._search.acceptance.release()
        self._guard.close()
        await self._supervisor.stop()
        await self._health.stop()
        # gRPC cuts off what has reached it and not yet the loop: so what is here is answered first, and new calls are
        # told to come again elsewhere.
        while self._search.under_way and monotonic() < end:  # noqa: ASYNC110 - counted without a lock, thousands a second
            await asyncio.sleep(_DRAIN_EVERY)
        left = max(0.0, end - monotonic())
        await asyncio.gather(self._grpc.stop(left), self._admin.stop(left))
        await self.pipeline.close(max(0.0, end - monotonic()))
        self._search.close()
        self._lag.stop()
        if self._watch is not None and self._watch.traces is not None:
            await asyncio.to_thread(self._watch.traces.close)
        await asyncio.to_thread(self.decoding.close)
        if self._private.path is not None:
            self._private.path.unlink(missing_ok=True)
        if self.metrics is not None:
            await asyncio.to_thread(self.metrics.close)
            self.metrics = None


def _reflect(names: tuple[str, ...], server: grpc.aio.Server) -> None:
    """Let tools ask what services there are, by v1alpha of the reflection service and by v1.

    The package knows v1alpha alone; v1 differs in the service's name and in nothing else, so the same code answers it.
    """
    names = (*names, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer((*names, _REFLECTION_V1)).ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = grpc.method_handlers_generic_handler(_REFLECTION_V1, {"ServerReflectionInfo": handler})
    server.add_generic_rpc_handlers((handlers,))


def _paths(service: object) -> list[str]:
    return [f"/{service.full_name}/{method.name}" for method in service.methods]  # type: ignore[attr-defined]


def _by_path(service: object, scopes: dict[str, Scope]) -> dict[str, Scope | None]:
    return {path: scopes[path.rpartition("/")[2]] for path in _paths(service)}


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        # Two servers on one port would share its calls; a port in use is to be an error.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        # A flood is held back before it costs anything: by connection through HTTP/2, which tells a client that a
        # stream was refused before it began (UNAVAILABLE, safe to send again), and whatever the number of connections
        # by a short list of calls that wait to be looked at.  Refusals in Python cost nearly what answers cost.
        ("grpc.max_concurrent_streams", limits.streams_per_connection),
        ("grpc.server.max_pending_requests", limits.pending),
        ("grpc.server.max_pending_requests_hard_limit", 2 * limits.pending),
        # Clients may send keepalive pings this often, with or without calls; those that ping more often are cut off.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", limits.ping_seconds * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 2),
        # Who connects and says nothing is cut off; who has nothing to do is asked to connect again when he has.
        ("grpc.server_handshake_timeout_ms", limits.handshake_seconds * 1000),
        ("grpc.max_connection_idle_ms", limits.idle_seconds * 1000),
        ("grpc.max_connection_age_ms", limits.age_seconds * 1000),
        ("grpc.max_connection_age_grace_ms", limits.age_seconds * 1000),
        # Peers that are gone without a word are found out.
        ("grpc.keepalive_time_ms", limits.keepalive_seconds * 1000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
