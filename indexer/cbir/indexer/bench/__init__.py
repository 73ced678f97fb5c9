"""``cbir bench index`` and ``cbir bench search``: the indexer and search against what bounds them, in the same run."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
