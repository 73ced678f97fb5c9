"""The synchronous client."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeVar, Unpack

import grpc

from cbir.client._conversion import ImageAssembly, RequestTemplate, index_info, one_query, reloaded, search_result
from cbir.client._dialogue import Dialogue
from cbir.client._errors import CbirClientError
from cbir.client._queries import Embedding, Query, SearchOptions
from cbir.client._results import ImageBytes, IndexInfo, Reloaded, SearchResult
from cbir.client._session import NO_SERVICE, SERVING, Patience, Session
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
        target, options = self._settings.target, self._settings.options()
        credentials = self._settings.credentials
        if credentials is None:
            self._bind(grpc.insecure_channel(target, options))
        else:
            self._bind(grpc.secure_channel(target, credentials, options))

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
        request = template.fill(one_query(query, image_id, embedding, text, template.has_positives))
        return search_result(self._call(self._searching.Search, request, timeout))

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
        return self._converse(queries, self._template(**options), self._dialogue(timeout, window), window)

    def index_info(self, *, timeout: float | None = None) -> IndexInfo:
        """Describe the index that the server has loaded, and the server's limits.

        Raises:
            CbirClientError: The subclass says what went wrong.
        """
        return index_info(self._call(self._searching.GetIndexInfo, search_pb2.GetIndexInfoRequest(), timeout))

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
        request = search_pb2.GetImageRequest(image_id=image_id, thumbnail=thumbnail)

        def fetch(request: search_pb2.GetImageRequest, **call: Any) -> ImageBytes:
            whole = ImageAssembly(image_id, self._settings.max_message_bytes)
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

    def _call(self, method: Callable[..., T], request: Any, timeout: float | None) -> T:
        budget = self._budget(timeout)
        while True:
            try:
                return method(request, timeout=budget.left(), metadata=self._metadata)
            except grpc.RpcError as error:
                pause = budget.pause(error)
            time.sleep(pause)

    def _converse(
        self, queries: Iterable[tuple[K, Query | None]], template: RequestTemplate, dialogue: Dialogue[K], window: int
    ) -> Generator[tuple[K, SearchResult | CbirClientError], None, None]:
        # Two threads put events into a queue: one takes queries from the iterable, one listens to the server. Only this
        # thread touches the dialogue.
        events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        room = threading.Semaphore(window)
        stop = threading.Event()
        outgoing: queue.SimpleQueue[search_pb2.SearchStreamRequest | None] = queue.SimpleQueue()
        call: Any = None
        drawing = partial(_draw, queries, template, dialogue, events, room, stop)
        threading.Thread(target=drawing, name="cbir-queries", daemon=True).start()
        try:
            while True:
                if dialogue.must_connect():
                    # Ends gRPC's thread that reads the requests of the previous call.
                    outgoing.put(None)
                    outgoing = queue.SimpleQueue()
                    call = self._searching.SearchStream(iter(outgoing.get, None), metadata=self._metadata)
                    listening = partial(_listen, call, dialogue, events)
                    threading.Thread(target=listening, name="cbir-answers", daemon=True).start()
                for message in dialogue.send():
                    outgoing.put(message)
                if dialogue.must_half_close():
                    outgoing.put(None)
                while (answer := dialogue.take()) is not None:
                    room.release()
                    yield answer
                if dialogue.finished():
                    return
                try:
                    happened = events.get(timeout=dialogue.patience())
                except queue.Empty:
                    dialogue.check()
                else:
                    happened()
        finally:
            stop.set()
            room.release()
            outgoing.put(None)
            if call is not None:
                call.cancel()


def _draw(
    queries: Iterable[tuple[K, Query | None]],
    template: RequestTemplate,
    dialogue: Dialogue[K],
    events: queue.SimpleQueue[Callable[[], None]],
    room: threading.Semaphore,
    stop: threading.Event,
) -> None:
    """Take queries from the iterable while the window has room, and report each of them."""
    try:
        pairs = iter(queries)
        while True:
            room.acquire()
            if stop.is_set():
                return
            try:
                key, query = next(pairs)
            except StopIteration:
                break
            try:
                event = partial(dialogue.query, key, template.fill(query))
            except CbirClientError as error:
                event = partial(dialogue.refused, key, error)
            events.put(event)
    except BaseException as error:  # noqa: BLE001 - raised again where the caller waits
        events.put(partial(dialogue.failed, error))
    else:
        events.put(dialogue.exhausted)


def _listen(call: Any, dialogue: Dialogue[Any], events: queue.SimpleQueue[Callable[[], None]]) -> None:
    """Report the server's answers until the call ends."""
    try:
        for response in call:
            events.put(partial(dialogue.answer, response))
    except grpc.RpcError as error:
        events.put(partial(dialogue.closed, error))
    else:
        events.put(partial(dialogue.closed, None))
