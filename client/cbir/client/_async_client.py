"""The asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from functools import partial
from typing import Any, Self, TypeVar, Unpack

import grpc
import grpc.aio

from cbir.client._conversion import ImageAssembly, RequestTemplate, index_info, one_query, reloaded, search_result
from cbir.client._dialogue import Dialogue
from cbir.client._errors import Cancelled, CbirClientError
from cbir.client._queries import Embedding, Query, SearchOptions
from cbir.client._results import ImageBytes, IndexInfo, Reloaded, SearchResult
from cbir.client._session import NO_SERVICE, SERVING, Patience, Session
from cbir.v1 import admin_pb2, search_pb2

__all__ = ["AsyncClient"]

K = TypeVar("K")
T = TypeVar("T")


class AsyncClient(Session):
    """:class:`Client` for asyncio; it connects anew in each event loop that it is used in.

    Files are read and images encoded in a worker thread.

    >>> async with AsyncClient("localhost:50051") as client:  # doctest: +SKIP
    ...     result = await client.search("cat.jpg", limit=5)
    """

    def _start(self) -> None:
        # Made at the first call, because a channel belongs to the event loop that is running when it is made.
        self._channel: Any = None
        self._loop: Any = None

    def _connect(self) -> None:
        self._check_open()
        loop = asyncio.get_running_loop()
        if self._channel is not None and self._loop is loop:
            return
        # A channel of another loop can be neither used nor closed here; it hangs up when it is forgotten.
        target, options = self._settings.target, self._settings.options()
        credentials = self._settings.credentials
        if credentials is None:
            self._bind(grpc.aio.insecure_channel(target, options))
        else:
            self._bind(grpc.aio.secure_channel(target, credentials, options))
        self._loop = loop

    async def search(
        self,
        query: Query | None = None,
        *,
        image_id: str | None = None,
        embedding: Embedding | Mapping[str, Sequence[float]] | None = None,
        text: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the server is told of the deadline
        **options: Unpack[SearchOptions],
    ) -> SearchResult:
        """Find the images of the gallery that are most like the query; see :meth:`Client.search`."""
        template = self._template(**options)
        request = await _fill(template, one_query(query, image_id, embedding, text, template.has_positives))
        return search_result(await self._call(self._stub().Search, request, timeout))

    def search_stream(
        self,
        queries: Iterable[tuple[K, Query | None]] | AsyncIterable[tuple[K, Query | None]],
        *,
        window: int = 32,
        timeout: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> AsyncGenerator[tuple[K, SearchResult | CbirClientError], None]:
        """Answer many queries over one call; see :meth:`Client.search_stream`.

        Args:
            queries: Pairs of a key and a query, as an iterable or asynchronous iterable; a plain iterable is read in
                the event loop.
            window: As in :meth:`Client.search_stream`.
            timeout: As in :meth:`Client.search_stream`.
            options: As in :meth:`Client.search_stream`.

        Returns:
            As in :meth:`Client.search_stream`; to stop early, close it (``contextlib.aclosing``).
        """
        return self._converse(queries, self._template(**options), self._dialogue(timeout, window), window)

    async def index_info(self, *, timeout: float | None = None) -> IndexInfo:  # noqa: ASYNC109
        """Describe the index the server has loaded; see :meth:`Client.index_info`."""
        request = search_pb2.GetIndexInfoRequest()
        return index_info(await self._call(self._stub().GetIndexInfo, request, timeout))

    async def image(
        self,
        image_id: str,
        thumbnail: int | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> ImageBytes:
        """Fetch an image of the gallery; see :meth:`Client.image`."""
        request = search_pb2.GetImageRequest(image_id=image_id, thumbnail=thumbnail)

        async def fetch(request: search_pb2.GetImageRequest, **call: Any) -> ImageBytes:
            whole = ImageAssembly(image_id, self._settings.max_message_bytes)
            chunks = self._stub().GetImage(request, **call)
            try:
                async for chunk in chunks:
                    whole.add(chunk)
            finally:
                chunks.cancel()
            return whole.finish()

        return await self._call(fetch, request, timeout)

    async def reload(self, version: str | None = None, *, timeout: float = 300.0) -> Reloaded:  # noqa: ASYNC109
        """Tell the server to load an index version; see :meth:`Client.reload`."""
        self._connect()
        request = admin_pb2.ReloadIndexRequest(version=version or "")
        return reloaded(await self._call(self._admin.ReloadIndex, request, timeout))

    async def wait_ready(self, timeout: float = 60.0) -> IndexInfo:  # noqa: ASYNC109
        """Wait until the server has started and serves an index; see :meth:`Client.wait_ready`."""
        self._connect()
        patience = Patience(timeout, self._address)
        while True:
            failure = None
            call = {"metadata": self._metadata, "wait_for_ready": True}
            try:
                if not patience.ask_health or (
                    await self._health(NO_SERVICE, timeout=patience.left(), **call) == SERVING
                ):
                    request = search_pb2.GetIndexInfoRequest()
                    return index_info(await self._searching.GetIndexInfo(request, timeout=patience.left(), **call))
            except grpc.RpcError as error:
                failure = error
            await asyncio.sleep(patience.pause(failure))

    async def close(self) -> None:
        """Close the connection; calls in progress are cancelled. May be called again."""
        self._closed = True
        if self._channel is not None and self._loop is asyncio.get_running_loop():
            await self._channel.close()
        self._channel = self._loop = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _stub(self) -> Any:
        self._connect()
        return self._searching

    async def _call(self, method: Callable[..., Awaitable[T]], request: Any, timeout: float | None) -> T:  # noqa: ASYNC109
        budget = self._budget(timeout)
        while True:
            try:
                return await method(request, timeout=budget.left(), metadata=self._metadata)
            except grpc.RpcError as error:
                pause = budget.pause(error)
            await asyncio.sleep(pause)

    async def _converse(
        self,
        queries: Iterable[tuple[K, Query | None]] | AsyncIterable[tuple[K, Query | None]],
        template: RequestTemplate,
        dialogue: Dialogue[K],
        window: int,
    ) -> AsyncGenerator[tuple[K, SearchResult | CbirClientError], None]:
        # As in the synchronous client, but with tasks instead of threads.
        events: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
        room = asyncio.Semaphore(window)
        outgoing: asyncio.Queue[search_pb2.SearchStreamRequest | None] = asyncio.Queue()
        call: Any = None
        tasks = [asyncio.create_task(_draw(queries, template, dialogue, events, room))]
        try:
            while True:
                if dialogue.must_connect():
                    outgoing = asyncio.Queue()
                    call = self._stub().SearchStream(_messages(outgoing), metadata=self._metadata)
                    tasks.append(asyncio.create_task(_listen(call, dialogue, events)))
                for message in dialogue.send():
                    outgoing.put_nowait(message)
                if dialogue.must_half_close():
                    outgoing.put_nowait(None)
                while (answer := dialogue.take()) is not None:
                    room.release()
                    yield answer
                if dialogue.finished():
                    return
                try:
                    async with asyncio.timeout(dialogue.patience()):
                        happened = await events.get()
                except TimeoutError:
                    dialogue.check()
                else:
                    happened()
        finally:
            outgoing.put_nowait(None)
            if call is not None:
                call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _fill(template: RequestTemplate, query: Query | None) -> search_pb2.SearchRequest:
    return await asyncio.to_thread(template.fill, query) if template.blocks(query) else template.fill(query)


async def _pairs(
    queries: Iterable[tuple[K, Query | None]] | AsyncIterable[tuple[K, Query | None]],
) -> AsyncIterator[tuple[K, Query | None]]:
    if isinstance(queries, AsyncIterable):
        async for pair in queries:
            yield pair
    else:
        for pair in queries:
            yield pair


async def _messages(
    outgoing: asyncio.Queue[search_pb2.SearchStreamRequest | None],
) -> AsyncIterator[search_pb2.SearchStreamRequest]:
    while (message := await outgoing.get()) is not None:
        yield message


async def _draw(
    queries: Iterable[tuple[K, Query | None]] | AsyncIterable[tuple[K, Query | None]],
    template: RequestTemplate,
    dialogue: Dialogue[K],
    events: asyncio.Queue[Callable[[], None]],
    room: asyncio.Semaphore,
) -> None:
    """Take queries from the iterable while the window has room, and report each of them."""
    try:
        pairs = _pairs(queries)
        while True:
            await room.acquire()
            try:
                key, query = await anext(pairs)
            except StopAsyncIteration:
                break
            try:
                event = partial(dialogue.query, key, await _fill(template, query))
            except CbirClientError as error:
                event = partial(dialogue.refused, key, error)
            events.put_nowait(event)
    except Exception as error:  # noqa: BLE001 - raised again where the caller waits
        events.put_nowait(partial(dialogue.failed, error))
    else:
        events.put_nowait(dialogue.exhausted)


async def _listen(call: Any, dialogue: Dialogue[Any], events: asyncio.Queue[Callable[[], None]]) -> None:
    """Report the server's answers until the call ends."""
    try:
        async for response in call:
            events.put_nowait(partial(dialogue.answer, response))
    except grpc.RpcError as error:
        events.put_nowait(partial(dialogue.closed, error))
    except asyncio.CancelledError:
        # This is also how close() shows here; a caller that still waits for answers must learn of it.
        events.put_nowait(partial(dialogue.failed, Cancelled("the client was closed while queries were unanswered")))
        raise
    else:
        events.put_nowait(partial(dialogue.closed, None))
