"""The engine: one index version and its models; it answers queries and knows no network protocol."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
