"""Where images come from: folders, zips, tars and manifests, each read as a list of :class:`SourceImage`."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
