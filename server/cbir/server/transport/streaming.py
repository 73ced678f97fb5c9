"""One search stream: queries in, answers out as they are ready, at most a window of them under way."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial

import grpc

from cbir.core.errors import CbirError
from cbir.server.deployment import Deployment
from cbir.server.queue import Flight, Lane, NotReadyError, Pipeline
from cbir.server.transport import status, wire
from cbir.server.transport.bounded_parsing import aside, parse
from cbir.server.transport.intake import Intake
from cbir.v1 import search_pb2

__all__ = ["Conversation"]


class _Asker:
    """One query of a stream; takes the answer to it."""

    __slots__ = ("flight", "request_id", "size", "stream")

    def __init__(self, stream: Conversation, request_id: str, size: int) -> None:
        self.stream, self.request_id, self.size = stream, request_id, size
        self.flight: Flight | None = None

    def __call__(self, outcome: bytes | Exception) -> None:
        self.stream.answer(self, outcome)


class Conversation:
    """The course of one ``SearchStream`` call, as two tasks for all its queries: one reads, one writes.

    A stream has a lane of its own among those of its caller, so that it takes turns however much it sends.

    Args:
        caller: Whose stream it is.
        window: Most queries under way; answers that are not yet sent count among them.
        deadline: On the clock of :func:`time.monotonic`.
        intake: Reads the queries.
    """

    def __init__(
        self,
        deployment: Deployment,
        pipeline: Pipeline,
        context: grpc.aio.ServicerContext,
        caller: Lane,
        window: int,
        deadline: float | None,
        intake: Intake,
    ) -> None:
        self._deployment, self._pipeline, self._context = deployment, pipeline, context
        self._window, self._deadline, self._intake = window, deadline, intake
        self._peer = context.peer()
        self._lane = Lane(caller.identity, object())
        self._under_way: set[_Asker] = set()
        self._answers: deque[bytes] = deque()
        self._unsent = 0
        self._finished = False
        self._changed: asyncio.Future[None] | None = None  # what the writer waits for
        self._room: asyncio.Future[None] | None = None  # what the reader waits for

    async def run(self, stopping: asyncio.Event) -> None:
        """Answer until the client has ended its side and everything is answered, or until the server stops.

        Args:
            stopping: Once set, no further queries are read.
        """
        reading = asyncio.create_task(self._read())
        told = asyncio.create_task(stopping.wait())
        reading.add_done_callback(self._end)
        told.add_done_callback(lambda _: reading.cancel())
        try:
            await self._write()
            if not reading.cancelled():
                reading.result()
        finally:
            told.cancel()
            reading.cancel()
            for asker in self._under_way:
                if not stopping.is_set():
                    self._intake.wasted.left(self._peer, asker.size)
                if asker.flight is not None:
                    self._pipeline.leave(asker.flight, asker)
                    asker.flight = None
            # They know this conversation and it knows them, so that otherwise the engine that they were asked of would
            # stay, with its files, until the collector comes by.
            self._under_way.clear()

    def answer(self, asker: _Asker, outcome: bytes | Exception) -> None:
        """Queue an answer for sending."""
        self._under_way.discard(asker)
        self._unsent += 1
        self._pipeline.tally.outcome(outcome)
        if isinstance(outcome, bytes):
            self._answers.append(wire.stream_answer(asker.request_id, outcome))
        else:
            self._intake.wasted.refused(self._peer, asker.size, outcome)
            self._answers.append(wire.stream_error(asker.request_id, status.to_status(outcome)))
        self._wake_writer()

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while len(self._under_way) + self._unsent >= self._window:
                self._room = loop.create_future()
                await self._room
            data = await self._intake.read(self._context, self._lane, stream=True)
            if data is None:
                return
            asking = self._ask(data)
            # An idle stream does not keep its last query.
            del data
            await asking

    async def _ask(self, data: bytes) -> None:
        size = len(data)
        try:
            request, image = await aside(partial(parse, search_pb2.SearchStreamRequest), data)
        except CbirError as error:
            self._intake.wasted.refused(self._peer, size, error)
            raise
        del data
        asker = _Asker(self, request.request_id, size)
        self._under_way.add(asker)
        try:
            asked = wire.Question(request.request, image)
            asker.flight = await self._pipeline.ask(
                self._deployment.engine, asked.query, asked.fingerprint, self._lane, self._deadline, asker
            )
        except asyncio.CancelledError:
            self.answer(asker, NotReadyError("the server is stopping: connect again", reason="STOPPING"))
            raise
        except Exception as error:  # noqa: BLE001 - every failure becomes a status, in band
            self.answer(asker, error)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while self._answers:
                await self._context.write(self._answers.popleft())
                self._unsent -= 1
                if self._room is not None and not self._room.done():
                    self._room.set_result(None)
            if self._finished and not self._under_way:
                return
            self._changed = loop.create_future()
            await self._changed

    def _end(self, _: asyncio.Task[None]) -> None:
        self._finished = True
        self._wake_writer()

    def _wake_writer(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
