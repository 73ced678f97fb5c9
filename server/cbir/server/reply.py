"""Answers on the wire, written without a message object for every vote.

Building a ``SearchResponse`` of ten hits through the generated classes can take longer than ranking a gallery for it.
What does not change from answer to answer (id, uri, label and metadata of an image) is encoded once and kept. The
numbers go into an array of bytes that has protobuf's wire format, all hits at once. The message is then read from those
bytes, so that what is sent is written by protobuf itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from cbir.core.gallery import Gallery
from cbir.core.retriever import Ranking
from cbir.server.varint import varint
from cbir.v1 import search_pb2

__all__ = ["hits_message"]

#: Images of a gallery whose encoding is kept, some 200 bytes each.
_KEPT = 131_072

_DESCRIBED: WeakKeyDictionary[Gallery, dict[int, bytes]] = WeakKeyDictionary()

_VARINT, _LENGTH, _FIXED32 = 0, 2, 5
# A varint may be longer than it need be; four bytes hold every rank among 2^28 candidates.
_RANK_BYTES = 4
_SHIFTS = np.arange(0, 7 * _RANK_BYTES, 7)
_MORE = np.array([128] * (_RANK_BYTES - 1) + [0])


def hits_message(gallery: Gallery, members: Sequence[str], ranking: Ranking) -> search_pb2.SearchResponse:
    """A response that holds the hits of a ranking and nothing else."""
    if not len(ranking.rows):
        return search_pb2.SearchResponse()
    template, places = _template(tuple(members))
    hits = np.empty((len(ranking.rows), template.size), np.uint8)
    hits[:] = template
    hits[:, places] = _numbers(ranking)
    described = _DESCRIBED.setdefault(gallery, {})
    parts: list[bytes] = []
    width, written = template.size, hits.tobytes()
    for i, row in enumerate(ranking.rows.tolist()):
        image = described.get(row) or _describe(gallery, row, described)
        parts += (_HITS, varint(len(image) + width), image, written[i * width : (i + 1) * width])
    return search_pb2.SearchResponse.FromString(b"".join(parts))


@lru_cache(maxsize=64)
def _template(members: tuple[str, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of a hit's scores and votes, and where in them the numbers of :func:`_numbers` stand."""
    data, scores, ranks, shares = bytearray(), list[int](), list[int](), list[int]()

    def leave(places: list[int], count: int) -> None:
        places += range(len(data), len(data) + count)
        data.extend(bytes(count))

    for name in ("score", "fused_score", "label_contribution"):
        data += _tag("Hit", name, _FIXED32)
        leave(scores, 4)
    for member in members:
        name_field = search_pb2.Vote(member=member).SerializeToString()
        data += _tag("Hit", "votes", _LENGTH) + varint(len(name_field) + 1 + _RANK_BYTES + 10) + name_field
        data += _tag("Vote", "rank", _VARINT)
        leave(ranks, _RANK_BYTES)
        for name in ("similarity", "contribution"):
            data += _tag("Vote", name, _FIXED32)
            leave(shares, 4)
    return np.frombuffer(bytes(data), np.uint8), np.array([*scores, *shares, *ranks])


def _numbers(ranking: Ranking) -> NDArray[np.uint8]:
    """(K, bytes): the scores, then each member's similarity and contribution, then the ranks as varints."""
    count, members = ranking.similarities.shape
    floats = np.empty((count, 3 + 2 * members), "<f4")
    floats[:, 0], floats[:, 1], floats[:, 2] = ranking.scores, ranking.fused, ranking.label_contributions
    floats[:, 3::2], floats[:, 4::2] = ranking.similarities, ranking.contributions
    ranks = (ranking.ranks[:, :, None] >> _SHIFTS & 127 | _MORE).astype(np.uint8)
    return np.concatenate([floats.view(np.uint8), ranks.reshape(count, -1)], axis=1)


def _tag(message: str, field: str, wire_type: int) -> bytes:
    number = search_pb2.DESCRIPTOR.message_types_by_name[message].fields_by_name[field].number
    return varint(number << 3 | wire_type)


_HITS = _tag("SearchResponse", "hits", _LENGTH)


def _describe(gallery: Gallery, row: int, described: dict[int, bytes]) -> bytes:
    image = gallery[row]
    fixed = search_pb2.Hit(image_id=image.id, uri=image.uri, label=image.label, metadata=image.metadata)
    if len(described) >= _KEPT:
        for old in list(islice(described, _KEPT // 8)):
            described.pop(old, None)
    described[row] = fixed.SerializeToString()
    return described[row]
