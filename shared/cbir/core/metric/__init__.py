"""Metrics: from a network's raw embedding to the unit vector that is compared, and sharpening by neighbours."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
