"""Ensembles: the models whose embeddings are combined.

``ensemble_file`` reads the file that describes one as a ``spec`` (``member_options``: what it may ask of a backend);
``embedder`` loads a member's model, which one of the ``backends`` builds and one of the ``runtime`` modules runs;
``text_tower`` embeds words; ``classifier`` has the classes that a network was trained on; ``fingerprint`` identifies a
member's embeddings.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
