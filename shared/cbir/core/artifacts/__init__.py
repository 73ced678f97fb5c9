"""Artifacts: the versions of an index on disk, and the cache of raw embeddings.

``store`` lists, opens and publishes the versions; ``version_writer`` writes one, its vectors by ``vector_file``, and
``index_version`` reads one, with the ``manifest`` of its files, the ``segments`` that an update leaves as they are, and
the ``gallery`` of its images; ``version_files`` opens and checks the files, by a ``seal`` that may carry a
``signature``; ``embedding_cache`` keeps raw embeddings between runs.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
