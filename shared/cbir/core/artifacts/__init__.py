"""Artifacts: an index on disk, from the store of its versions to the gallery's rows and the cache of embeddings."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
