"""Real photos and real ImageNet weights, where they are at hand: a folder ``shared`` beside the checkout.

A part of the benchmark (``python benchmarks/quality/retrieval.py``), small enough for every run: the recipe's steps
must come in the order theory says, and the content crop must not cost accuracy.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest

from cbir.core.artifacts import IndexStore
from cbir.core.ensemble import EnsembleSpec, InputSpec, MemberSpec
from cbir.core.images import Crop
from cbir.core.search import Retriever
from cbir.core.vote import SearchSpec
from cbir.indexer.build import FitSettings, RunSettings, build
from cbir.indexer.evaluate import evaluate, source_queries
from cbir.indexer.sources import open_sources

SHARED = Path(os.environ.get("CBIR_REFERENCE") or Path(__file__).resolve().parents[2] / "shared")
PHOTOS = SHARED / "data" / "caltech101-dev.zip"
WEIGHTS = SHARED / "models" / "mobilenetv2_100.safetensors"

pytestmark = pytest.mark.skipif(
    not (PHOTOS.is_file() and WEIGHTS.is_file()),
    reason=f"reference photos and weights are not at {SHARED} (set CBIR_REFERENCE to where they are)",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 classes: 16 gallery images and 4 queries each."""
    folder = tmp_path_factory.mktemp("photos")
    taken: Counter[tuple[str, str]] = Counter()
    with zipfile.ZipFile(PHOTOS) as archive:
        classes = sorted({PurePosixPath(n).parent.name for n in archive.namelist() if n.endswith(".jpg")})[::3][:15]
        for name in sorted(archive.namelist()):
            path = PurePosixPath(name)
            if path.parent.name not in classes or path.suffix != ".jpg":
                continue
            part = "queries" if int(re.findall(r"\d+", path.stem)[0]) % 5 == 0 else "gallery"
            if taken[part, path.parent.name] >= (4 if part == "queries" else 16):
                continue
            taken[part, path.parent.name] += 1
            target = folder / part / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
    return folder


def ensemble(metric: str, crop: Crop) -> EnsembleSpec:
    half = (0.5, 0.5, 0.5)
    member = MemberSpec(
        "mobilenetv2", "timm", "mobilenetv2_100", str(WEIGHTS), {"pad_type": "same"},
        InputSpec(224, half, half, "bicubic"), 64, metric,
    )  # fmt: skip
    return EnsembleSpec("reference", (member,), crop)


def figure(photos: Path, out: Path, metric: str, crop: Crop = Crop.NONE, label_share: float = 0.0) -> float:
    settings = RunSettings(device="cpu")
    fit = FitSettings(label_share=label_share)
    build(open_sources([str(photos / "gallery")]), out, ensemble(metric, crop), settings, fit)
    version = IndexStore(out).open()
    retriever = Retriever.load(version, "cpu")
    queries = source_queries(version, retriever, open_sources([str(photos / "queries")]), out / "cache", settings)
    return evaluate(out, version, retriever, queries, "").ensemble.map_at_10


def test_each_step_of_the_recipe_pays(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    cosine, pca, glrt = (figure(photos, out, metric) for metric in ("cosine", "pca", "glrt"))
    voted = figure(photos, out, "glrt", label_share=1.0)
    assert cosine > 0.75
    assert pca > cosine - 0.01
    assert glrt > pca + 0.01
    assert voted >= glrt
    # Approximate and exact indexes agree on real vectors too.
    exact = Retriever.load(IndexStore(out).open(), "cpu")
    build(open_sources([str(photos / "gallery")]), out, ensemble("glrt", Crop.NONE), RunSettings(device="cpu"),
          FitSettings(label_share=1.0, index="faiss:Flat"))  # fmt: skip
    flat = Retriever.load(IndexStore(out).open(), "cpu")
    rows = list(range(0, 200, 10))
    pairs = zip(
        exact.search(exact.vectors_of(rows), [SearchSpec()] * 20),
        flat.search(flat.vectors_of(rows), [SearchSpec()] * 20),
        strict=True,
    )
    assert all(a.rows.tolist() == b.rows.tolist() for a, b in pairs)


def test_the_content_crop_costs_nothing(photos: Path, tmp_path: Path) -> None:
    plain = figure(photos, tmp_path / "plain", "glrt")
    cropped = figure(photos, tmp_path / "cropped", "glrt", Crop.CONTENT)
    assert cropped > plain - 0.01
