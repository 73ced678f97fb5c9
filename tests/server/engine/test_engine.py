"""The engine, without a server."""

from __future__ import annotations

import ast
import hashlib
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from precision import f16, f32
from rooms import ROOT

from cbir.core.errors import CbirError, ImageError
from cbir.core.images import Box, Crop, DecodedImage, DecodeLimits, decode_image, prepare
from cbir.core.vote import Fusion
from cbir.server.engine import Embedding, Engine, EngineQuery, EngineResult, Filter, ImageBytes, StoredImage, Text
from cbir.server.engine.suspects import SuspectFinder

EXAMPLES = ("blue-rings-1", "green-checks-2", "red-checks-0", "grey-noise-3", "green-stripes-0", "blue-noise-2")


def ids(result: EngineResult) -> list[str]:
    return [hit.image.id for hit in result.hits]


def embedding(engine: Engine, data: bytes) -> Embedding:
    pixels = decode_image(data).pixels
    box = Box(0, 0, pixels.shape[1], pixels.shape[0])
    return Embedding(
        {n: e.embed(np.stack([prepare(pixels, box, e.size, e.interpolation)]))[0] for n, e in engine.embedders.items()}
    )


def refusal(engine: Engine, query: EngineQuery) -> CbirError:
    with pytest.raises(CbirError) as caught:
        engine.search(query)
    message = str(caught.value)
    assert "\n" not in message
    return caught.value


@pytest.mark.parametrize("room", ["engine", "queue", "deployment"])
def test_what_answers_needs_no_protocol(room: str) -> None:
    """Neither gRPC nor a message of the API is known below the transport."""
    found = [
        f"{file.name}: {name}"
        for file in sorted((ROOT / "server/cbir/server" / room).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
        if name.split(".")[0] in ("grpc", "google", "grpc_status") or name.startswith("cbir.v1")
    ]  # fmt: skip
    assert found == []


def test_bytes_id_and_embedding_agree(engine: Engine, tiny: Any) -> None:
    name = "blue-rings-2"
    data = tiny.bytes_of(name)
    by_bytes = engine.search(EngineQuery(ImageBytes(data), crop=Crop.NONE))
    by_id = engine.search(EngineQuery(StoredImage(name)))
    by_embedding = engine.search(EngineQuery(embedding(engine, data)))
    assert ids(by_bytes)[0] == name
    assert ids(by_bytes) == ids(by_embedding) == ids(by_id)
    for one, other in zip(by_bytes.hits, by_id.hits, strict=True):
        assert one.fused_score == pytest.approx(other.fused_score, abs=f16(4))
    assert by_bytes.crop == Box(0, 0, 80, 64)
    assert by_id.crop is None


def test_contributions_add_up_and_hits_are_sorted(engine: Engine) -> None:
    for fusion in Fusion:
        result = engine.search(EngineQuery(StoredImage("green-noise-1"), limit=30, fusion=fusion))
        assert len(result.hits) == 30
        for hit in result.hits:
            total = sum(vote.contribution for vote in hit.votes) + hit.label_contribution
            assert total == pytest.approx(hit.fused_score, abs=f32(256))
            assert [vote.member for vote in hit.votes] == ["resnet", "convnext"]
            assert 0 <= hit.score <= 1
        scores = [hit.score for hit in result.hits]
        assert scores == sorted(scores, reverse=True)
        assert any(hit.label_contribution > 0 for hit in result.hits)


def test_a_batch_mixes_sources_and_refuses_only_the_guilty(engine: Engine, tiny: Any) -> None:
    data = tiny.bytes_of("red-rings-1")
    good = embedding(engine, data)
    bad = Embedding({**good.vectors, "resnet": np.full_like(good.vectors["resnet"], np.nan)})
    short = Embedding({"resnet": np.ones(3, np.float32)})
    strange = Embedding({"vgg": np.ones(3, np.float32)})
    huge = Embedding({"resnet": good.vectors["resnet"] * np.float32(1e30)})
    mute = EngineQuery(Embedding({"resnet": good.vectors["resnet"]}), weights={"convnext": 1.0})
    queries = [EngineQuery(s) for s in (ImageBytes(data), bad, StoredImage("red-rings-1"), good, short, strange, huge)]
    answers = engine.answer([engine.prepare(q) for q in (*queries, mute)])
    reasons = [a.reason if isinstance(a, CbirError) else None for a in answers]
    assert reasons == [
        None, "BAD_EMBEDDING", None, None, "BAD_EMBEDDING", "UNKNOWN_MEMBER", None, "BAD_WEIGHT",
    ]  # fmt: skip
    whole = [a for a in answers if isinstance(a, EngineResult)]
    assert [ids(a)[0] for a in whole] == ["red-rings-1"] * 4
    alone = engine.search(EngineQuery(good))
    assert ids(alone) == ids(whole[2])


def test_members_left_out_of_an_embedding_do_not_vote(engine: Engine, tiny: Any) -> None:
    vectors = embedding(engine, tiny.bytes_of("grey-rings-1")).vectors
    partial = engine.search(EngineQuery(Embedding({"resnet": vectors["resnet"]})))
    weighted = engine.search(EngineQuery(Embedding(vectors), weights={"resnet": 5.0}))
    assert ids(partial) == ids(weighted)
    assert all(hit.votes[1].contribution == 0 for hit in (*partial.hits, *weighted.hits))


def test_weights_change_the_ranking(engine: Engine) -> None:
    query = EngineQuery(StoredImage("blue-noise-0"), limit=20)
    one = engine.search(replace(query, weights={"resnet": 1.0, "convnext": 0.0}))
    other = engine.search(replace(query, weights={"convnext": 0.1}))
    assert ids(one) != ids(other)
    assert all(hit.votes[0].contribution == pytest.approx(hit.votes[0].similarity, abs=f32(32)) for hit in one.hits)


@pytest.mark.parametrize(
    ("weights", "reason", "names"),
    [
        ({"vgg": 1.0}, "UNKNOWN_MEMBER", "vgg"),
        ({"resnet": -1.0, "convnext": 1.0}, "BAD_WEIGHT", "resnet"),
        ({"resnet": 1.0, "convnext": float("nan")}, "BAD_WEIGHT", "convnext"),
        ({"convnext": float("inf")}, "BAD_WEIGHT", "convnext"),
        ({"resnet": 0.0}, "BAD_WEIGHT", "all weights"),
    ],
)
def test_bad_weights_are_refused_by_name(engine: Engine, weights: dict[str, float], reason: str, names: str) -> None:
    error = refusal(engine, EngineQuery(StoredImage("red-noise-0"), weights=weights))
    assert error.reason == reason
    assert names in str(error)


def test_filters(engine: Engine) -> None:
    query = EngineQuery(StoredImage("red-noise-0"), limit=100)
    reds = engine.search(replace(query, filter=Filter(labels=("red", "blue"))))
    assert len(reds.hits) == 32
    assert {hit.image.label for hit in reds.hits} == {"red", "blue"}
    others = engine.search(replace(query, filter=Filter(exclude_labels=("red",))))
    assert {hit.image.label for hit in others.hits} == {"green", "blue", "grey", None}
    rings = engine.search(replace(query, filter=Filter(labels=("red",), metadata={"pattern": ("rings", "checks")})))
    assert sorted(ids(rings)) == sorted(f"red-{p}-{n}" for p in ("rings", "checks") for n in range(4))
    nothing = engine.search(replace(query, filter=Filter(metadata={"pattern": ("plaid",)})))
    assert nothing.hits == ()
    for bad in (Filter(labels=("mauve",)), Filter(metadata={"size": ("1",)}), Filter(metadata={"pattern": ()})):
        assert refusal(engine, replace(query, filter=bad)).reason == "BAD_FILTER"


def test_exclude_query(engine: Engine, tiny: Any) -> None:
    data = tiny.bytes_of("red-checks-0")
    twins = {"red-checks-0", "twin"}
    # The twin has no label, so that the vote of labels passes it by; the members see the same picture.
    alike = {h.image.id for h in engine.search(EngineQuery(ImageBytes(data), limit=65)).hits if h.votes[0].rank <= 2}
    assert alike == twins
    for source in (ImageBytes(data), StoredImage("twin"), StoredImage("red-checks-0")):
        result = engine.search(EngineQuery(source, exclude_query=True, limit=65))
        assert len(result.hits) == 63
        assert not twins & set(ids(result))


def reencoded(tiny: Any, name: str, **options: Any) -> ImageBytes:
    file = io.BytesIO()
    Image.open(tiny.pictures / f"{name}.png").save(file, **options)
    return ImageBytes(file.getvalue())


@pytest.mark.parametrize(
    ("name", "options", "same"),
    [
        ("red-checks-0", {"format": "BMP"}, {"red-checks-0", "twin"}),
        ("blue-rings-2", {"format": "JPEG", "quality": 60}, {"blue-rings-2"}),
        ("grey-stripes-1", {"format": "JPEG", "quality": 60}, {"grey-stripes-1"}),
    ],
)
def test_exclude_query_knows_a_reencoded_copy(
    engine: Engine, tiny: Any, name: str, options: dict[str, Any], same: set[str]
) -> None:
    query = EngineQuery(reencoded(tiny, name, **options), limit=65)
    assert same <= set(ids(engine.search(query)))
    # Pictures of the same shape in other colours have close hashes too; the members tell them apart.
    suspects, *_ = engine.prepare(replace(query, exclude_query=True)).suspects[None]
    assert len(suspects) > len(same)
    without = engine.search(replace(query, exclude_query=True))
    assert {image.id for image in engine.gallery.images()} - set(ids(without)) == same


def test_pixels_tell_that_a_small_copy_is_one(engine: Engine, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    with Image.open(tiny.pictures / "blue-rings-2.png") as image:
        image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
    query = EngineQuery(ImageBytes(file.getvalue()), exclude_query=True, limit=65)
    rows, _, likeness = engine.prepare(query).suspects[None]
    original = rows.tolist().index(engine.gallery.row("blue-rings-2"))
    assert likeness[original] > 0.95
    # Where members are never sure, the pixels still are.
    monkeypatch.setattr("cbir.core.search.near_duplicates.SIMILARITY", 1.0)
    monkeypatch.setattr("cbir.core.search.near_duplicates.SIMILARITY_TOP", 1.0)
    assert "blue-rings-2" not in ids(engine.search(query))
    # Where files cannot be read, nobody knows.
    gone = SuspectFinder(engine.gallery, RefusingDecoder(), DecodeLimits())
    assert np.isnan(gone.of_row(engine.gallery.row("blue-rings-2"))[2]).all()


class RefusingDecoder:
    """Stands for files that can be read no more."""

    def decode(self, *_: object) -> DecodedImage:
        raise ImageError("gone", reason="IMAGE_MISSING")


def test_exclude_query_judges_the_image_and_not_where_feedback_moves_it(engine: Engine, tiny: Any) -> None:
    query = EngineQuery(reencoded(tiny, "blue-rings-2", format="JPEG", quality=60), exclude_query=True, limit=65)
    moved = engine.search(replace(query, positive_ids=("red-noise-0", "green-checks-1")))
    assert "blue-rings-2" not in ids(moved)
    assert len(moved.hits) == 65 - 3


def test_min_score(engine: Engine) -> None:
    query = EngineQuery(StoredImage("grey-checks-1"), limit=50)
    scores = [hit.score for hit in engine.search(query).hits]
    cut = engine.search(replace(query, min_score=scores[20]))
    assert [hit.score for hit in cut.hits] == scores[: 1 + max(i for i, s in enumerate(scores) if s >= scores[20])]
    assert engine.search(replace(query, min_score=0.0)).hits


def test_feedback_moves_the_query(engine: Engine) -> None:
    query = EngineQuery(StoredImage("red-noise-0"), limit=65)

    def mean_rank(result: EngineResult, pattern: str) -> float:
        others = [name for name in ids(result) if name not in ("blue-rings-1", "red-checks-2")]
        return float(np.mean([rank for rank, name in enumerate(others) if pattern in name]))

    plain = engine.search(query)
    towards = engine.search(replace(query, positive_ids=("blue-rings-1",)))
    assert mean_rank(towards, "blue-rings") < mean_rank(plain, "blue-rings")
    away = engine.search(replace(query, negative_ids=("red-checks-2",)))
    assert mean_rank(away, "red-checks") > mean_rank(plain, "red-checks")


def test_examples_alone_are_a_query_and_no_hits(engine: Engine) -> None:
    alone = engine.search(EngineQuery(positive_ids=("blue-rings-1",), limit=65))
    same = engine.search(EngineQuery(StoredImage("blue-rings-1"), limit=65))
    assert ids(alone) == [name for name in ids(same) if name != "blue-rings-1"]
    both = engine.search(EngineQuery(StoredImage("twin"), ("blue-rings-1",), ("red-noise-2",), limit=65))
    assert {image.id for image in engine.gallery.images()} - set(ids(both)) == {"blue-rings-1", "red-noise-2"}


def test_exclude_query_of_examples_leaves_their_duplicates_out(engine: Engine) -> None:
    query = EngineQuery(positive_ids=("red-checks-0",), limit=65)
    assert "twin" in ids(engine.search(query))
    assert "twin" not in ids(engine.search(replace(query, exclude_query=True)))


def test_examples_need_not_meet_the_filter(engine: Engine) -> None:
    query = EngineQuery(StoredImage("red-noise-0"), limit=65, filter=Filter(labels=("green",)))
    plain, moved = engine.search(query), engine.search(replace(query, positive_ids=("blue-rings-1",)))
    assert sorted(ids(plain)) == sorted(ids(moved))
    assert ids(plain) != ids(moved)
    inside = engine.search(replace(query, positive_ids=("green-rings-1",)))
    assert set(ids(plain)) - set(ids(inside)) == {"green-rings-1"}


def test_positive_examples_vote_for_their_label_and_negative_ones_do_not(engine: Engine) -> None:
    def blue(**examples: tuple[str, ...]) -> float:
        query = EngineQuery(StoredImage("blue-rings-1"), exclude_query=True, **examples)
        return dict(engine.search(query).labels).get("blue", 0.0)

    # The examples are all there is of the label, so that nobody else votes for it.
    every = tuple(image.id for image in engine.gallery.images() if image.label == "blue" and image.id != "blue-rings-1")
    assert blue(negative_ids=every) == 0
    assert blue(positive_ids=every) > 0.9


@given(
    positives=st.lists(st.sampled_from(EXAMPLES), min_size=1, max_size=5),
    negatives=st.lists(st.sampled_from(EXAMPLES), max_size=5),
    data=st.data(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_order_and_repetition_of_examples_do_not_matter(
    engine: Engine, positives: list[str], negatives: list[str], data: st.DataObject
) -> None:
    negatives = [name for name in negatives if name not in positives]
    query = EngineQuery(StoredImage("red-noise-0"), tuple(positives), tuple(negatives), limit=20)
    again = replace(
        query,
        positive_ids=tuple(data.draw(st.permutations(positives + positives[:1]))),
        negative_ids=tuple(data.draw(st.permutations(negatives + negatives[:2]))),
    )
    one, other = engine.search(query), engine.search(again)
    np.testing.assert_allclose(
        [h.fused_score for h in one.hits], [h.fused_score for h in other.hits], rtol=0, atol=f32(256)
    )
    unique = replace(query, positive_ids=tuple(set(positives)), negative_ids=tuple(set(negatives)))
    assert [h.fused_score for h in engine.search(unique).hits] == pytest.approx(
        [h.fused_score for h in one.hits], abs=f32(256)
    )


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (EngineQuery(), "EMPTY_QUERY"),
        (EngineQuery(negative_ids=("red-noise-0",)), "EMPTY_QUERY"),
        (EngineQuery(Embedding({})), "EMPTY_QUERY"),
        (EngineQuery(Embedding({"resnet": np.ones((2, 96), np.float32)})), "BAD_EMBEDDING"),
        (EngineQuery(Embedding({"resnet": np.zeros(96, np.float32)})), "BAD_EMBEDDING"),
        (EngineQuery(Text("a dog")), "TEXT_UNSUPPORTED"),
        (EngineQuery(StoredImage("nobody")), "UNKNOWN_IMAGE_ID"),
        (EngineQuery(StoredImage("red-noise-0"), positive_ids=("nobody",)), "UNKNOWN_IMAGE_ID"),
        (EngineQuery(StoredImage("red-noise-0"), limit=0), "BAD_LIMIT"),
        (EngineQuery(StoredImage("red-noise-0"), limit=101), "BAD_LIMIT"),
        (EngineQuery(StoredImage("red-noise-0"), min_score=float("nan")), "BAD_MIN_SCORE"),
        (EngineQuery(StoredImage("red-noise-0"), min_score=1.5), "BAD_MIN_SCORE"),
        (EngineQuery(positive_ids=("red-noise-0",) * 257), "TOO_MANY_EXAMPLES"),
        (EngineQuery(None, ("red-noise-0", "twin"), ("twin",)), "CONTRADICTORY_EXAMPLES"),
        (EngineQuery(StoredImage("red-noise-0"), negative_ids=("nobody",)), "UNKNOWN_IMAGE_ID"),
    ],
)
def test_refusals(engine: Engine, query: EngineQuery, reason: str) -> None:
    assert refusal(engine, query).reason == reason


def test_the_crop_can_be_chosen_and_is_told_in_the_original_pixels(engine: Engine, tiny: Any) -> None:
    inner = Image.open(io.BytesIO(tiny.bytes_of("blue-stripes-1"))).resize((1600, 1280), Image.Resampling.NEAREST)
    framed = Image.new("RGB", (2000, 1600), (255, 255, 255))
    framed.paste(inner, (200, 100))
    file = io.BytesIO()
    framed.save(file, "JPEG", quality=95)
    box = engine.search(EngineQuery(ImageBytes(file.getvalue()))).crop
    assert box is not None
    for told, true in zip((box.left, box.top, box.right, box.bottom), (200, 100, 1800, 1380), strict=True):
        assert told == pytest.approx(true, abs=16)
    assert engine.search(EngineQuery(ImageBytes(file.getvalue()), crop=Crop.NONE)).crop == Box(0, 0, 2000, 1600)


def test_info_and_timings(engine: Engine, tiny: Any) -> None:
    info = engine.info
    assert (info.version, info.images, info.labels, info.ensemble) == (tiny.version, 65, 4, "tiny")
    assert [(m.name, m.embedding_dim, m.dim) for m in info.members] == [("resnet", 96, 16), ("convnext", 64, 12)]
    assert sum(m.weight for m in info.members) == pytest.approx(1)
    assert info.members[1].weight == pytest.approx(2 / 3)
    timings = engine.search(EngineQuery(ImageBytes(tiny.bytes_of("red-noise-0")))).timings
    assert min(timings.decode, timings.embed, timings.search, timings.fuse) > 0
    assert engine.search(EngineQuery(StoredImage("red-noise-0"))).timings.embed == 0


def test_approximate_indexes_are_not_asked_for_by_other_names(tiny: Any) -> None:
    with pytest.raises(CbirError, match="give exact"):
        Engine.load(tiny.index, index="lsh")


def test_an_exact_twin_is_found_by_its_digest(engine: Engine, tiny: Any) -> None:
    digest = hashlib.sha256(tiny.bytes_of("twin")).hexdigest()
    assert len(engine.gallery.rows_with_sha256(digest)) == 2
