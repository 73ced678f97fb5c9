"""Backends that turn a member of an ensemble into an embedder.

A backend is one module with ``load(member, device, runtime) -> Embedder`` and one line here.
"""

from __future__ import annotations

__all__ = ["BACKENDS"]

#: Backend name -> import string of its loader.
BACKENDS = {
    "timm": "cbir.core.ensemble.backends.timm:load",
    "open_clip": "cbir.core.ensemble.backends.open_clip:load",
    "torchvision": "cbir.core.ensemble.backends.torchvision:load",
    "openvino": "cbir.core.ensemble.backends.openvino:load",
}
