"""Metrics: from a network's raw embedding to the unit vector that is compared.

``projection`` centres a member's embeddings and applies ``pca`` and the ``glrt`` metric, which ``neighbour_metric``
fits where there are no labels, with the help of ``class_probabilities``; ``expansion`` moves vectors towards their
neighbours.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
