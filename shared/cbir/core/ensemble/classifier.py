"""Classifiers: the classes that a member's network was trained to tell apart, as directions of its embeddings."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cbir.core.ensemble.embedder import explained
from cbir.core.ensemble.spec import MemberSpec
from cbir.core.errors import EnsembleError

if TYPE_CHECKING:
    import torch

__all__ = ["CLASSIFIER_BACKENDS", "classifier_directions"]

_log = logging.getLogger(__name__)

#: Name of the backend -> its module, which has ``classifier(member)``: the (C, D) weights of the linear layer that
#: stood on the embedding, or None.
CLASSIFIER_BACKENDS = {
    "timm": "cbir.core.ensemble.backends.timm",
    "torchvision": "cbir.core.ensemble.backends.torchvision",
}
#: Fewer classes tell too little of an image, and so many that their scores take more memory than the embeddings are
#: not worth it.
_FEWEST, _MOST = 50, 4096


def classifier_directions(member: MemberSpec, dim: int) -> NDArray[np.float32] | None:
    """The classifier that came with a member's weights and is left out of its embedding.

    Args:
        dim: Length of the member's raw embedding.

    Returns:
        (C, dim) float32, its rows less their mean; None where the member has none: random weights, a backend without
        classifiers, an embedding that is one itself, or a network that puts more than a linear layer on its embedding.

    Raises:
        EnsembleError: The weights file is not there, or is damaged.
    """
    if member.weights is None or member.backend not in CLASSIFIER_BACKENDS:
        return None
    try:
        with explained(member):
            found: torch.Tensor | None = importlib.import_module(CLASSIFIER_BACKENDS[member.backend]).classifier(member)
    except EnsembleError as error:
        if error.reason != "WEIGHTS_UNREACHABLE":
            raise
        # The embeddings are there, from a time when the weights were.
        _log.warning("member %s is fitted without its classifier: %s", member.name, error)
        return None
    if found is None:
        return None
    weights = np.asarray(found.detach().float().flatten(1).numpy(), np.float32)
    if weights.shape[1] != dim or not _FEWEST <= len(weights) <= _MOST or not np.isfinite(weights).all():
        return None
    centred: NDArray[np.float32] = weights - weights.mean(axis=0)
    return centred
