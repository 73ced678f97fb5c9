"""Images: bytes in; pixels, the box of their content, a perceptual hash and a model's input out."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
