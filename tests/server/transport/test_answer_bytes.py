"""What is written to the wire by hand is what the generated classes would write."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from cbir.core.artifacts import Gallery, GalleryImage
from cbir.core.images import Box
from cbir.core.vote import Ranking
from cbir.server.engine import Embedding, Engine, EngineQuery, EngineResult, StoredImage, Timings
from cbir.server.transport.answer_bytes import warm_up, write_results
from cbir.server.transport.conversion import query_from_request
from cbir.v1 import search_pb2

BOX = Box(0, 0, 4, 4)
GALLERY = Gallery.from_images(
    [
        GalleryImage("a", "file:a.png", None, 4, 4, "0" * 64, 0, BOX),
        GalleryImage("b", "file:b.png", "", 4, 4, "1" * 64, 0, BOX, metadata={"colour": "red", "é": "ü"}),
        GalleryImage("c" * 300, "file:c.png", "cat", 4, 4, "2" * 64, 0, BOX),
    ]
)
MEMBERS = ("clip", "a member with a longer name" * 8)


def ranking(rows: list[int]) -> Ranking:
    count = len(rows)
    numbers = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    ranks = np.array([[1, 127], [128, 70_000], [0, 3]])[:count]
    return Ranking(
        np.array(rows), numbers[:, 0], numbers[:, 1], numbers[:, 2:4], ranks,
        numbers[:, 4:6], np.zeros(count, np.float32), [("cat", 0.75), ("dog", 0.25)],
    )  # fmt: skip


@pytest.mark.parametrize("rows", [[], [1], [2, 0, 1]])
def test_an_answer_is_what_the_generated_classes_write(rows: list[int]) -> None:
    timings = Timings(decode=0.25, queue=2.5, embed=1e-9, search=0.0, fuse=0.001)
    result = EngineResult(ranking(rows), MEMBERS, GALLERY, Box(0, 1, 2, 3), "v1", timings)
    expected = search_pb2.SearchResponse(index_version="v1", crop=search_pb2.Box(top=1, right=2, bottom=3))
    for hit in result.hits:
        written = expected.hits.add(
            image_id=hit.image.id, uri=hit.image.uri, score=hit.score, fused_score=hit.fused_score,
            label_contribution=hit.label_contribution, metadata=hit.image.metadata,
        )  # fmt: skip
        if hit.image.label is not None:
            written.label = hit.image.label
        for vote in hit.votes:
            written.votes.add(
                member=vote.member, rank=vote.rank, similarity=vote.similarity, contribution=vote.contribution
            )
    for label, probability in result.labels:
        expected.labels.add(label=label, probability=probability)
    answer, body = map(search_pb2.SearchResponse.FromString, write_results([result], expose_paths=True)[0])
    assert body == expected
    for stage, nanoseconds in {"decode": 250_000_000, "embed": 1, "fuse": 1_000_000, "search": 0}.items():
        getattr(expected.timings, stage).nanos = nanoseconds
    expected.timings.queue.seconds, expected.timings.queue.nanos = 2, 500_000_000
    assert answer == expected
    assert len(answer.hits) == len(rows)


def test_a_batch_is_written_as_its_answers_are_one_by_one() -> None:
    took = [Timings(queue=0.001 * i, search=0.5, fuse=1.5 if i == 2 else 0.25) for i in range(4)]
    results = [
        EngineResult(ranking(rows), MEMBERS, GALLERY, box, "v1", timings, frozenset(near))
        for rows, box, timings, near in zip(
            [[2, 0, 1], [], [1], [0, 2]], [None, BOX, None, BOX], took, [[], [], [1], [2]], strict=True
        )
    ]
    assert write_results(results) == [write_results([result])[0] for result in results]
    marked = [[hit.near_duplicate for hit in search_pb2.SearchResponse.FromString(body).hits]
              for _, body in write_results(results)]  # fmt: skip
    assert marked == [[False] * 3, [], [True], [False, True]]
    assert write_results([]) == []


def test_what_answers_need_is_compiled_before_the_first(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[list[object]] = []
    monkeypatch.setattr(
        "cbir.server.transport.answer_bytes._fill", lambda *arrays: kinds.append([numba.typeof(a) for a in arrays])
    )
    warm_up()
    write_results([engine.search(EngineQuery(StoredImage("twin")))])
    assert len(kinds) == 2
    assert kinds[0] == kinds[1]


def test_vectors_are_read_as_they_were_sent() -> None:
    for count in (1, 31, 32, 320, 5000):
        values = np.random.default_rng(count).normal(size=count).astype(np.float32)
        query = search_pb2.Query(embedding=search_pb2.EnsembleEmbedding(vectors={"m": {"values": values.tolist()}}))
        request = search_pb2.SearchRequest.FromString(search_pb2.SearchRequest(query=query).SerializeToString())
        source = query_from_request(request, b"").source
        assert isinstance(source, Embedding)
        np.testing.assert_array_equal(source.vectors["m"], values)


def test_a_vector_of_a_newer_client_and_an_empty_one_are_read() -> None:
    # Field 15 is none that this server knows; field 1 is sent number by number, as protobuf allows.
    newer = bytes([0x7A, 2, 1, 2]) + b"".join(bytes([0x0D]) + np.float32(x).tobytes() for x in (1.5, -2))
    vector = search_pb2.Vector.FromString(newer)
    request = search_pb2.SearchRequest()
    request.query.embedding.vectors["m"].CopyFrom(vector)
    request.query.embedding.vectors["n"].SetInParent()
    source = query_from_request(request, b"").source
    assert isinstance(source, Embedding)
    np.testing.assert_array_equal(source.vectors["m"], np.float32([1.5, -2]))
    assert source.vectors["n"].shape == (0,)
