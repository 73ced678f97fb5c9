"""The whole life of a ``Search``, from the bytes that come to the bytes that go.

=====================================  ========================================================================
on the event loop
:meth:`.service.SearchService.Search`  gRPC hands over the request's bytes; every error becomes a status
:func:`answer_search` (here)           picks the engine, refuses a flood unread, parses, waits for the answer
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

from collections.abc import Hashable

from cbir.server.deployment import Deployment
from cbir.server.queue import Pipeline
from cbir.server.transport import wire
from cbir.v1 import search_pb2

__all__ = ["answer_search"]


async def answer_search(
    data: bytes, caller: Hashable, deadline: float | None, deployment: Deployment, pipeline: Pipeline
) -> bytes:
    """Answer one unary call.

    Args:
        data: A serialised ``SearchRequest``.
        caller: Whose share of the queue it takes.
        deadline: On the clock of :func:`time.monotonic`; None: it waits as long as it takes.

    Returns:
        A serialised ``SearchResponse``.

    Raises:
        CbirError: The query cannot be answered, or not now.
    """
    # The query keeps this engine, also when another one takes over while it waits.
    engine = deployment.engine
    pipeline.check_room(len(data))
    asked = wire.Question(wire.parse(search_pb2.SearchRequest, data))
    return await pipeline.search(engine, asked.query, asked.fingerprint, caller, deadline)
