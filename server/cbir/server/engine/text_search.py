"""Text in the engine: text queries, and what class names say about image queries (label priors)."""

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

__all__ = ["TextSearch"]

_log = logging.getLogger(__name__)

Floats = NDArray[np.float32]


class TextSearch:
    """The joint text-image space of an index version, and the text towers that embed into it.

    Args:
        embedders: Text towers by member; a member without one takes no text queries but still gives label priors.
    """

    def __init__(self, space: JointSpace, embedders: Mapping[str, TextEmbedder]) -> None:
        self._space = space
        self._embedders = {name: embedders[name] for name in space.members if name in embedders}
        #: Names of the members that take text queries.
        self.members = tuple(self._embedders)

    @classmethod
    def load(cls, version: IndexVersion, ensemble: EnsembleSpec, device: str, towers: bool = True) -> TextSearch | None:
        """Load the joint space of a version and the text towers; None if the version has no joint space.

        A tower that cannot be loaded is logged, and its member takes no text queries; image queries still work.

        Args:
            ensemble: The ensemble with the present paths of the weights.
            towers: Load the text towers; False leaves only the label priors.

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
        """Vectors of the queries in the joint space, moved by their examples as in the members' own spaces.

        Args:
            raw: (I, raw_dim) by member: embeddings of those I queries that are images, in their order.

        Returns:
            (B, sum of dims) float32; zeros for queries without a vector there, such as embeddings of other members.
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
        # Unusable vectors are left out here; the projection refuses them with the reason.
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
            return np.zeros_like(point)  # the projection refuses the query, or other members answer it

    def label_priors(self, points: Floats, weights: Floats) -> list[Floats | None]:
        """Label priors of class names; see :meth:`cbir.core.search.text_image_space.JointSpace.label_priors`."""
        return self._space.label_priors(points, weights)

    def search(self, point: Floats, weights: Floats, query: PreparedQuery) -> Ranking:
        """Rank the gallery for a text query; see :meth:`cbir.core.search.text_image_space.JointSpace.search`."""
        return self._space.search(point, weights, query.spec)
