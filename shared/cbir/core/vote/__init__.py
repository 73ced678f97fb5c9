"""The vote: the members' similarities become one score, labels get probabilities, and candidates become ranked hits.

``fusion`` computes the score from similarities and weights; ``label_vote`` the probabilities of labels, with the
``linear_heads``; ``ranking`` adds the label bonus, orders with ``top_k``, and applies the ``calibration``.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
