"""Gateway: speaks HTTP with browsers and asks the search server for them, within bounds."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
