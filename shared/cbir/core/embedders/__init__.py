"""Backends that turn a member of an ensemble into an embedder.

A backend is one module with ``load(member, device, runtime) -> Embedder`` and one line here.
"""

from __future__ import annotations

__all__ = ["BACKENDS"]

#: Backend name -> import string of its loader.
BACKENDS = {
    "timm": "cbir.core.embedders.timm:load",
    "open_clip": "cbir.core.embedders.open_clip:load",
    "torchvision": "cbir.core.embedders.torchvision:load",
    "openvino": "cbir.core.embedders.openvino:load",
}
