"""Vectors in Milvus: a collection a version, one vector field a member, searched with exact scores of all members.

``store`` publishes and opens versions over a ``connection``; ``collection`` says what a collection looks like and tells
whether one is ours; ``remote_vectors`` proposes rows for a query and fetches the vectors of rows, for
``cbir.core.search``, which scores and ranks; ``filters`` writes conditions as expressions.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
