"""Text towers: embed words in the space of a member's image embeddings; embeddings of the names of classes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from cbir.core.ensemble.embedder import explained
from cbir.core.ensemble.spec import MemberSpec
from cbir.core.errors import EnsembleError

__all__ = [
    "PROMPTS",
    "TEXT_BACKENDS",
    "TextEmbedder",
    "check_text_tower",
    "class_embeddings",
    "has_text_tower",
    "load_text_embedder",
    "readable",
]

#: Name of the backend -> its module, which has ``load_text(member, device)`` and ``check_text(member)``.
TEXT_BACKENDS = {"open_clip": "cbir.core.ensemble.backends.open_clip"}

#: Name of the prompts that the names of classes are put into; the index records it.  These seven, selected by OpenAI
#: for CLIP, are nearly as accurate as their full set of eighty, at a tenth of the cost.
PROMPTS = "openai-simple-7"


class TextEmbedder(Protocol):
    """The text tower of one member.  One caller at a time.

    Attributes:
        dim: Length of an embedding, the same as of the member's image embeddings before projection.
        logit_scale: Factor of the cosines between words and images before the softmax over classes; trained with the
            model.
    """

    dim: int
    logit_scale: float

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed B texts as (B, dim) float32 unit vectors, in the space of the member's raw image embeddings."""
        ...


def has_text_tower(member: MemberSpec) -> bool:
    """Whether the member has a text tower, told without loading the model or its library."""
    # All models of open_clip have one.
    return member.text and member.backend in TEXT_BACKENDS


def load_text_embedder(member: MemberSpec, device: str = "auto") -> TextEmbedder:
    """Load a member's text tower, without its image tower.

    Args:
        device: ``auto`` (CUDA where there is a GPU), ``cpu`` or ``cuda``.

    Raises:
        EnsembleError: It has none, or its weights or tokenizer are neither cached nor can be downloaded.
        ConfigurationError: The device is not available.
    """
    if not has_text_tower(member):
        raise EnsembleError(
            f"member {member.name!r} has no text tower: backends with one are {', '.join(TEXT_BACKENDS)}",
            reason="TEXT_UNSUPPORTED",
        )
    with explained(member):
        return cast(TextEmbedder, importlib.import_module(TEXT_BACKENDS[member.backend]).load_text(member, device))


def check_text_tower(member: MemberSpec) -> None:
    """Find out before hours of work whether a member's text tower will load: its tokenizer is what may be missing.

    Raises:
        EnsembleError: The tokenizer needs a package that is not installed, or is neither cached nor can be downloaded.
    """
    with explained(member):
        importlib.import_module(TEXT_BACKENDS[member.backend]).check_text(member)


def readable(label: str) -> str:
    """The words of a label: underscores and hyphens become spaces.  Capitals stay: tokenizers handle them."""
    return " ".join(label.replace("_", " ").replace("-", " ").split()) or label


def class_embeddings(embedder: TextEmbedder, labels: Sequence[str]) -> NDArray[np.float32]:
    """Embed the names of C classes: each is the mean of its prompts' unit vectors, scaled to unit length.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
    section 3.1.4; the prompts are those of their release (:data:`PROMPTS`).

    Returns:
        (C, dim) float32 unit vectors.
    """
    from open_clip import SIMPLE_IMAGENET_TEMPLATES

    prompts = [template(readable(label)) for label in labels for template in SIMPLE_IMAGENET_TEMPLATES]
    vectors = embedder.embed_text(prompts).reshape(len(labels), len(SIMPLE_IMAGENET_TEMPLATES), -1).mean(axis=1)
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
