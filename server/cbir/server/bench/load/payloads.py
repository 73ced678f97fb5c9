"""The requests of a load, serialised before it begins, so that the generator only sends bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cbir.core.errors import ConfigurationError
from cbir.server.transport import varint
from cbir.v1 import search_pb2

__all__ = [
    "Payloads", "Vectors", "drawn_vectors", "embeddings", "ids", "images", "in_stream",
    "of_vectors", "read_vectors", "stream_place",
]  # fmt: skip

#: By member: (K, dim) vectors.
Vectors = Mapping[str, NDArray[np.float32]]

#: Bytes appended to an image file, which decoders ignore.
_TRAILER = 8
_ID_TAG, _BODY_TAG, _ANSWER_TAG = 0x0A, 0x12, 0x12


def _as_it_is(body: bytes, number: int) -> bytes:
    return body


def _other_trailer(body: bytes, number: int) -> bytes:
    return body[:-_TRAILER] + number.to_bytes(_TRAILER, "little")


def _other_mantissa(body: bytes, number: int) -> bytes:
    # The last four bytes are a little-endian float32; changing its two low bytes changes it by less than one per cent.
    return body[:-4] + (number & 0xFFFF).to_bytes(2, "little") + body[-2:]


@dataclass(frozen=True)
class Payloads:
    """An endless supply of serialised ``SearchRequest`` messages.

    Attributes:
        kind: What the queries are: ``image``, ``embedding`` or ``id``.
        bodies: The distinct requests, sent in turn.
        vary: Changes a body a little for the n-th request, so that all requests differ and no cache can answer them.
        first: Number of the first request.
    """

    kind: str
    bodies: Sequence[bytes]
    vary: Callable[[bytes, int], bytes] = _as_it_is
    first: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "_numbers", count(self.first))

    def __call__(self) -> bytes:
        """The next request."""
        number: int = next(self._numbers)  # type: ignore[attr-defined]
        return self.vary(self.bodies[number % len(self.bodies)], number)

    @property
    def mean_bytes(self) -> float:
        """Mean size of a request."""
        return float(np.mean([len(body) for body in self.bodies]))

    def beginning_at(self, first: int) -> Payloads:
        """The same supply from another request on: for a generator beside others, whose requests are to differ."""
        return Payloads(self.kind, self.bodies, self.vary, first)

    def repeated(self, distinct: int) -> Payloads:
        """Only the first few requests, unchanged, again and again, so that a cache can answer them."""
        return Payloads(self.kind, self.bodies[:distinct])


def images(files: Sequence[bytes]) -> Payloads:
    """Queries by image; every request has other bytes (in a trailer that decoders ignore) but the same pixels."""
    queries = [search_pb2.Query(image=data + bytes(_TRAILER)) for data in files]
    return Payloads("image", _serialised(queries), _other_trailer)


def embeddings(raw_dims: Mapping[str, int], distinct: int, seed: int) -> Payloads:
    """Queries by random unit vectors of every member; all requests differ.

    Args:
        raw_dims: Length of each member's embedding before projection, by name.
        distinct: How many different vectors are drawn.
    """
    return of_vectors(drawn_vectors(raw_dims, distinct, seed))


def drawn_vectors(raw_dims: Mapping[str, int], distinct: int, seed: int) -> Vectors:
    """By member: (distinct, dim) random unit vectors, always the same for the same arguments."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((distinct, sum(raw_dims.values()))).astype(np.float32)
    parts = np.split(drawn, np.cumsum(list(raw_dims.values()))[:-1], axis=1)
    vectors = dict(zip(raw_dims, parts, strict=True))
    return {name: v / np.linalg.norm(v, axis=1, keepdims=True) for name, v in vectors.items()}


def read_vectors(path: Path, raw_dims: Mapping[str, int]) -> Vectors:
    """By member: (K, dim) vectors, from an .npz with an array for every member.

    Args:
        raw_dims: Length of each member's embedding before projection, by name.

    Raises:
        ConfigurationError: ``BENCH_EMBEDDINGS``: the file does not hold such arrays.
    """
    try:
        with np.load(path) as file:
            vectors = {name: np.asarray(file[name], np.float32) for name in raw_dims}
        found = {name: array.shape[1] for name, array in vectors.items()}
        if found != dict(raw_dims) or len({len(array) for array in vectors.values()}) != 1:
            raise ValueError(f"its arrays are {found} components wide")
    except (OSError, ValueError, KeyError, IndexError) as error:
        wanted = ", ".join(f"{name} (K, {dim})" for name, dim in raw_dims.items())
        raise ConfigurationError(
            f"{path} does not hold the vectors of queries ({error}): it must be an .npz of {wanted}",
            reason="BENCH_EMBEDDINGS",
        ) from error
    return vectors


def of_vectors(vectors: Vectors) -> Payloads:
    """Queries by (K, dim) vectors of every member; all requests differ."""
    queries = []
    for row in range(len(next(iter(vectors.values())))):
        parts = {name: search_pb2.Vector(values=array[row].tolist()) for name, array in vectors.items()}
        queries.append(search_pb2.Query(embedding=search_pb2.EnsembleEmbedding(vectors=parts)))
    return Payloads("embedding", _serialised(queries), _other_mantissa)


def ids(names: Sequence[str]) -> Payloads:
    """Queries by the ids of indexed images; these cannot be varied, so they repeat."""
    return Payloads("id", _serialised([search_pb2.Query(image_id=name) for name in names]))


def in_stream(place: int, body: bytes) -> bytes:
    """A serialised ``SearchStreamRequest`` whose request_id is the number of the sender."""
    name = str(place).encode()
    return bytes((_ID_TAG, len(name))) + name + bytes((_BODY_TAG,)) + varint(len(body)) + body


def stream_place(reply: bytes) -> tuple[int, bool]:
    """The number of the sender that a serialised ``SearchStreamResponse`` belongs to, and whether it is an answer."""
    end = 2 + reply[1]
    return int(reply[2:end]), reply[end : end + 1] == bytes((_ANSWER_TAG,))


def _serialised(queries: Sequence[search_pb2.Query]) -> list[bytes]:
    # Without options, the part that is varied lies at the very end of the message.
    return [search_pb2.SearchRequest(query=query).SerializeToString() for query in queries]
