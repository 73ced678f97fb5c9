"""Queries in words, and what class names say of images: the engine, and a real server on loopback."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tiny_clip
from precision import f16, f32

from cbir.client._async_client import AsyncClient
from cbir.client._errors import InvalidQuery
from cbir.core.artifacts import IndexStore
from cbir.core.ensemble import load_ensemble, load_text_embedder
from cbir.core.errors import CbirError, EnsembleError
from cbir.core.images import Crop
from cbir.core.vote import Fusion, SearchSpec
from cbir.indexer.build import RunSettings, build
from cbir.indexer.sources import open_sources
from cbir.server.deployment import EngineConfig
from cbir.server.engine import Embedding, Engine, EngineQuery, EngineResult, Filter, ImageBytes, StoredImage, Text
from cbir.v1 import search_pb2 as pb

TEXTS = ("a red car", "two dogs on a beach", "an old clock tower at night")


@dataclass(frozen=True)
class Worded:
    """An index whose members ``clip`` (weight 1) and ``wide`` (2) understand words, ``resnet`` (3) does not."""

    index: Path
    ensemble: Path
    pictures: Path
    engine: Engine

    def brute_force(self, text: str) -> tuple[list[str], np.ndarray]:
        """The ids of all images, best first, and their scores, in plain NumPy from the files of the index."""
        version = IndexStore(self.index).open()
        fused = np.zeros(len(version.gallery), np.float32)
        for member, weight in zip(load_ensemble(self.ensemble).members, (1 / 3, None, 2 / 3), strict=True):
            if weight is not None:
                joint = np.load(self.index / "versions" / version.name / "members" / member.name / "joint.npy")
                fused += weight * (joint.astype(np.float32) @ load_text_embedder(member, "cpu").embed_text([text])[0])
        order = np.argsort(-fused, kind="stable")
        return [version.gallery.ids[row] for row in order], fused[order]


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory, tiny: Any) -> Worded:
    folder = tmp_path_factory.mktemp("worded")
    tiny_clip.register()
    (folder / "worded.toml").write_text(tiny_clip.ENSEMBLE)
    pictures = folder / "pictures"
    for path in sorted(tiny.pictures.glob("*-*.png")):
        target = pictures / path.name.partition("-")[0] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    build(
        open_sources([str(pictures)]), folder / "index", load_ensemble(folder / "worded.toml"),
        RunSettings(device="cpu", runtime="torch"),
    )  # fmt: skip
    tiny_clip.claim_accuracy(folder / "index", 1.0)
    engine = Engine.load(folder / "index", device="cpu", runtime="torch")
    return Worded(folder / "index", folder / "worded.toml", pictures, engine)


def ids(result: EngineResult) -> list[str]:
    return [hit.image.id for hit in result.hits]


def refusal(engine: Engine, query: EngineQuery) -> CbirError:
    with pytest.raises(CbirError) as caught:
        engine.search(query)
    assert "\n" not in str(caught.value)
    return caught.value


def test_hits_are_those_of_the_words(worded: Worded) -> None:
    answers = [worded.engine.search(EngineQuery(Text(text), limit=64)) for text in TEXTS]
    for text, answer in zip(TEXTS, answers, strict=True):
        expected, scores = worded.brute_force(text)
        assert ids(answer) == expected
        np.testing.assert_allclose([hit.fused_score for hit in answer.hits], scores, atol=f32(256))
        assert [hit.score for hit in answer.hits] == pytest.approx(np.clip(scores, 0, 1).tolist(), abs=f32(256))
        assert answer.crop is None
        assert answer.timings.embed > 0
    assert len({tuple(ids(answer)) for answer in answers}) == 3, "every text has hits of its own"


def test_votes_say_who_understood(worded: Worded) -> None:
    for fusion in Fusion:
        for hit in worded.engine.search(EngineQuery(Text("a red car"), fusion=fusion)).hits:
            clip, resnet, wide = hit.votes
            assert (resnet.member, resnet.rank, resnet.similarity, resnet.contribution) == ("resnet", 0, 0, 0)
            assert clip.contribution + wide.contribution == pytest.approx(hit.fused_score, abs=f32(32))
            assert hit.label_contribution == 0
            if fusion is Fusion.WEIGHTED_VOTE:
                assert wide.contribution == pytest.approx(2 / 3 * wide.similarity, abs=f32(32))


def test_options_hold_for_words_too(worded: Worded) -> None:
    text = EngineQuery(Text("a red car"), limit=64)
    everything, scores = worded.brute_force("a red car")
    assert ids(worded.engine.search(replace(text, limit=3, exclude_query=True, crop=Crop.NONE))) == everything[:3]
    blue = worded.engine.search(replace(text, filter=Filter(labels=("blue",))))
    assert ids(blue) == [name for name in everything if name.startswith("blue/")]
    positive = worded.engine.search(replace(text, min_score=0.01))
    assert len(positive.hits) == (scores >= 0.01).sum()
    # The weights of members that do not understand are no matter.
    one = worded.engine.search(replace(text, weights={"clip": 1.0, "resnet": 9.0}))
    assert ids(one) != everything
    assert all(hit.votes[0].contribution == pytest.approx(hit.votes[0].similarity, abs=f32(32)) for hit in one.hits)


def test_labels_of_words_are_a_softmax_over_class_names(worded: Worded) -> None:
    version = IndexStore(worded.index).open()
    expected = np.zeros(4)
    for member, weight in (("clip", 1 / 3), ("wide", 2 / 3)):
        found = version.classes(member)
        assert found is not None
        spec = next(m for m in load_ensemble(worded.ensemble).members if m.name == member)
        odds = np.exp(found[1] * (found[0] @ load_text_embedder(spec, "cpu").embed_text(["a red car"])[0]))
        expected += weight * odds / odds.sum()
    labels = dict(worded.engine.search(EngineQuery(Text("a red car"))).labels)
    assert labels == pytest.approx(dict(zip(version.gallery.labels, expected, strict=True)), abs=f32(2048))


def test_a_batch_mixes_words_and_images(worded: Worded) -> None:
    data = (worded.pictures / "red/red-rings-1.png").read_bytes()
    queries = [
        EngineQuery(Text(TEXTS[0])), EngineQuery(ImageBytes(data)), EngineQuery(Text(TEXTS[1])),
        EngineQuery(StoredImage("red/red-rings-1.png")), EngineQuery(Text(TEXTS[2]), weights={"resnet": 1.0}),
    ]  # fmt: skip
    answers = worded.engine.answer([worded.engine.prepare(query) for query in queries])
    for place, text in ((0, TEXTS[0]), (2, TEXTS[1])):
        assert isinstance(answers[place], EngineResult)
        assert ids(answers[place]) == worded.brute_force(text)[0][:10]
    for place in (1, 3):
        assert isinstance(answers[place], EngineResult)
        assert ids(answers[place])[0] == "red/red-rings-1.png"
    assert isinstance(answers[4], CbirError)
    assert answers[4].reason == "BAD_WEIGHT"


@pytest.mark.parametrize(
    ("query", "reason", "says"),
    [
        (EngineQuery(Text("")), "EMPTY_TEXT", "empty"),
        (EngineQuery(Text(" \n\t ")), "EMPTY_TEXT", "empty"),
        (EngineQuery(Text("x" * 1001)), "TEXT_TOO_LONG", "1,001 characters; at most 1,000"),
        (EngineQuery(Text("a dog"), positive_ids=("red/red-rings-1.png",)), "TEXT_WITH_EXAMPLES", "cannot be combined"),
        (EngineQuery(Text("a dog"), negative_ids=("red/red-rings-1.png",)), "TEXT_WITH_EXAMPLES", "cannot be combined"),
        (EngineQuery(Text("a dog"), limit=101), "BAD_LIMIT", "101"),
        (EngineQuery(Text("a dog"), weights={"vgg": 1.0}), "UNKNOWN_MEMBER", "vgg"),
    ],
)
def test_refusals(worded: Worded, query: EngineQuery, reason: str, says: str) -> None:
    error = refusal(worded.engine, query)
    assert error.reason == reason
    assert says in str(error)


def test_a_long_text_is_read_as_far_as_the_model_can(worded: Worded) -> None:
    assert worded.engine.search(EngineQuery(Text("word " * 200))).hits


def test_no_tower_no_words(worded: Worded, engine: Engine) -> None:
    # An ensemble without such members, and a server that was told to load none.
    mute = EngineConfig(worded.index, device="cpu", runtime="torch", text=False).load()
    for one in (engine, mute):
        assert not any(member.text for member in one.info.members)
        error = refusal(one, EngineQuery(Text("a dog")))
        assert error.reason == "TEXT_UNSUPPORTED"
        assert "open_clip" in str(error)
    assert [member.text for member in worded.engine.info.members] == [True, False, True]


def test_a_tower_that_cannot_be_loaded_leaves_images_alone(
    worded: Worded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse_wide(member: Any, device: str) -> Any:
        if member.name == "wide":
            raise EnsembleError("its tokenizer is far away", reason="WEIGHTS_UNREACHABLE")
        return load_text_embedder(member, device)

    monkeypatch.setattr("cbir.server.engine.text_search.load_text_embedder", refuse_wide)
    with caplog.at_level(logging.WARNING):
        engine = Engine.load(worded.index, device="cpu", runtime="torch")
    assert "far away" in caplog.text
    assert [member.text for member in engine.info.members] == [True, False, False]
    by_clip = worded.engine.search(EngineQuery(Text("a dog"), weights={"clip": 1.0}))
    assert ids(engine.search(EngineQuery(Text("a dog")))) == ids(by_clip)
    assert engine.search(EngineQuery(StoredImage("red/red-rings-1.png"))).hits


# What the names of the classes say about images.


@pytest.fixture
def priors(worded: Worded, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[np.ndarray | None]]:
    """Ask the engine and see the label priors that the retriever was given."""

    def ask(*queries: EngineQuery) -> list[np.ndarray | None]:
        seen: list[SearchSpec] = []
        search = worded.engine._searcher.search

        def watch(vectors: np.ndarray, specs: list[SearchSpec]) -> Any:
            seen.extend(specs)
            return search(vectors, specs)

        with monkeypatch.context() as patch:
            patch.setattr(worded.engine._searcher, "search", watch)
            answers = worded.engine.answer([worded.engine.prepare(query) for query in queries])
        assert not any(isinstance(answer, CbirError) for answer in answers)
        return [spec.label_prior for spec in seen]

    return ask


def hand_prior(worded: Worded, row: int, weights: tuple[float, float] = (1 / 3, 2 / 3)) -> np.ndarray:
    version = IndexStore(worded.index).open()
    prior = np.zeros(4)
    for member, weight in zip(("clip", "wide"), weights, strict=True):
        found = version.classes(member)
        assert found is not None
        logits = found[1] * (found[0] @ version.joint(member)[row].astype(np.float32))
        odds = np.exp(logits - logits.max())
        prior += weight * odds / odds.sum()
    return prior


def test_image_id_and_embedding_get_the_prior_of_the_class_names(
    worded: Worded, priors: Callable[..., list[np.ndarray | None]]
) -> None:
    version = IndexStore(worded.index).open()
    name = "blue/blue-checks-2.png"
    row = version.gallery.row(name)
    data = (worded.pictures / name).read_bytes()
    vectors = {member: version.joint(member)[row].astype(np.float32) for member in ("clip", "wide")}
    found = priors(
        EngineQuery(ImageBytes(data)), EngineQuery(StoredImage(name)), EngineQuery(Embedding(vectors)),
        EngineQuery(positive_ids=(name,)),
    )  # fmt: skip
    expected = hand_prior(worded, row)
    assert len(found) == 4
    for prior in found:
        assert prior is not None
        np.testing.assert_allclose(prior, expected, atol=f16(10))
    other = priors(EngineQuery(StoredImage("red/red-noise-0.png")))[-1]
    assert other is not None
    assert abs(other - expected).max() > 1e-3, "another image has another prior"


def test_the_prior_follows_weights_and_examples(worded: Worded, priors: Callable[..., list[np.ndarray | None]]) -> None:
    gallery = worded.engine.gallery
    name, other = "blue/blue-checks-2.png", "red/red-noise-0.png"
    query = EngineQuery(StoredImage(name))
    by_clip, by_resnet, moved = priors(
        replace(query, weights={"clip": 0.5, "resnet": 2.0}),
        replace(query, weights={"resnet": 1.0}),
        replace(query, weights={"clip": 1.0}, positive_ids=(other,)),
    )[:3]
    assert by_clip is not None
    np.testing.assert_allclose(by_clip, hand_prior(worded, gallery.row(name), (1, 0)), atol=f32(2048))
    assert by_resnet is None
    assert moved is not None
    version = IndexStore(worded.index).open()
    one, two = (version.joint("clip")[gallery.row(i)].astype(np.float32) for i in (name, other))
    point = one / np.linalg.norm(one) + two / np.linalg.norm(two)
    found = version.classes("clip")
    assert found is not None
    odds = np.exp(found[1] * (found[0] @ (point / np.linalg.norm(point))))
    np.testing.assert_allclose(moved, odds / odds.sum(), atol=f32(2048))


def test_class_names_have_their_share_in_the_labels(worded: Worded) -> None:
    # Heads and neighbours share the rest as they do without class names.
    query = EngineQuery(StoredImage("blue/blue-checks-2.png"))
    labels = dict(worded.engine.search(query).labels)
    mute = Engine.load(worded.index, device="cpu", runtime="torch")
    mute._answer._text_search = None
    without = dict(mute.search(query).labels)
    prior = hand_prior(worded, worded.engine.gallery.row("blue/blue-checks-2.png"))
    share = worded.engine._searcher._vote.text_share
    assert 0 < share < 1
    for label, name in zip(worded.engine.gallery.labels, prior, strict=True):
        expected = share * name + (1 - share) * without.get(label, 0.0)
        assert labels.get(label, 0.0) == pytest.approx(expected, abs=0.01)


def test_names_that_mean_nothing_have_no_share(worded: Worded, tmp_path: Path) -> None:
    query = EngineQuery(StoredImage("blue/blue-checks-2.png"))
    mute = Engine.load(worded.index, device="cpu", runtime="torch")
    mute._answer._text_search = None
    without = mute.search(query)
    index = tmp_path / "index"
    shutil.copytree(worded.index, index)
    gaps = []
    # A fourth of the images are blue, and the like: such an accuracy is chance.
    for accuracy in (0.25, 0.7, 1.0):
        tiny_clip.claim_accuracy(index, accuracy)
        told = Engine.load(index, device="cpu", runtime="torch").search(query)
        gaps.append(max(abs(p - dict(without.labels).get(name, 0.0)) for name, p in told.labels))
        if accuracy == 0.25:
            assert told.labels == without.labels
    assert gaps[0] == 0
    assert 0 < gaps[1] == pytest.approx(0.6 * gaps[2], rel=0.05), "trust is (0.7 - 0.25) / 0.75"


def test_embeddings_of_members_without_words_have_no_prior(
    worded: Worded, priors: Callable[..., list[np.ndarray | None]]
) -> None:
    assert priors(EngineQuery(Embedding({"resnet": np.ones(96, np.float32)}))) == [None]


# Over the wire.


def by_text(text: str, **options: Any) -> pb.SearchRequest:
    return pb.SearchRequest(query=pb.Query(text=text), options=pb.SearchOptions(**options))


async def test_a_server_answers_words(worded: Worded, serve: Any) -> None:
    async with serve(engine=worded.engine) as running:
        for text in TEXTS:
            response = await running.search.Search(by_text(text, limit=7))
            expected, scores = worded.brute_force(text)
            assert [hit.image_id for hit in response.hits] == expected[:7]
            assert [hit.score for hit in response.hits] == pytest.approx(scores[:7].clip(0, 1).tolist(), abs=f32(256))
            assert not response.HasField("crop")
            assert len(response.labels) == 4
        info = await running.search.GetIndexInfo(pb.GetIndexInfoRequest())
        assert [member.text for member in info.members] == [True, False, True]


async def test_streams_and_the_client_answer_words(worded: Worded, serve: Any) -> None:
    async with serve(engine=worded.engine) as running, AsyncClient(running.server.address) as client:
        result = await client.search(text=TEXTS[0], limit=5)
        assert [hit.image_id for hit in result.hits] == worded.brute_force(TEXTS[0])[0][:5]
        from cbir.client._queries import Text as Words

        found = {key: answer async for key, answer in client.search_stream((t, Words(t)) for t in TEXTS)}
        for text in TEXTS:
            assert [hit.image_id for hit in found[text].hits] == worded.brute_force(text)[0][:10]
        with pytest.raises(InvalidQuery) as caught:
            await client.search(text=" ")
        assert caught.value.reason == "EMPTY_TEXT"


async def test_refusals_name_the_field(worded: Worded, serve: Any, failure: Any) -> None:
    async with serve(engine=worded.engine) as running:
        for text, reason in (("", "EMPTY_TEXT"), ("x" * 2000, "TEXT_TOO_LONG")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.search.Search(by_text(text))
            taken = failure(caught.value)
            assert (taken.code, taken.reason) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], reason)
            assert taken.field == "query.text"
