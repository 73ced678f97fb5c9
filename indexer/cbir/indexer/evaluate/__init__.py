"""Evaluation of an index on labelled queries, and a report of it as a web page."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
