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

from cbir.client._arguments import whole
from cbir.client._client import Client
from cbir.client._conversion import ImageAssembly, facets, image_page, index_info, reloaded, search_result
from cbir.client._display.pictures import Pictures
from cbir.client._errors import CbirClientError, Unsupported
from cbir.client._gallery import Facets, GalleryImage, ImagePage
from cbir.client._queries import Embedding, Query, SearchOptions, Text
from cbir.client._requests import Filled, RequestTemplate, image_listing, image_request, one_query
from cbir.client._results import ImageBytes, IndexInfo, Reloaded
from cbir.client._search_result import SearchResult
from cbir.client._session import NO_SERVICE, SERVING, Patience, Session
from cbir.client._stream.tasks import converse
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
        self._pictures = Pictures(partial(Client, **self._given))
        self._channel: Any = None
        self._loop: Any = None

    def _connect(self) -> None:
        self._check_open()
        loop = asyncio.get_running_loop()
        if self._channel is not None and self._loop is loop:
            return
        # A channel of another loop can be neither used nor closed here; it hangs up when it is forgotten.
        target, options = self._settings.target, self._settings.options()
        credentials, compression = self._settings.credentials, self._settings.channel_compression
        if credentials is None:
            self._bind(grpc.aio.insecure_channel(target, options, compression))
        else:
            self._bind(grpc.aio.secure_channel(target, credentials, options, compression))
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
        filled = await self._fill(template, one_query(query, image_id, embedding, text, template.has_positives))
        answer = await self._call(self._stub().Search, filled.message, timeout)
        self._sight.answered(answer.index_version)
        return search_result(answer, filled.ratio, self._pictures)

    async def search_text(
        self,
        text: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        **options: Unpack[SearchOptions],
    ) -> SearchResult:
        """Find the images of the gallery that words describe; see :meth:`Client.search_text`."""
        return await self.search(Text(text), timeout=timeout, **options)

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
        template, dialogue = self._template(**options), self._dialogue(timeout, window)

        def call(messages: AsyncIterator[search_pb2.SearchStreamRequest]) -> Any:
            return self._stub().SearchStream(messages, metadata=self._metadata)

        return converse(queries, partial(self._fill, template), call, dialogue, window)

    async def index_info(self, *, timeout: float | None = None) -> IndexInfo:  # noqa: ASYNC109
        """Describe the index the server has loaded; see :meth:`Client.index_info`."""
        request = search_pb2.GetIndexInfoRequest()
        info = index_info(await self._call(self._stub().GetIndexInfo, request, timeout))
        self._sight.told(info.query_side, info.version)
        return info

    async def images(
        self,
        *,
        labels: str | Iterable[str] | None = None,
        exclude_labels: str | Iterable[str] | None = None,
        metadata: Mapping[str, str | Iterable[str]] | None = None,
        prefix: str = "",
        page_size: int = 1000,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncGenerator[GalleryImage, None]:
        """List the images of the gallery in the order of their ids; see :meth:`Client.images`."""
        token = ""
        while True:
            page = await self.image_page(
                labels=labels, exclude_labels=exclude_labels, metadata=metadata, prefix=prefix, page_size=page_size,
                page_token=token, timeout=timeout,
            )  # fmt: skip
            for image in page:
                yield image
            if not (token := page.next_page_token):
                return

    async def image_page(
        self,
        *,
        labels: str | Iterable[str] | None = None,
        exclude_labels: str | Iterable[str] | None = None,
        metadata: Mapping[str, str | Iterable[str]] | None = None,
        prefix: str = "",
        page_size: int = 100,
        page_token: str = "",
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> ImagePage:
        """Fetch one page of the gallery's listing; see :meth:`Client.image_page`."""
        request = image_listing(labels, exclude_labels, metadata, prefix, page_size, page_token)
        return image_page(await self._call(self._stub().ListImages, request, timeout))

    async def facets(self, *, limit: int = 100, timeout: float | None = None) -> Facets:  # noqa: ASYNC109
        """Tell what filters can name; see :meth:`Client.facets`."""
        request = search_pb2.GetFacetsRequest(limit=whole("limit", limit, "at least 1 value"))
        return facets(await self._call(self._stub().GetFacets, request, timeout))

    async def image(
        self,
        image_id: str,
        thumbnail: int | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> ImageBytes:
        """Fetch an image of the gallery; see :meth:`Client.image`."""
        request = image_request(image_id, thumbnail)

        async def fetch(request: search_pb2.GetImageRequest, **call: Any) -> ImageBytes:
            whole = ImageAssembly(image_id, self._settings.limits.received_bytes)
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

    async def health(self, *, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Tell whether the server is ready to answer queries; see :meth:`Client.health`."""
        self._connect()
        answer: bytes = await self._call(self._health, NO_SERVICE, timeout)
        return answer == SERVING

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

    async def _fill(self, template: RequestTemplate, query: Query | None) -> Filled:
        """Make the message of a query; the first large image asks the server how much of it is of use."""
        if self._sight.unknown and template.is_large(query):
            try:
                await self.index_info()
            except Unsupported:
                self._sight.told(0, "")
        if template.blocks(query):
            return await asyncio.to_thread(template.fill, query, self._sight.side)
        return template.fill(query, self._sight.side)

    async def _call(self, method: Callable[..., Awaitable[T]], request: Any, timeout: float | None) -> T:  # noqa: ASYNC109
        budget = self._budget(timeout)
        while True:
            try:
                return await method(request, timeout=budget.left(), metadata=self._metadata)
            except grpc.RpcError as error:
                pause = budget.pause(error)
            await asyncio.sleep(pause)
