"""What the machine gives: how its cores are shared out, and loops that are compiled for its processor."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
