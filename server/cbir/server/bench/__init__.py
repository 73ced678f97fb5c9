"""``cbir bench serve``: measures the server and what bounds it: its models, its memory and an empty transport."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
