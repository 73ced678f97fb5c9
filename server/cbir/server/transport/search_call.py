"""The whole life of a ``Search``, from the bytes that come to the bytes that go.

=====================================  ========================================================================
on the event loop
:meth:`.service.SearchService.Search`  every error becomes a status
:mod:`.intake`                         asks gRPC for the request's bytes, and waits for them only so long
:func:`answer_search` (here)           picks the engine, refuses a flood unparsed, waits for the answer
:mod:`.bounded_parsing`                counts fields, takes the image out, has the rest parsed
:mod:`.wire`, :mod:`.conversion`       bytes to a message, the message to an ``EngineQuery``; protobuf ends here
:mod:`cbir.server.queue.pipeline`      admits the query, looks for a known answer, sets it on its way
on a decoder thread
:mod:`cbir.server.engine.preparation`  checks options; decodes, crops and resizes the image
on the engine's thread, with a batch
:mod:`cbir.server.engine.answering`    embeds, projects, searches and ranks
:mod:`.answer_bytes`                   writes the answer's bytes
on the event loop again
:mod:`cbir.server.queue.pipeline`      hands the bytes to all who wait for them, remembers them, counts
=====================================  ========================================================================

A light query (no image) is prepared on the event loop at once, by whoever admits it.
In a stream, :mod:`.streaming` asks and answers for each query; from :mod:`.wire` on it goes the same way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cbir.server.deployment import Deployment
from cbir.server.queue import Lane, Pipeline
from cbir.server.transport import wire
from cbir.server.transport.bounded_parsing import aside

__all__ = ["answer_search"]


async def answer_search(
    read: Callable[[], Awaitable[bytes]],
    caller: Lane,
    deadline: float | None,
    deployment: Deployment,
    pipeline: Pipeline,
) -> bytes:
    """Answer one unary call.

    Args:
        read: Gives the bytes of a serialised ``SearchRequest``; called once it is known that there is an engine.
        caller: Whose share of the queue it takes.
        deadline: On the clock of :func:`time.monotonic`; None: it waits as long as it takes.

    Returns:
        A serialised ``SearchResponse``.

    Raises:
        CbirError: The query cannot be answered, or not now.
    """
    # A server that cannot answer, or not in time, need not read.
    _ = deployment.engine
    pipeline.check_time(deadline)
    # Nothing here keeps the request's bytes while the query waits.
    asked = await _question(await read(), pipeline)
    # The query keeps this engine, also when another one takes over while it waits.
    return await pipeline.search(deployment.engine, asked.query, asked.fingerprint, caller, deadline)


async def _question(data: bytes, pipeline: Pipeline) -> wire.Question:
    pipeline.check_room(len(data))
    return await aside(wire.Question.read, data)
