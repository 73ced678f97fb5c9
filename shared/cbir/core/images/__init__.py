"""Images: from the bytes of a file to the input of a model.

``decode`` bounds and decodes the bytes; ``decoder`` is the protocol of where that runs: in this process, or in the
worker processes of ``decoding_pool`` (``decoding_process`` is a worker seen from outside, ``decoding_worker`` its
program, ``sandbox`` what it gives up; ``image_header`` estimates the work).  ``crop`` finds the content, ``resize``
makes the square that a model sees, and ``phash`` computes a perceptual hash.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
