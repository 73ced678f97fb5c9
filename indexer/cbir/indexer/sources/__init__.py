"""Where images come from: folders, zips, tars and manifests, all seen as one list of :class:`SourceImage`."""

from __future__ import annotations

from cbir.indexer.sources.collection import Sources, open_sources
from cbir.indexer.sources.image import IMAGE_EXTENSIONS, ScanProblem, Source, SourceImage

__all__ = ["IMAGE_EXTENSIONS", "ScanProblem", "Source", "SourceImage", "Sources", "open_sources"]
