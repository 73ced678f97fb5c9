"""Images: from the bytes of a file to the input of a model.

``decode`` bounds and decodes the bytes (``decoder`` is the protocol of where that runs), ``crop`` finds the content,
``resize`` makes the square that a model sees, and ``phash`` computes a perceptual hash.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
