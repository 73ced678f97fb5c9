"""Answers on the wire, written without a message object for every vote.

Building a ``SearchResponse`` of ten hits through the generated classes can take longer than ranking a gallery for it.
What does not change from answer to answer (id, uri, label and metadata of an image, the names of members and classes)
is encoded once and kept; the numbers go into an array of bytes that has protobuf's wire format, all hits at once.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts import Gallery
from cbir.core.machine import brief, keep_compiled
from cbir.server.engine import EngineResult, Timings
from cbir.server.transport.varints import varint
from cbir.v1 import search_pb2

__all__ = ["warm_up", "write_results"]

#: Images of a gallery whose encoding is kept, some 200 bytes each.
_KEPT = 131_072

#: By whether paths are told.
_DESCRIBED: dict[bool, WeakKeyDictionary[Gallery, dict[int, bytes]]] = {
    False: WeakKeyDictionary(),
    True: WeakKeyDictionary(),
}

_VARINT, _LENGTH, _FIXED32 = 0, 2, 5
# A varint may be longer than it need be; four bytes hold every rank among 2^28 candidates.
_RANK_BYTES = 4


def write_results(results: Sequence[EngineResult], *, expose_paths: bool = False) -> list[tuple[bytes, bytes]]:
    """Serialised ``SearchResponse`` messages, each with and without timings: an answer from memory took no time.

    Args:
        results: Of one engine, so that they have the same members and gallery.
        expose_paths: Tell where the images lie on this machine; otherwise an image's URI is its id.
    """
    written: list[tuple[bytes, bytes]] = []
    timings = _timings([result.timings for result in results])
    for result, hits, took in zip(results, _hits(results, expose_paths), timings, strict=True):
        parts = hits
        for label, probability in result.ranking.labels:
            name = _label(label)
            parts += (_LABELS, varint(len(name) + 5), name, _PROBABILITY.pack(_PROBABILITY_TAG, probability))
        if box := result.crop:
            crop = search_pb2.Box(left=box.left, top=box.top, right=box.right, bottom=box.bottom).SerializeToString()
            parts += (_CROP, varint(len(crop)), crop)
        parts.append(_version(result.version))
        body = b"".join(parts)
        written.append((body + took, body))
    return written


def warm_up() -> None:
    """Compile what writes hits: on a new installation that takes seconds, for which the first answer must not wait."""
    keep_compiled()
    template, floats, ranks = _template(("member",))
    number, vote = np.zeros(1, np.float32), np.zeros((1, 1), np.float32)
    hit = np.empty((1, template.size), np.uint8)
    _fill(template, floats, ranks, number, number, number, vote, vote, np.ones((1, 1), np.int64), hit)


def _hits(results: Sequence[EngineResult], expose_paths: bool) -> list[list[bytes]]:
    """The hits of each result, in pieces; their numbers are written for all results at once."""
    if not results:
        return []
    gallery, members = results[0].gallery, results[0].members
    template, floats, ranks = _template(tuple(members))
    rankings = [result.ranking for result in results]
    counts = [len(ranking.rows) for ranking in rankings]
    hits = np.empty((sum(counts), template.size), np.uint8)
    if len(hits):

        def joined(part: str) -> NDArray[Any]:
            arrays = [getattr(ranking, part) for ranking in rankings]
            return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

        _fill(
            template, floats, ranks, joined("scores"), joined("fused"), joined("label_contributions"),
            joined("similarities"), joined("contributions"), joined("ranks"), hits,
        )  # fmt: skip
    described = _DESCRIBED[expose_paths].setdefault(gallery, {})
    width, written, start = template.size, hits.tobytes(), 0
    all_parts: list[list[bytes]] = []
    for result, ranking in zip(results, rankings, strict=True):
        parts: list[bytes] = []
        for row in ranking.rows.tolist():
            if row in result.near_duplicates:
                # Longer than other hits, so that what is kept of them does not fit.
                known = _describe(gallery, row, width + len(_NEAR_DUPLICATE), {}, expose_paths)
                parts += (known, written[start : start + width], _NEAR_DUPLICATE)
            else:
                known = described.get(row) or _describe(gallery, row, width, described, expose_paths)
                parts += (known, written[start : start + width])
            start += width
        all_parts.append(parts)
    return all_parts


@brief
def _fill(
    template: NDArray[np.uint8],
    floats: NDArray[np.int64],
    ranks: NDArray[np.int64],
    scores: NDArray[np.float32],
    fused: NDArray[np.float32],
    label: NDArray[np.float32],
    similarities: NDArray[np.float32],
    contributions: NDArray[np.float32],
    given: NDArray[np.int64],
    hits: NDArray[np.uint8],
) -> None:
    """Write the numbers of each hit into a copy of the template."""
    numbers = np.empty(len(floats), np.float32)
    written = numbers.view(np.uint8)
    for k in range(len(hits)):
        hits[k] = template
        numbers[0], numbers[1], numbers[2] = scores[k], fused[k], label[k]
        for m in range(len(ranks)):
            numbers[3 + 2 * m] = similarities[k, m]
            numbers[4 + 2 * m] = contributions[k, m]
            rank = given[k, m]
            for i in range(_RANK_BYTES):
                hits[k, ranks[m] + i] = (rank & 127) | (128 if i + 1 < _RANK_BYTES else 0)
                rank >>= 7
        for f in range(len(floats)):
            for i in range(4):
                hits[k, floats[f] + i] = written[4 * f + i]


@lru_cache(maxsize=64)
def _template(members: tuple[str, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """The bytes of a hit's scores and votes, where in them its floats begin, and where its ranks do."""
    data, floats, ranks = bytearray(), list[int](), list[int]()

    def leave(places: list[int], count: int) -> None:
        places.append(len(data))
        data.extend(bytes(count))

    for name in ("score", "fused_score", "label_contribution"):
        data += _tag("Hit", name, _FIXED32)
        leave(floats, 4)
    for member in members:
        name_field = search_pb2.Vote(member=member).SerializeToString()
        data += _tag("Hit", "votes", _LENGTH) + varint(len(name_field) + 1 + _RANK_BYTES + 10) + name_field
        data += _tag("Vote", "rank", _VARINT)
        leave(ranks, _RANK_BYTES)
        for name in ("similarity", "contribution"):
            data += _tag("Vote", name, _FIXED32)
            leave(floats, 4)
    # Copied, so that it can be written to as other arrays can: compiled loops are made for one kind.
    return np.frombuffer(bytes(data), np.uint8).copy(), np.array(floats), np.array(ranks)


def _timings(timings: Sequence[Timings]) -> list[bytes]:
    """The field ``timings`` of each answer.

    What a batch has in common, as its search, is written once.
    """
    durations: dict[float, bytes] = {}
    fields: list[bytes] = []
    for took in timings:
        parts: list[bytes] = []
        for tag, seconds in zip(_STAGES, vars(took).values(), strict=True):
            duration = durations.get(seconds)
            if duration is None:
                duration = durations[seconds] = _duration(seconds)
            parts += (tag, duration)
        body = b"".join(parts)
        fields.append(_TIMINGS + varint(len(body)) + body)
    return fields


def _duration(seconds: float) -> bytes:
    """A ``google.protobuf.Duration`` behind its length."""
    whole, nanos = divmod(max(0, round(seconds * 1e9)), 1_000_000_000)
    # Five bytes hold all nanoseconds of a second.
    rest = bytes(
        (16, nanos & 127 | 128, nanos >> 7 & 127 | 128, nanos >> 14 & 127 | 128, nanos >> 21 & 127 | 128, nanos >> 28)
    )
    duration = b"\x08" + varint(whole) + rest if whole else rest
    return varint(len(duration)) + duration


@lru_cache(maxsize=65536)
def _label(label: str) -> bytes:
    return search_pb2.LabelPrediction(label=label).SerializeToString()


@lru_cache(maxsize=16)
def _version(version: str) -> bytes:
    return search_pb2.SearchResponse(index_version=version).SerializeToString()


def _tag(message: str, field: str, wire_type: int) -> bytes:
    number = search_pb2.DESCRIPTOR.message_types_by_name[message].fields_by_name[field].number
    return varint(number << 3 | wire_type)


_HITS, _LABELS, _CROP, _TIMINGS = (
    _tag("SearchResponse", name, _LENGTH) for name in ("hits", "labels", "crop", "timings")
)
_NEAR_DUPLICATE = _tag("Hit", "near_duplicate", _VARINT) + b"\x01"
_PROBABILITY, _PROBABILITY_TAG = struct.Struct("<Bf"), _tag("LabelPrediction", "probability", _FIXED32)[0]
_STAGES = tuple(_tag("Timings", name, _LENGTH) for name in ("decode", "queue", "embed", "search", "fuse"))


def _describe(gallery: Gallery, row: int, width: int, described: dict[int, bytes], expose_paths: bool) -> bytes:
    """The beginning of a hit of which ``width`` bytes follow."""
    name = gallery.ids[row]
    uri = gallery.uri(row) if expose_paths else name
    fixed = search_pb2.Hit(image_id=name, uri=uri, label=gallery.label(row), metadata=gallery.metadata(row))
    if len(described) >= _KEPT:
        for old in list(islice(described, _KEPT // 8)):
            described.pop(old, None)
    data = fixed.SerializeToString()
    described[row] = _HITS + varint(len(data) + width) + data
    return described[row]
