"""What was measured is kept for the next start: by machine, and believed only where it makes sense."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_vectors import WEIGHTS, draw
from small_index import publish

import cbir.core.search.kernels.choice as choice
from cbir.core.artifacts import IndexStore
from cbir.core.search import Retriever, kernel_facts
from cbir.core.search.candidate_generation import CandidateGenerator
from cbir.core.search.kernels import kept_choices
from cbir.core.search.kernels.kept_choices import Choice, Kept, gallery_digest, keep, machine_key, read
from cbir.core.search.kernels.timing import Times
from cbir.core.search.matrices.gallery_matrix import load_matrix
from cbir.core.vector_index import SegmentedVectors

TIMES = Times({"product": 1e-7, "scan": 1e-9}, {"product": 5e-8, "scan": 1e-9}, (1e-7, 1e-7))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CBIR_CACHE", str(tmp_path))
    monkeypatch.setattr("cbir.core.search.candidate_generation.MIN_MEASURED", 1)
    forget(monkeypatch)
    return tmp_path / "search"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that has just started."""
    monkeypatch.setattr(kept_choices, "_measured", {})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts measurements."""
    counted: list[int] = []

    def measure(*given) -> Kept:
        counted.append(1)
        return Kept(TIMES, False, {})

    monkeypatch.setattr(choice, "measure", measure)
    return counted


@pytest.fixture(scope="module")
def parts() -> list[np.ndarray]:
    return draw("clustered", 2000)


def load(parts: list[np.ndarray]) -> str:
    return CandidateGenerator(load_matrix(parts, "cpu"), WEIGHTS).kernels.describe()


def test_the_next_start_measures_nothing(
    parts: list[np.ndarray], measured: list[int], folder: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    with caplog.at_level("INFO", logger="cbir.core.search"):
        first = load(parts)
        forget(monkeypatch)
        monkeypatch.setattr(choice, "_choose", None)
        assert load(parts) == first
    assert measured == [1]
    assert len(list(folder.iterdir())) == 1
    lines = [record.message for record in caplog.records]
    assert [line.split("; ")[-1].split(", in")[0] for line in lines] == ["measured", "known from earlier"]
    assert all("search of 2000 x 48 with 1 threads: one query by scan" in line for line in lines)


def test_another_gallery_of_the_shape_is_chosen_for_but_not_measured(
    parts: list[np.ndarray], measured: list[int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(parts)
    forget(monkeypatch)
    load(draw("random", 1900))
    (file,) = folder.iterdir()
    assert len(json.loads(file.read_text())["galleries"]) == 2
    assert measured == [1]


def test_rows_that_are_gathered_have_times_of_their_own(
    parts: list[np.ndarray], measured: list[int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = [part.astype(np.float16) for part in parts]
    gathered = [SegmentedVectors([half[:1990], half[1990:]], np.arange(len(half))) for half in halves]
    for _ in range(2):
        for vectors in (halves, gathered):
            matrix = load_matrix(vectors, "cpu", 0)
            CandidateGenerator(matrix, WEIGHTS)
        forget(monkeypatch)
    assert measured == [1, 1]
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("change", ["processor", "limit", "threads", "shape", "stored"])
def test_the_key_names_all_that_times_depend_on(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine_key(2000, (0, 24, 48), "float32", 2)
    assert before == machine_key(1500, [0, 24, 48], "float32", 2)
    if change == "processor":
        monkeypatch.setattr(kept_choices, "processor", lambda: {"cpu": "another", "features": "", "cores": 2})
    if change == "limit":
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    shape = (0, 24, 40) if change == "shape" else (0, 24, 48)
    stored, threads = "float16" if change == "stored" else "float32", 1 if change == "threads" else 2
    assert machine_key(2000, shape, stored, threads) != before


def broken(document: dict, how: str) -> bytes:
    gallery = next(iter(document["galleries"].values()))
    match how:
        case "not json":
            return b"\x00\xff{"
        case "cut short":
            return json.dumps(document).encode()[:-40]
        case "deep":
            return b"[" * 100_000
        case "long":
            return json.dumps(document).encode() + b" " * 2**18
        case "odd layout":
            document["block"] = 33
        case "true layout":
            document["block"] = True
        case "another key":
            document["key"]["cpu"] = "another"
        case "no times":
            document["times"] = None
        case "negative":
            document["times"]["one"]["product"] = -1.0
        case "not a number":
            document["times"]["batch"]["scan"] = float("nan")
        case "zero":
            document["times"]["rescored"] = [0, 0]
        case "listed in no time":
            document["times"]["listed"] = -1e-9
        case "listed for longer than scored":
            document["times"]["listed"] = 1.0
        case "huge":
            document["times"]["one"]["product"] = 10**400
        case "text":
            document["times"]["rescored"] = ["1", "2"]
        case "unknown kernel":
            gallery["one"] = "shell"
        case "no product":
            del document["times"]["one"]["product"], document["times"]["batch"]["product"]
        case "odd codes":
            gallery["components"] = 7
        case "huge depth":
            gallery["depth"] = 2**70
        case "a scan without codes":
            gallery["one"], gallery["components"] = "scan", 0
        case "more":
            gallery["extra"] = 1
        case "costs":
            gallery["costs"] = {"product": [1.0, float("inf")]}
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "how",
    [
        "not json", "cut short", "deep", "long", "another key", "no times", "negative", "not a number", "zero", "huge",
        "listed in no time", "listed for longer than scored", "odd layout", "true layout",
        "text", "unknown kernel", "no product", "odd codes", "huge depth", "a scan without codes", "more", "costs",
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_measured_again(
    how: str, parts: list[np.ndarray], measured: list[int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(parts)
    (file,) = folder.iterdir()
    good = file.read_bytes()
    file.write_bytes(broken(json.loads(good), how))
    forget(monkeypatch)
    assert load(parts) == expected
    assert measured == [1, 1]
    assert file.read_bytes() == good


def test_what_one_thread_cannot_search_in_time_is_chosen_for_all_threads(
    parts: list[np.ndarray], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.get_num_threads() == 1:
        pytest.skip("there is one core")
    longest: list[float] = []

    def measure(*given) -> Kept:
        longest.append(given[4])
        # 2,000 rows take two milliseconds at least.
        return Kept(Times({"product": 1e-6}, {"product": 1e-6}, (1e-7, 1e-7)), False, {})

    monkeypatch.setattr(choice, "measure", measure)
    for _ in range(2):
        generator = CandidateGenerator(load_matrix(parts, "cpu"), WEIGHTS)
        assert not generator.kernels.alone
        # The next start knows both the times of one thread and the choice for all.
        assert longest == [0.001, np.inf]
        forget(monkeypatch)
    stops = load_matrix(parts, "cpu").stops
    one, several = (read(choice.key_of(2000, stops, "float32", n)) for n in (1, torch.get_num_threads()))
    assert one is not None
    assert several is not None
    assert (len(one.galleries), len(several.galleries)) == (0, 1)


def test_a_depth_beyond_the_gallery_is_chosen_anew(
    parts: list[np.ndarray], measured: list[int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(parts)
    (file,) = folder.iterdir()
    document = json.loads(file.read_text())
    for gallery in document["galleries"].values():
        gallery["depth"] = 100_000
    file.write_text(json.dumps(document))
    forget(monkeypatch)
    assert load(parts) == expected
    assert measured == [1]


def test_rows_that_are_not_kept_in_float16_are_not_searched_so(
    parts: list[np.ndarray], measured: list[int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(parts)
    (file,) = folder.iterdir()
    document = json.loads(file.read_text())
    for gallery in document["galleries"].values():
        gallery |= {"one": "f16", "batch": "f16", "components": 0}
    file.write_text(json.dumps(document))
    forget(monkeypatch)
    assert load(parts) == expected


def test_measurements_beside_other_work_are_not_kept(
    parts: list[np.ndarray], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "measure", lambda *given: Kept(TIMES, False, {}, False))
    load(parts)
    assert not folder.exists()
    # This process does not measure again, though, and what it chooses for another gallery does not last either.
    monkeypatch.setattr(choice, "measure", None)
    load(parts)
    load(draw("random", 1900))
    assert not folder.exists()


def test_a_cache_that_cannot_be_written_is_no_error(
    parts: list[np.ndarray], measured: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CBIR_CACHE", str(tmp_path / "file"))
    load(parts)
    forget(monkeypatch)
    load(parts)
    assert measured == [1, 1]


def test_the_oldest_galleries_are_forgotten() -> None:
    key = machine_key(2000, (0, 48), "float32", 2)
    kept = Kept(TIMES, False, {})
    for number in range(40):
        keep(key, kept, f"{number}", Choice("product", "product", 0, 256, {"product": (1.0, 0.5)}))
        again = read(key)
        assert again is not None
        kept = again
    assert list(kept.galleries) == [f"{number}" for number in range(8, 40)]
    assert kept.times == TIMES


def test_a_digest_is_of_rows_weights_and_size(parts: list[np.ndarray]) -> None:
    matrix = load_matrix(parts, "cpu")
    digest = gallery_digest(matrix.vectors_of, 2000, WEIGHTS)
    assert digest == gallery_digest(load_matrix(parts, "cpu", 0).vectors_of, 2000, WEIGHTS)
    assert digest != gallery_digest(matrix.vectors_of, 1999, WEIGHTS)
    assert digest != gallery_digest(matrix.vectors_of, 2000, WEIGHTS[::-1].copy())
    assert digest != gallery_digest(lambda rows: matrix.vectors_of(rows[::-1]), 2000, WEIGHTS)


def test_what_is_known_of_a_version_is_told_without_measuring(
    tmp_path: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = publish(IndexStore(tmp_path / "index"), images=1500, dim=16)
    assert kernel_facts(version) == {"state": "product", "candidates": ["product"]}
    monkeypatch.setattr("cbir.core.search.kernels.facts.MIN_MEASURED", 1)
    unknown = {"state": "unknown", "candidates": ["product", "scan", "bf16"]}
    assert kernel_facts(version) == unknown
    # To say which kernel to use measures nothing and chooses nothing.
    Retriever.load(version, "cpu", kernel="bf16")
    assert kernel_facts(version) == unknown
    assert not measured
    Retriever.load(version, "cpu")
    forget(monkeypatch)
    facts = kernel_facts(version)
    assert measured == [1]
    assert (facts["state"], facts["batch_size"]) == ("measured", 32)
    assert {facts["one"], facts["batch"]} <= set(facts["milliseconds"]) <= {"product", "scan"}
    assert facts["milliseconds"]["product"]["one"] > 0
