"""Near duplicates: images that are the same picture, re-encoded, resized, brightened or slightly cut.

Two images are near duplicates when they have the same bytes, or when their perceptual hashes differ in few bits *and*
their embeddings are similar: the more bits differ, the more similar they must be.  The hash alone is not enough: on
images without structure, such as blank pages and flat colours, it is decided by rounding noise, and different objects
with the same outline on white have close hashes too.  Where embeddings are only somewhat similar, as members that see
much detail find copies at half the size, the images' pixels decide, if their files can be read.  Mirror images, and
grey copies of colour images, do not count.

N gallery rows, S rows of a selection, D components.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb, exp2, log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import IndexVersion
from cbir.core.images import distances
from cbir.core.metric import Projection, normalise
from cbir.core.search.searcher import Searcher
from cbir.core.vote import normalised_weights

__all__ = [
    "BITS",
    "LIKENESS",
    "SIMILARITY",
    "SIMILARITY_A_BIT",
    "SIMILARITY_TOP",
    "Appearance",
    "DuplicateGroup",
    "close_hashes",
    "close_pairs",
    "confirmed",
    "group_near_duplicates",
]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]

#: Most bits, of 64, in which the hashes of near duplicates differ, unless the caller says otherwise.
BITS = 4
#: The :class:`Appearance` cosine that near duplicates must reach: where their hashes are equal; more for each bit that
#: differs; and never more than this.  Chosen to separate copies of photos (JPEG, resized, brightened) from pairs of
#: different motorcycles photographed in the same way on white, whose hashes are close too.
SIMILARITY, SIMILARITY_A_BIT, SIMILARITY_TOP = 0.88, 0.02, 0.97
#: Least :class:`Appearance` cosine of images whose pixels may decide.
SIMILARITY_LEAST = 0.5
#: Least correlation of the small pictures of near duplicates whose pixels decide.  Of copies of photos (JPEG of quality
#: 30, halved, a fifth brighter) 98 of 100 reach 0.96, most of those that lost 3 % at the edges 0.95; different photos
#: of like things whose hashes are close, such as motorcycles on white or slices of a brain, reach 0.94.
LIKENESS = 0.95

_HASH_BITS = 64
#: Least singular value of the metric, relative to the largest, that is inverted: in directions that it shrinks more,
#: the float16 vectors hold only rounding errors.
_LEAST_SINGULAR_VALUE = 0.02


@dataclass(frozen=True)
class DuplicateGroup:
    """An image to keep, and its near duplicates.

    Attributes:
        keep: Row of the preferred image.
        extras: Rows of its near duplicates, the most similar first.
        distances: Bits in which the hash of each extra differs from that of ``keep``.
        similarities: :class:`Appearance` cosine of each extra and ``keep``.
    """

    keep: int
    extras: tuple[int, ...]
    distances: tuple[int, ...]
    similarities: tuple[float, ...]


def group_near_duplicates(
    hashes: Hashes,
    digest: Callable[[int], str],
    vectors: Callable[[Ints], Floats],
    preference: Callable[[int], Any],
    bits: int = BITS,
    likeness: Callable[[int, Ints], Floats] | None = None,
) -> list[DuplicateGroup]:
    """Group the near duplicates of a gallery around the images to keep.

    Of the images that close hashes connect, the preferred one is kept and its near duplicates become its extras; then
    the preferred one of the rest, and so on.  So every extra is a near duplicate of the image that is kept for it.
    Whole connected components would not do: a chain of small differences can connect images that have nothing in
    common, and deleting all but one of them would lose pictures.

    Args:
        hashes: (N,) perceptual hashes.
        digest: Digest of the bytes of a row.  Images with the same bytes are always grouped.
        vectors: (S, D) of rows, from :meth:`Appearance.vectors`.
        preference: Sort key of a row; the lowest is kept.  Only called for rows that may have near duplicates.
        bits: Most bits in which the hashes differ, 0 to 63.
        likeness: Correlations of the pixels of a row with those of others, see :func:`confirmed`.

    Returns:
        Groups with at least one extra each, in the order of ``keep``.
    """
    groups = []
    for rows in _linked(hashes, bits):
        left = np.array(sorted(rows.tolist(), key=preference), np.int64)
        parts, digests = vectors(left), np.array([digest(row) for row in left.tolist()])
        while len(left) > 1:
            bits_off = distances(hashes[left], int(hashes[left[0]]))
            alike = parts @ parts[0]
            near = (digests == digests[0]) | ((bits_off <= bits) & confirmed(bits_off, alike))
            if likeness is not None:
                unsure = np.flatnonzero(~near & (bits_off <= bits) & (alike >= SIMILARITY_LEAST))
                near[unsure] = likeness(int(left[0]), left[unsure]) >= LIKENESS
            near[0] = False
            extras = np.flatnonzero(near)
            if len(extras):
                extras = extras[np.lexsort((left[extras], -alike[extras], bits_off[extras]))]
                groups.append(
                    DuplicateGroup(
                        int(left[0]),
                        tuple(left[extras].tolist()),
                        tuple(bits_off[extras].tolist()),
                        tuple(np.clip(alike[extras], -1, 1).tolist()),
                    )
                )
                near[0] = True
                left, parts, digests = left[~near], parts[~near], digests[~near]
            else:
                # Slices are views.  Copies would take long where thousands of images share a hash and nothing else.
                left, parts, digests = left[1:], parts[1:], digests[1:]
    return sorted(groups, key=lambda group: group.keep)


def _linked(hashes: Hashes, bits: int) -> list[Ints]:
    """Connected components of close hashes: the rows of each component of at least two."""
    # Equal hashes are merged first: a gallery of blank pages would have very many pairs of them.
    values, place = np.unique(hashes, return_inverse=True)
    parent = list(range(len(values)))

    def root(value: int) -> int:
        while parent[value] != value:
            parent[value] = value = parent[parent[value]]
        return value

    for one, other in close_pairs(values, bits).tolist():
        parent[root(one)] = root(other)
    component = np.array([root(value) for value in range(len(values))], np.int64)[place]
    order = np.argsort(component, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(component[order])) + 1)
    return [part for part in parts if len(part) > 1]


def close_hashes(hashes: Hashes, other: int, bits: int = BITS) -> tuple[Ints, NDArray[np.uint8]]:
    """The rows, ascending, whose hash differs from ``other`` in at most ``bits`` bits, and that number for each."""
    bits_off = distances(hashes, other)
    rows = np.flatnonzero(bits_off <= bits)
    return rows, bits_off[rows]


class Appearance:
    """Similarity of images as pictures, whatever their class.

    A GLRT metric draws the images of a class together, and so hides what tells one motorcycle from another.  Here the
    metric is inverted, so that the centred principal components are compared.

    Args:
        projections: One a member.
        weights: (M,) weights of the members' votes.
        vectors_of: Gives the (S, D) projected vectors of rows, as they were before neighbours were averaged; only
            needed for :meth:`of_rows`.
    """

    def __init__(
        self, projections: Sequence[Projection], weights: Floats, vectors_of: Callable[[Ints], Floats] | None = None
    ) -> None:
        self._vectors_of = vectors_of
        self._dims = [projection.dim for projection in projections]
        self._shares = np.sqrt(normalised_weights(np.asarray(weights, np.float32)))
        self._inverses = [
            None if p.metric is None else np.linalg.pinv(p.metric, rcond=_LEAST_SINGULAR_VALUE).T.astype(np.float32)
            for p in projections
        ]

    @classmethod
    def of(cls, version: IndexVersion, searcher: Searcher | None = None) -> Appearance:
        """For the ensemble and the gallery of an index version.

        Args:
            searcher: Knows the vectors of a version that keeps them elsewhere than in its files.

        Raises:
            ArtifactError: A file of the version is damaged.
        """
        names = [member.name for member in version.manifest.ensemble.members]
        weights = np.array([version.vote.weights[name] for name in names], np.float32)
        projections = [version.projection(name) for name in names]
        if searcher is not None and version.manifest.store and not version.keeps_plain_embeddings:
            return cls(projections, weights, lambda rows: searcher.vectors_of(rows.tolist()))
        files = [version.plain_embeddings(name) for name in names]
        return cls(projections, weights, lambda rows: np.concatenate([part[rows] for part in files], axis=1))

    def of_rows(self, rows: Ints) -> Floats:
        """(S, D) :meth:`vectors` of gallery images: their own, even where the index averages neighbours."""
        assert self._vectors_of is not None
        return self.vectors(self._vectors_of(rows))

    def vectors(self, projected: Floats) -> Floats:
        """Vectors whose inner products are weighted means of the members' cosines.

        Args:
            projected: (S, D) the members' projected unit vectors side by side.

        Returns:
            (S, D) float32.
        """
        blocks, start = [], 0
        for dim, share, inverse in zip(self._dims, self._shares, self._inverses, strict=True):
            block = np.asarray(projected[:, start : start + dim], np.float32)
            blocks.append(share * normalise(block if inverse is None else block @ inverse))
            start += dim
        return np.concatenate(blocks, axis=1)


def confirmed(bits_off: NDArray[np.uint8], cosines: Floats, likeness: Floats | None = None) -> NDArray[np.bool_]:
    """(S,) whether pairs of images whose hashes are close are near duplicates.

    Args:
        bits_off: (S,) bits in which the hashes differ.
        cosines: (S,) inner products of vectors from :meth:`Appearance.vectors`.
        likeness: (S,) correlations of the pixels (:class:`cbir.core.search.SmallPictures`), NaN where they are not
            known; None: of no pair.
    """
    sure = np.asarray(cosines >= np.minimum(SIMILARITY + SIMILARITY_A_BIT * bits_off, SIMILARITY_TOP))
    return sure if likeness is None else sure | ((cosines >= SIMILARITY_LEAST) & (likeness >= LIKENESS))


def close_pairs(hashes: Hashes, bits: int = BITS) -> Ints:
    """All pairs of distinct hashes that differ in at most ``bits`` bits.

    The 64 bits are cut into ``bits`` + k bands; two hashes that differ in at most ``bits`` bits agree in at least k
    bands.  For each choice of k bands, hashes that agree in all of them are sorted side by side and compared.  k is
    chosen by the number of hashes.  Source: Manku, Jain, Das Sarma, "Detecting Near-Duplicates for Web Crawling", WWW
    2007.  A million hashes take seconds, and memory grows with their number only.

    Args:
        hashes: (N,) all different, because a value that many images share has too many pairs to list.
        bits: 0 to 63.

    Returns:
        (P, 2) positions i < j in ``hashes``, sorted.
    """
    count = len(hashes)
    found = [np.zeros(0, np.int64)]
    for mask in _band_masks(count, bits):
        order = np.argsort(hashes & mask)
        ordered = hashes[order]
        keys = ordered & mask
        # Each hash is compared with its next neighbour in the bucket, then with the one after that, and so on.
        here, step = np.arange(count), 0
        while len(here):
            step += 1
            here = here[here + step < count]
            here = here[keys[here] == keys[here + step]]
            near = here[np.bitwise_count(ordered[here] ^ ordered[here + step]) <= bits]
            one, other = order[near], order[near + step]
            found.append(np.minimum(one, other) * count + np.maximum(one, other))
    pairs = np.unique(np.concatenate(found))
    return np.stack(np.divmod(pairs, max(count, 1)), axis=1)


def _band_masks(count: int, bits: int) -> list[np.uint64]:
    """One mask for each choice of k bands; two close hashes agree in all bits of at least one mask."""

    def cost(chosen: int) -> float:
        # Each mask costs a sort, and a comparison for every pair that agrees in its bands by chance.  Real hashes agree
        # more often than random ones, as if the bands were a fifth shorter: their bits are not all equally likely.
        agreeing = 0.8 * _HASH_BITS * chosen / (bits + chosen)
        return comb(bits + chosen, chosen) * (log2(count + 2) + count * exp2(1 - agreeing))

    chosen = min((k for k in range(1, 5) if bits + k <= _HASH_BITS), key=cost)
    edges = np.linspace(0, _HASH_BITS, bits + chosen + 1).round().astype(int).tolist()
    bands = [((1 << stop) - (1 << start)) for start, stop in pairwise(edges)]
    return [np.uint64(sum(choice)) for choice in combinations(bands, chosen)]
