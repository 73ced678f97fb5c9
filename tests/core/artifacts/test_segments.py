"""Segments: rows are found at their places, and what are no places or segments is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from small_index import publish, reseal

from cbir.core.artifacts import IndexStore, Manifest, TableReader, segment_file
from cbir.core.artifacts.segments import check_places
from cbir.core.errors import ArtifactError


def test_names_of_files() -> None:
    assert segment_file("images.parquet", 0) == "images.parquet"
    assert segment_file("members/m/embeddings.npy", 2) == "members/m/embeddings-2.npy"


def test_places_are_refused_that_are_none() -> None:
    check_places(np.array([0, 5, 2, 6], np.int32), 4, (5, 2))
    for wrong in (
        np.array([0, 5, 2, 7], np.int32),  # outside
        np.array([0, -1, 2, 6], np.int32),
        np.array([2, 5, 0, 6], np.int32),  # does not rise in the first
        np.array([0, 5, 2, 5], np.int32),  # one place twice
        np.array([0, 5, 2], np.int32),
        np.array([0, 5, 2, 6], np.int64),
        np.array([[0, 5, 2, 6]], np.int32),
    ):
        with pytest.raises(ValueError, match="places"):
            check_places(wrong, 4, (5, 2))


def test_rows_are_read_from_all_segments_in_their_order() -> None:
    opened = []

    def table(number: int, *batches: list[str]) -> Any:
        def read() -> Any:
            opened.append(number)
            return (pa.record_batch({"id": names}) for names in batches)

        return read

    segments = [table(0, ["a", "c", "e"], ["g"]), table(1), table(2, ["b"], ["d", "f"])]
    places = np.array([0, 4, 1, 5, 3, 6], np.int32)
    reader = TableReader(segments, [4, 0, 3], places)
    assert [name for batch in reader.batches(6) for name in batch.column("id").to_pylist()] == list("abcdgf")
    assert opened == [0, 2]
    opened.clear()
    reader = TableReader(segments, [4, 0, 3], places)
    assert reader.take(np.array([1])).column("id").to_pylist() == ["b"]
    assert reader.take(np.array([3, 5])).column("id").to_pylist() == ["d", "f"]
    assert opened == [2], "the first is not read for rows of others"
    whole = TableReader([table(0, ["a", "c", "e"], ["g"])], [4], None)
    assert whole.take(np.array([1, 3])).column("id").to_pylist() == ["c", "g"]


@pytest.mark.parametrize(
    "segments",
    [[0], [2], [-1, 4], [True, 3], [3.0], ["3"], [2**31], [1] * 65, [[3]], [3, None]],
)
def test_segments_are_refused_that_are_none(tmp_path: Path, segments: list[Any]) -> None:
    store = IndexStore(tmp_path / "index")
    version = publish(store)
    manifest = json.loads((version.path / "manifest.json").read_text())
    fact = manifest["files"]["images.parquet"]
    names = ("images", "members/m/embeddings")
    more = {segment_file(f"{name}.npy", n): fact for name in names for n in range(70)} | {"places.npy": fact}
    more |= {segment_file("images.parquet", n): fact for n in range(70)}
    hostile = {**manifest, "format": 4, "segments": segments, "files": {**manifest["files"], **more}}
    with pytest.raises((ValueError, TypeError)):
        Manifest.from_json(hostile)
    assert Manifest.from_json({**hostile, "segments": [3]}).segments == (3,)


@pytest.mark.parametrize("change", [{"segments": [3]}, {"format": 4}, {"format": 4, "segments": [3]}])
def test_segments_need_their_format_and_their_places(tmp_path: Path, change: dict[str, Any]) -> None:
    store = IndexStore(tmp_path / "index")
    publish(store)
    reseal(store, lambda manifest: {**manifest, **change})
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        store.open()
