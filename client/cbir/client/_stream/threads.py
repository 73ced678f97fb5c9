"""A search stream by threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import grpc

from cbir.client._errors import CbirClientError
from cbir.client._queries import Query
from cbir.client._requests import Filled
from cbir.client._search_result import SearchResult
from cbir.client._stream.dialogue import Dialogue
from cbir.v1 import search_pb2

__all__ = ["converse"]

K = TypeVar("K")


def converse(
    queries: Iterable[tuple[K, Query | None]],
    fill: Callable[[Query | None], Filled],
    open_call: Callable[[Iterator[search_pb2.SearchStreamRequest]], Any],
    dialogue: Dialogue[K],
    window: int,
) -> Generator[tuple[K, SearchResult | CbirClientError], None, None]:
    """Answer queries over one call after another.

    Args:
        fill: Makes the message of a query.
        open_call: Opens a call that sends these messages.
        window: How many queries may be taken and not yet answered.
    """
    # Two threads put events into a queue: one takes queries from the iterable, one listens to the server. Only this
    # thread touches the dialogue.
    events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    room = threading.Semaphore(window)
    stop = threading.Event()
    outgoing: queue.SimpleQueue[search_pb2.SearchStreamRequest | None] = queue.SimpleQueue()
    call: Any = None
    drawing = partial(_draw, queries, fill, dialogue, events, room, stop)
    threading.Thread(target=drawing, name="cbir-queries", daemon=True).start()
    try:
        while True:
            if dialogue.must_connect():
                # Ends gRPC's thread that reads the requests of the previous call.
                outgoing.put(None)
                outgoing = queue.SimpleQueue()
                call = open_call(iter(outgoing.get, None))
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
    fill: Callable[[Query | None], Filled],
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
                event = partial(dialogue.query, key, fill(query))
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
