"""The whole way, from files to answers: exact, FAISS and Annoy indexes give the same hits through ``Search``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from images import encode, pattern
from precision import f32
from tiny_members import RESNET, VIT

from cbir.client._async_client import AsyncClient
from cbir.core.ensemble import load_ensemble
from cbir.indexer.build import FitSettings, RunSettings, build
from cbir.indexer.sources import open_sources
from cbir.server.deployment import EngineConfig
from cbir.server.transport import Server


async def test_exact_faiss_and_annoy_agree_through_search(tmp_path: Path) -> None:
    for kind in range(4):
        (tmp_path / "pictures" / str(kind)).mkdir(parents=True)
        for i in range(40):
            pattern(kind, i).save(tmp_path / "pictures" / str(kind) / f"{i}.png")
    ensemble = tmp_path / "pair.toml"
    ensemble.write_text(RESNET + VIT)
    queries = [encode(pattern(kind, 100 + i), "PNG") for kind in range(4) for i in range(5)]
    answers: dict[str, list[list[str]]] = {}
    kinds = ["exact", "faiss:Flat"] + ["annoy:20"] * (importlib.util.find_spec("annoy") is not None)
    for index in kinds:
        settings = RunSettings(device="cpu", runtime="torch")
        sources = open_sources([str(tmp_path / "pictures")])
        build(sources, tmp_path / "index", load_ensemble(ensemble), settings, FitSettings(index=index))
        config = EngineConfig(tmp_path / "index", device="cpu", runtime="torch")
        async with Server(config, host="127.0.0.1", port=0) as server, AsyncClient(server.address) as client:
            assert (await client.index_info()).index == index
            results = [await client.search(query) for query in queries]
        answers[index] = [[hit.image_id for hit in result.hits] for result in results]
        for hit in (hit for result in results for hit in result.hits):
            total = sum(vote.contribution for vote in hit.votes) + hit.label_contribution
            assert total == pytest.approx(hit.fused_score, abs=f32(256))
    assert answers["faiss:Flat"] == answers["exact"]
    if "annoy:20" in answers:
        pairs = zip(answers["exact"], answers["annoy:20"], strict=True)
        assert np.mean([len({*a} & {*b}) / 10 for a, b in pairs]) >= 0.95
