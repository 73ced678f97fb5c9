"""Files: addresses of images on disk and in archives, checksums, and writes that survive a power cut."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
