"""Files as they must be handled: addresses of images, checksums, and writes that a power cut leaves whole."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
