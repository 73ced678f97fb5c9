"""The queue: what waits, from admission over preparation and batches to the answer.

The way of a query, module by module:

1. ``pipeline``: the event loop's side; a query under way is a ``flight`` from here on.
2. ``admission``: takes room for it, waits for room (streams) or refuses it, by what ``forecast`` expects of the queue.
3. ``cache``: gives the answer where the same was asked before.  ``pipeline`` lets an equal query that is under way
   answer both (``Flight.join``).
4. ``stages``: the threads' side, in which 5 and 6 follow each other.
5. ``decoders``: threads that prepare queries ahead of the engine; ``fair_queue`` lets the clients take turns.
6. ``batching``: the engine's thread, which takes all that is ready as its next batch.
7. ``pipeline`` again: hands the answers out; ``tally`` counts what became of the queries.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
