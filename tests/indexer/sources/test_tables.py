"""Tables as pandas, Spark and spreadsheets write them: what names and labels an image is text, the rest is bounded."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from cbir.core.errors import SourceError
from cbir.indexer.sources import SourceImage, Sources, open_sources
from cbir.indexer.sources.metadata_limit import MAX_METADATA_BYTES

JPEG = b"\xff\xd8\xff\xe0 and so on, which is no text \xff\xd9"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(JPEG)
    return tmp_path


def scanned(path: Path) -> tuple[Sources, list[SourceImage]]:
    sources = open_sources([str(path)])
    return sources, sources.scan()


def csv_of(folder: Path, text: str, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# CSV


@pytest.mark.parametrize(
    "text",
    [
        ",path,label\n0,1.jpg,cat\n1,2.jpg,dog\n",
        "path,label,\n1.jpg,cat,\n2.jpg,dog,\n",
        ",path,,label,,\n,1.jpg,x,cat,,\n,2.jpg,,dog,y,\n",
        "Unnamed: 0,path,label,Unnamed: 3\n0,1.jpg,cat,\n1,2.jpg,dog,z\n",
        "path,label\n1.jpg,cat,,\n2.jpg,dog,,\n",
        "\n,,\npath,label\n\n1.jpg,cat\n,\n2.jpg,dog\n",
        ' "path" , label \n 1.jpg , cat \n2.jpg,dog\n',
    ],
)
def test_columns_without_a_name_are_ignored(folder: Path, text: str) -> None:
    if text.startswith(' "'):
        text = text.replace('"', "")
    for name, table in (("list.csv", text), ("list.tsv", text.replace(",", "\t"))):
        sources, images = scanned(csv_of(folder, table, name))
        assert [(image.id, image.label, image.metadata) for image in images] == [
            ("1.jpg", "cat", {}), ("2.jpg", "dog", {}),
        ]  # fmt: skip
        assert sources.problems == []


def test_cells_beyond_the_header_are_still_refused(folder: Path) -> None:
    with pytest.raises(SourceError, match="line 2 has more cells than the header"):
        scanned(csv_of(folder, "path,label\n1.jpg,cat,extra\n"))


def test_a_table_without_a_path_says_so(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"no column 'path' \(its columns: file, label\)"):
        scanned(csv_of(folder, ",file,label\n0,1.jpg,cat\n"))


@pytest.mark.parametrize(
    ("written", "label"),
    [
        ("0.0", "0"), ("0", "0"), ("-0.0", "0"), ("12.0", "12"), ("12.00", "12"), ("-3.0", "-3"), ("1.5", "1.5"),
        ("007", "007"), ("v1.0", "v1.0"), ("1.0.0", "1.0.0"), (".0", ".0"), ("9" * 40 + ".0", "9" * 40 + ".0"),
    ],
)  # fmt: skip
def test_a_whole_number_is_one_label_in_every_table(folder: Path, written: str, label: str) -> None:
    _, (image,) = scanned(csv_of(folder, f"path,label\n1.jpg,{written}\n"))
    assert image.label == label
    parquet.write_table(pa.table({"path": ["1.jpg"], "label": [written]}), folder / "list.parquet")
    assert scanned(folder / "list.parquet")[1][0].label == label
    with tarfile.open(folder / "x.tar", "w") as archive:
        for name, data in (("1.jpg", JPEG), ("1.cls", written.encode()), ("2.jpg", JPEG), ("2.json", b"")):
            data = json.dumps({"label": written}).encode() if name == "2.json" else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert [image.label for image in scanned(folder / "x.tar")[1]] == [label, label]


def test_numbers_of_any_type_are_the_same_label(folder: Path) -> None:
    for values in (
        pa.array([3], pa.int8()),
        pa.array([3.0], pa.float64()),
        pa.array(["3"]),
        pa.array([3.0], pa.float32()),
    ):
        parquet.write_table(pa.table({"path": ["1.jpg"], "label": values}), folder / "list.parquet")
        assert scanned(folder / "list.parquet")[1][0].label == "3"


# Parquet

KINDS: dict[str, Callable[[list[Any]], pa.Array]] = {
    "binary": lambda values: pa.array(values, pa.binary()),
    "large_binary": lambda values: pa.array(values, pa.large_binary()),
    "binary_view": lambda values: pa.array(values, pa.binary_view()),
    "dictionary of binary": lambda values: pa.array(values, pa.binary()).dictionary_encode(),
    "dictionary of large_binary": lambda values: pa.array(values, pa.large_binary()).dictionary_encode(),
}
TEXT_KINDS: dict[str, Callable[[list[Any]], pa.Array]] = {
    "string": lambda values: pa.array(values, pa.string()),
    "large_string": lambda values: pa.array(values, pa.large_string()),
    "string_view": lambda values: pa.array(values, pa.string_view()),
    "dictionary of string": lambda values: pa.array(values, pa.string()).dictionary_encode(),
}


def fixed(values: list[bytes]) -> pa.Array:
    size = max(len(value) for value in values)
    return pa.array([value.ljust(size, b"\0") for value in values], pa.binary(size))


@pytest.mark.parametrize("kind", [*KINDS, "fixed_size_binary"])
@pytest.mark.parametrize("schema", [True, False])
def test_bytes_are_no_metadata(folder: Path, kind: str, schema: bool) -> None:
    pictures = [JPEG + bytes(range(256)) * 280, JPEG]
    table = pa.table(
        {
            "path": ["1.jpg", "2.jpg"],
            "image": (KINDS.get(kind) or fixed)(pictures),
            "small": (KINDS.get(kind) or fixed)([b"\xff\xd8\xff\xe0", b"\x89PNG"]),
            "place": ["Rome", None],
        }
    )
    parquet.write_table(table, folder / "list.parquet", store_schema=schema)
    sources, images = scanned(folder / "list.parquet")
    assert [image.metadata for image in images] == [{"place": "Rome"}, {}]
    assert {problem.uri.rpartition(" ")[2]: problem.reason for problem in sources.problems} == {
        "image": "it is left out: it holds bytes that are no text",
        "small": "it is left out: it holds bytes that are no text",
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schema", [True, False])
def test_text_stored_as_bytes_is_text(folder: Path, kind: str, schema: bool) -> None:
    columns = {
        "path": [b"1.jpg", b"2.jpg"], "label": ["Käfer".encode(), None], "id": [b"one", b"two"],
        "place": ["Zürich".encode(), b"Bern"],
    }  # fmt: skip
    table = pa.table({name: KINDS[kind](values) for name, values in columns.items()})
    parquet.write_table(table, folder / "list.parquet", store_schema=schema)
    sources, images = scanned(folder / "list.parquet")
    assert [(image.id, image.label, image.metadata) for image in images] == [
        ("one", "Käfer", {"place": "Zürich"}),
        ("two", None, {"place": "Bern"}),
    ]
    assert sources.problems == []


def test_nested_columns_are_left_out_and_hide_no_others(folder: Path) -> None:
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": JPEG, "path": "x"}] * 2, pa.struct({"bytes": pa.binary(), "path": pa.string()})
            ),
            "path": pa.array([b"1.jpg", b"2.jpg"]),
            "tags": [["a"], []],
            "label": pa.array([b"cat", b"dog"]),
            "note": pa.array([b"one", b"two"]),
            "bytes": pa.array([JPEG, JPEG]),
        }
    )
    parquet.write_table(table, folder / "list.parquet")
    sources, images = scanned(folder / "list.parquet")
    assert [(image.label, image.metadata) for image in images] == [("cat", {"note": "one"}), ("dog", {"note": "two"})]
    assert {problem.uri.rpartition(" ")[2] for problem in sources.problems} == {"image", "tags", "bytes"}


def test_row_numbers_of_pandas_are_ignored(folder: Path) -> None:
    parquet.write_table(pa.table({"path": ["1.jpg"], "__index_level_0__": [0]}), folder / "list.parquet")
    assert scanned(folder / "list.parquet")[1][0].metadata == {}


words = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"]), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([*KINDS, *TEXT_KINDS]), st.sampled_from([*KINDS, *TEXT_KINDS]), st.sampled_from(list(KINDS)),
    st.lists(words, min_size=2, max_size=2), st.lists(words, min_size=2, max_size=2),
    st.lists(st.binary(max_size=30), min_size=2, max_size=2), st.booleans(),
)  # fmt: skip
def test_all_kinds_of_text_and_bytes(
    folder: Path, label_kind: str, note_kind: str, bytes_kind: str, labels: list[str], notes: list[str],
    blobs: list[bytes], schema: bool,
) -> None:  # fmt: skip
    def column(kind: str, values: list[str]) -> pa.Array:
        return TEXT_KINDS[kind](values) if kind in TEXT_KINDS else KINDS[kind]([value.encode() for value in values])

    table = pa.table(
        {
            "path": ["1.jpg", "2.jpg"],
            "label": column(label_kind, labels),
            "note": column(note_kind, notes),
            "blob": KINDS[bytes_kind]([blob + b"\xff" for blob in blobs]),
        }
    )
    parquet.write_table(table, folder / "list.parquet", store_schema=schema)
    _, images = scanned(folder / "list.parquet")
    from cbir.indexer.sources.image import tidy_label

    assert [image.label or "" for image in images] == [tidy_label(label) for label in labels]
    assert [image.metadata.get("note", "") for image in images] == [note.strip() for note in notes]
    assert all("blob" not in image.metadata for image in images)


# How much is kept


def test_metadata_has_a_limit_a_row_that_is_told(folder: Path) -> None:
    caption = "x" * (MAX_METADATA_BYTES - 30)
    table = f"path,place,caption,story\n1.jpg,Rome,{caption},{caption}further\n2.jpg,Bern,short,short\n"
    sources, (first, second) = scanned(csv_of(folder, table))
    assert first.metadata == {"place": "Rome", "caption": caption}
    assert second.metadata == {"place": "Bern", "caption": "short", "story": "short"}
    (problem,) = sources.problems
    assert problem.uri.endswith("1.jpg")
    assert problem.reason == "its metadata would be more than 16,384 bytes a row: the column 'story' is left out"


def test_the_limit_counts_bytes_and_names(folder: Path) -> None:
    rows = "".join(f"{name}.jpg,{'é' * (MAX_METADATA_BYTES // 2)}\n" for name in (1, 2))
    sources, images = scanned(csv_of(folder, "path,n\n" + rows))
    assert [image.metadata for image in images] == [{}, {}]
    assert "and those of 1 others" in sources.problems[0].reason
