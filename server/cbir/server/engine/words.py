"""Words in the engine: queries in words, and what the names of classes say about queries that are images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import IndexVersion
from cbir.core.ensemble import EnsembleSpec, TextEmbedder, load_text_embedder
from cbir.core.errors import CbirError, EnsembleError
from cbir.core.search import JointSpace
from cbir.core.vote import Ranking
from cbir.server.engine.feedback import apply_feedback
from cbir.server.engine.preparation import PreparedQuery

__all__ = ["Words"]

_log = logging.getLogger(__name__)

Floats = NDArray[np.float32]


class Words:
    """The joint space of an index version and the text towers that lead into it.

    Args:
        embedders: By member; those without one still say what the names of classes tell of images.
    """

    def __init__(self, space: JointSpace, embedders: Mapping[str, TextEmbedder]) -> None:
        self._space = space
        self._embedders = {name: embedders[name] for name in space.members if name in embedders}
        #: The members that can be asked in words.
        self.members = tuple(self._embedders)

    @classmethod
    def load(cls, version: IndexVersion, ensemble: EnsembleSpec, device: str, towers: bool = True) -> Words | None:
        """Load what a version has for words; None where that is nothing.

        A tower that cannot be loaded leaves its member without words and is logged: images can be searched all the
        same.

        Args:
            ensemble: Where the weights lie now.
            towers: Load the text towers; False leaves the class names to do their part.

        Raises:
            ArtifactError: A file is damaged.
        """
        space = JointSpace.load(version, device)
        if space is None:
            return None
        embedders: dict[str, TextEmbedder] = {}
        for member in ensemble.members if towers else ():
            if member.name in space.members:
                try:
                    embedders[member.name] = load_text_embedder(member, device)
                except EnsembleError as error:
                    _log.warning("member %s cannot be asked in words: %s", member.name, error)
        return cls(space, embedders)

    def points(self, batch: Sequence[PreparedQuery], raw: Mapping[str, Floats]) -> Floats:
        """Where the queries lie in the joint space, moved by their examples as in the members' projected spaces.

        Args:
            raw: (I, raw_dim) by member: the embeddings of those I queries that are images, in their order.

        Returns:
            (B, sum of dims) float32; queries that say nothing there, such as embeddings of other members, get zeros.
        """
        points = np.zeros((len(batch), sum(self._space.dims)), np.float32)
        images = [i for i, query in enumerate(batch) if query.inputs]
        points[images] = self._space.side_by_side(raw, len(images))
        texts = [i for i, query in enumerate(batch) if query.text]
        if texts:
            asked = [batch[i].text for i in texts]
            blocks = {name: embedder.embed_text(asked) for name, embedder in self._embedders.items()}
            points[texts] = self._space.side_by_side(blocks, len(texts))
        for i, query in enumerate(batch):
            if query.vectors:
                points[i] = self._given(query.vectors)
            elif query.row is not None:
                points[i] = self._space.vectors_of([query.row])[0]
            if query.positives or query.negatives:
                points[i] = self._moved(points[i], query)
        return points

    def _given(self, vectors: Mapping[str, NDArray[np.float32]]) -> Floats:
        dims = dict(zip(self._space.members, self._space.dims, strict=True))
        # What is no usable vector is refused, with its reason, where it is projected.
        good = {
            name: vector[None]
            for name, vector in vectors.items()
            if name in dims and len(vector) == dims[name] and np.isfinite(vector).all() and vector.any()
        }
        with np.errstate(over="ignore"):
            point: Floats = np.nan_to_num(self._space.side_by_side(good, 1)[0])
        return point

    def _moved(self, point: Floats, query: PreparedQuery) -> Floats:
        known = query.row is not None or bool(query.inputs) or bool(query.vectors)
        if known and not point.any():
            return point
        positives, negatives = (self._space.vectors_of(side) for side in (query.positives, query.negatives))
        try:
            return apply_feedback(point if known else None, positives, negatives, self._space.dims)
        except CbirError:
            return np.zeros_like(point)  # the query is refused, or the other members know better

    def label_priors(self, points: Floats, weights: Floats) -> list[Floats | None]:
        """What the names of the classes say; see :meth:`cbir.core.search.text_search.JointSpace.label_priors`."""
        return self._space.label_priors(points, weights)

    def search(self, point: Floats, weights: Floats, query: PreparedQuery) -> Ranking:
        """Rank the gallery by words; see :meth:`cbir.core.search.text_search.JointSpace.search`."""
        return self._space.search(point, weights, query.spec)
