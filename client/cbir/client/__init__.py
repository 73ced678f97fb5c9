"""Ensemble-CBIR's client: find the images of a gallery that show the same thing as the query.

>>> from cbir.client import Client
>>> with Client("localhost:50051") as client:  # doctest: +SKIP
...     for hit in client.search("cat.jpg", limit=5).hits:
...         print(f"{hit.score:.2f}", hit.label, hit.image_id)

Needs gRPC and protobuf, nothing heavier; Pillow is loaded only for PIL images and ``max_side``.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
