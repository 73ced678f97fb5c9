"""The limit of the transport: a ``grpc.aio`` server that answers every request with the same bytes."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import grpc

from cbir.core.errors import ConfigurationError
from cbir.server.bench.load.generator import SEARCH, SEARCH_STREAM
from cbir.v1 import search_pb2

__all__ = ["echo_server"]

_START_SECONDS = 60.0


@contextmanager
def echo_server(reply: bytes) -> Iterator[tuple[str, int]]:
    """Run an echo server while the ``with`` block runs, and give its address and its process.

    It has the calls of the real server, so that the load generator can send it the same requests.

    Args:
        reply: A serialised ``SearchResponse``, sent as the answer to every request.

    Raises:
        ConfigurationError: ``BENCH_ECHO``: it did not start.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs, reply), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(_START_SECONDS):
            raise ConfigurationError("the echo server did not start: try again", reason="BENCH_ECHO")
        assert process.pid is not None
        yield f"127.0.0.1:{ours.recv()}", process.pid
    finally:
        # Closing the pipe tells the process to end.
        ours.close()
        process.join(10)
        process.kill()
        process.join()


def _run(pipe: Connection, reply: bytes) -> None:
    asyncio.run(_serve(pipe, reply))


async def _serve(pipe: Connection, reply: bytes) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((_Echo(reply),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipe.send(port)
    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), closed.set)
    await closed.wait()
    await server.stop(0.5)


class _Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    """``Search`` and ``SearchStream`` without (de)serialisation: requests and answers are bytes."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply
        self._streamed = search_pb2.SearchStreamResponse(
            response=search_pb2.SearchResponse.FromString(reply)
        ).SerializeToString()
        self._handlers = {
            SEARCH: grpc.unary_unary_rpc_method_handler(self._unary),
            SEARCH_STREAM: grpc.stream_stream_rpc_method_handler(self._stream),
        }

    def service(self, details: Any) -> Any:
        return self._handlers.get(details.method)

    async def _unary(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return self._reply

    async def _stream(self, requests: object, context: grpc.aio.ServicerContext) -> None:
        # A stream's request begins with field 1, its id, which the answer repeats; the SearchResponse is field 2 of the
        # answer.
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request[: 2 + request[1]] + self._streamed)
