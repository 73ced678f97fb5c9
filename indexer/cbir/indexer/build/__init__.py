"""Building an index: scan, embed what is new, fit the metrics, write a version and publish it."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
