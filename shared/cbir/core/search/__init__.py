"""Search: from query vectors to ranked hits with exact scores.

The way of a query, module by module; N gallery rows, each the members' unit vectors side by side:

1. ``retriever``: the entry; projects raw embeddings, settles the weights, expands the query, and chooses 2 or 7.
2. ``exact_search``: all members at once; 3 to 6 find the candidates, then come label vote and ranking (``core.vote``).
3. ``candidate_generation``: goes through 4 to 6, deeper each time, until the best rows are certain (``candidates``).
4. ``estimates``: lists rows by estimated score, from a ``product_quantisation_scan``, from a product in half precision
   or from the product with all rows (``blockwise_top_k``); ``kernels`` measures which is fastest, when a gallery is
   loaded.
5. ``rescoring``: scores the first rows of that list exactly, from ``gallery_matrix`` (``cpu_matrix``, ``gpu_matrix``).
6. ``early_termination_bound``: tells whether a row that was not rescored can still be among the best.
7. ``per_member_search``: member by member, for approximate indexes (``core.vector_index``) and for fusion by rank.
8. ``text_search``: the other entry, for queries in words; ``zero_shot`` classifies by the names of the labels.

9. ``threshold_search``: in place of 3 to 6 where another program keeps the vectors, as ``core.milvus`` tells.

``searcher`` is the protocol that ``retriever`` implements, ``nearest_rows`` that of 3 and 9, and ``vector_store`` that
of where vectors live.  ``near_duplicates`` is not on this way: it finds images
that show the same picture, for the server to leave out of hits and for the indexer to remove.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
