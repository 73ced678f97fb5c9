"""Drawn sample images: sixteen classes of scenes, each picture different, made in seconds and free to use."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
