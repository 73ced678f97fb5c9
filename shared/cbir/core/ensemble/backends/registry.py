"""The backends by name.

To add one, write a module with ``load(member, device, runtime, precision) -> Embedder`` and add a line to ``BACKENDS``.
"""

from __future__ import annotations

__all__ = ["BACKENDS"]

#: Name of the backend -> import string of its loader.
BACKENDS = {
    "timm": "cbir.core.ensemble.backends.timm:load",
    "open_clip": "cbir.core.ensemble.backends.open_clip:load",
    "torchvision": "cbir.core.ensemble.backends.torchvision:load",
    "openvino": "cbir.core.ensemble.backends.openvino:load",
}
