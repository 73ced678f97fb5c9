"""The machine: what it is and has free, how many threads each library gets, and loops compiled for the processor."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
