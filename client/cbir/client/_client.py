"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeVar, Unpack

import grpc

from cbir.client._arguments import whole
from cbir.client._conversion import ImageAssembly, facets, image_page, index_info, reloaded, search_result
from cbir.client._display.pictures import Pictures
from cbir.client._errors import CbirClientError, Unsupported
from cbir.client._gallery import Facets, GalleryImage, ImagePage
from cbir.client._queries import Embedding, Query, SearchOptions, Text
from cbir.client._requests import Filled, RequestTemplate, image_listing, image_request, one_query
from cbir.client._results import ImageBytes, IndexInfo, Reloaded
from cbir.client._search_result import SearchResult
from cbir.client._session import NO_SERVICE, SERVING, Patience, Session
from cbir.client._stream.threads import converse
from cbir.v1 import admin_pb2, search_pb2

__all__ = ["Client"]

K = TypeVar("K")
T = TypeVar("T")


class Client(Session):
    """A client of one server. Thread-safe; close it, or use it as a context manager.

    >>> with Client("localhost:50051") as client:  # doctest: +SKIP
    ...     for hit in client.search("cat.jpg", limit=5).hits:
    ...         print(hit.score, hit.label, hit.image_id)
    """

    def _start(self) -> None:
        self._pictures = Pictures(partial(Client, **self._given))
        target, options = self._settings.target, self._settings.options()
        credentials, compression = self._settings.credentials, self._settings.channel_compression
        if credentials is None:
            self._bind(grpc.insecure_channel(target, options, compression))
        else:
            self._bind(grpc.secure_channel(target, credentials, options, compression))

    def search(
        self,
        query: Query | None = None,
        *,
        image_id: str | None = None,
        embedding: Embedding | Mapping[str, Sequence[float]] | None = None,
        text: str | None = None,
        timeout: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> SearchResult:
        """Find the images of the gallery that are most similar to the query.

        Args:
            query: The bytes of an image file, the path of one (``str`` or path object), a PIL image, or an
                :class:`ImageId`, :class:`Embedding` or :class:`Text`. May be left out if the option
                ``positive_ids`` is given.
            image_id: Short for ``ImageId(image_id)``.
            embedding: Short for ``Embedding(embedding)``.
            text: Short for ``Text(text)``.
            timeout: Deadline of the call in seconds, retries included; None for the client's.
            options: See :class:`SearchOptions`.

        Raises:
            CbirClientError: The subclass says what went wrong.
            TypeError: More than one query, none at all, or an unknown option.
        """
        template = self._template(**options)
        filled = self._fill(template, one_query(query, image_id, embedding, text, template.has_positives))
        answer = self._call(self._searching.Search, filled.message, timeout)
        self._sight.answered(answer.index_version)
        return search_result(answer, filled.ratio, self._pictures)

    def search_text(self, text: str, *, timeout: float | None = None, **options: Unpack[SearchOptions]) -> SearchResult:
        """Find the images of the gallery that words describe; short for ``search(text=...)``, see :class:`Text`."""
        return self.search(Text(text), timeout=timeout, **options)

    def search_stream(
        self,
        queries: Iterable[tuple[K, Query | None]],
        *,
        window: int = 32,
        timeout: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> Generator[tuple[K, SearchResult | CbirClientError], None, None]:
        """Answer many queries over one call.

        For a query that cannot be answered its error is yielded in place of a result, and the stream goes on. If the
        connection breaks, the client connects again and repeats the queries that are unanswered.

        Args:
            queries: Pairs of a key of your choice and a query (None for the positive examples alone), such as
                ``enumerate(paths)``. Another thread takes them from the iterable, one by one, as the window has room.
            window: How many queries may be taken and not yet answered; bounds memory here and load on the server.
            timeout: Longest wait for the next answer in seconds; None for the client's.
            options: See :class:`SearchOptions`; they apply to every query.

        Returns:
            Pairs of key and result or error, in the order in which they are ready. To stop early, close it
            (``contextlib.closing``); the call is then cancelled.

        Raises:
            CbirClientError: The server cannot be reached, or sends nothing for too long.
            TypeError: A query of an unknown kind, or an unknown option.
        """
        template, dialogue = self._template(**options), self._dialogue(timeout, window)

        def call(messages: Iterator[search_pb2.SearchStreamRequest]) -> Any:
            return self._searching.SearchStream(messages, metadata=self._metadata)

        return converse(queries, partial(self._fill, template), call, dialogue, window)

    def index_info(self, *, timeout: float | None = None) -> IndexInfo:
        """Describe the index that the server has loaded, and the server's limits.

        Raises:
            CbirClientError: The subclass says what went wrong.
        """
        info = index_info(self._call(self._searching.GetIndexInfo, search_pb2.GetIndexInfoRequest(), timeout))
        self._sight.told(info.query_side, info.version)
        return info

    def images(
        self,
        *,
        labels: str | Iterable[str] | None = None,
        exclude_labels: str | Iterable[str] | None = None,
        metadata: Mapping[str, str | Iterable[str]] | None = None,
        prefix: str = "",
        page_size: int = 1000,
        timeout: float | None = None,
    ) -> Generator[GalleryImage, None, None]:
        """List the images of the gallery in the order of their ids; they are fetched page by page as they are taken.

        Args:
            labels: Labels of which an image must carry one.
            exclude_labels: Labels that an image must not carry.
            metadata: Metadata columns with the values of which an image must carry one.
            prefix: What the ids begin with.
            page_size: Most images that are fetched at a time; the server may send fewer (it sends at most 1,000).
            timeout: Deadline of each page in seconds; None for the client's.

        Raises:
            InvalidQuery: A label or column that no image has.
            CbirClientError: Another subclass says what else went wrong.
        """
        token = ""
        while True:
            page = self.image_page(
                labels=labels, exclude_labels=exclude_labels, metadata=metadata, prefix=prefix, page_size=page_size,
                page_token=token, timeout=timeout,
            )  # fmt: skip
            yield from page
            if not (token := page.next_page_token):
                return

    def image_page(
        self,
        *,
        labels: str | Iterable[str] | None = None,
        exclude_labels: str | Iterable[str] | None = None,
        metadata: Mapping[str, str | Iterable[str]] | None = None,
        prefix: str = "",
        page_size: int = 100,
        page_token: str = "",
        timeout: float | None = None,
    ) -> ImagePage:
        """Fetch one page of the listing that :meth:`images` goes through, with the number of images on all pages.

        ``page_token`` is the :attr:`ImagePage.next_page_token` of the page before; empty for the first.
        """
        request = image_listing(labels, exclude_labels, metadata, prefix, page_size, page_token)
        return image_page(self._call(self._searching.ListImages, request, timeout))

    def facets(self, *, limit: int = 100, timeout: float | None = None) -> Facets:
        """Tell what filters can name: labels and metadata columns, with how many images have each value.

        Args:
            limit: Most values of each; those that most images have come first (the server sends at most 1,000).

        Raises:
            CbirClientError: The subclass says what went wrong.
        """
        request = search_pb2.GetFacetsRequest(limit=whole("limit", limit, "at least 1 value"))
        return facets(self._call(self._searching.GetFacets, request, timeout))

    def image(self, image_id: str, thumbnail: int | None = None, *, timeout: float | None = None) -> ImageBytes:
        """Fetch an image of the gallery.

        Args:
            image_id: The image's id, as in :attr:`Hit.image_id`.
            thumbnail: Length in pixels of the longer side of a smaller version; None for the original file.
            timeout: Deadline of the call in seconds; None for the client's.

        Returns:
            The bytes of the file, with its ``media_type``.

        Raises:
            NotFound: The gallery has no image with that id.
            TooLarge: The file has more bytes than ``max_message_bytes``.
            CbirClientError: Another subclass says what else went wrong.
        """
        request = image_request(image_id, thumbnail)

        def fetch(request: search_pb2.GetImageRequest, **call: Any) -> ImageBytes:
            whole = ImageAssembly(image_id, self._settings.limits.received_bytes)
            chunks = self._searching.GetImage(request, **call)
            try:
                for chunk in chunks:
                    whole.add(chunk)
            finally:
                chunks.cancel()
            return whole.finish()

        return self._call(fetch, request, timeout)

    def reload(self, version: str | None = None, *, timeout: float = 300.0) -> Reloaded:
        """Tell the server to load an index version; the old one answers until the new one is ready.

        Args:
            version: The version; None for the one that is live on the server's disk.
            timeout: Deadline of the call in seconds; loading may take minutes.

        Raises:
            FailedPrecondition: There is no such version, or it cannot be loaded; the old one goes on answering.
            CbirClientError: Another subclass says what else went wrong.
        """
        request = admin_pb2.ReloadIndexRequest(version=version or "")
        return reloaded(self._call(self._admin.ReloadIndex, request, timeout))

    def health(self, *, timeout: float | None = None) -> bool:
        """Tell whether the server is ready to answer queries.

        Returns:
            False: it answers, but loads an index still, or is about to stop.

        Raises:
            Unavailable: Nothing answers.
            Unsupported: The server has no health service.
            CbirClientError: Another subclass says what else went wrong.
        """
        answer: bytes = self._call(self._health, NO_SERVICE, timeout)
        return answer == SERVING

    def wait_ready(self, timeout: float = 60.0) -> IndexInfo:
        """Wait until the server has started and serves an index; return its description.

        Raises:
            DeadlineExceeded: It was not ready in time; the message says why.
            CbirClientError: An error that waiting does not cure.
        """
        self._check_open()
        patience = Patience(timeout, self._address)
        while True:
            failure = None
            call = {"metadata": self._metadata, "wait_for_ready": True}
            try:
                if not patience.ask_health or self._health(NO_SERVICE, timeout=patience.left(), **call) == SERVING:
                    request = search_pb2.GetIndexInfoRequest()
                    return index_info(self._searching.GetIndexInfo(request, timeout=patience.left(), **call))
            except grpc.RpcError as error:
                failure = error
            time.sleep(patience.pause(failure))

    def close(self) -> None:
        """Close the connection; calls in progress end with :class:`Cancelled`. May be called again."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _fill(self, template: RequestTemplate, query: Query | None) -> Filled:
        """Make the message of a query; the first large image asks the server how much of it is of use."""
        if self._sight.unknown and template.is_large(query):
            try:
                self.index_info()
            except Unsupported:
                self._sight.told(0, "")
        return template.fill(query, self._sight.side)

    def _call(self, method: Callable[..., T], request: Any, timeout: float | None) -> T:
        budget = self._budget(timeout)
        while True:
            try:
                return method(request, timeout=budget.left(), metadata=self._metadata)
            except grpc.RpcError as error:
                pause = budget.pause(error)
            time.sleep(pause)
