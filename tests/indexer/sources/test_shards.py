"""Shards and tables of images: WebDataset, img2dataset, Parquet with bytes, Hugging Face's files; ids that stay."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import encode, pattern

from cbir.core.errors import ImageError, SourceError
from cbir.core.files import read_uri
from cbir.indexer.sources import SourceImage, Sources, open_sources


def picture(number: int) -> bytes:
    return encode(pattern(number % 4, number), "PNG")


def tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def shard(path: Path, numbers: range) -> Path:
    """A shard as img2dataset writes it."""
    files: dict[str, bytes] = {}
    for number in numbers:
        key = f"{number:09}"
        files |= {
            f"{key}.png": picture(number), f"{key}.txt": f"picture {number}".encode(),
            f"{key}.json": json.dumps({"caption": f"picture {number}", "width": 48, "key": key}).encode(),
        }  # fmt: skip
    return tar(path, files)


def found(*names: str) -> tuple[Sources, dict[str, SourceImage]]:
    sources = open_sources(names)
    return sources, {image.id: image for image in sources.scan()}


def test_a_folder_of_img2dataset(tmp_path: Path) -> None:
    folder = tmp_path / "laion"
    for number in range(3):
        shard(folder / f"{number:05}.tar", range(10 * number, 10 * number + 4))
        pq.write_table(pa.table({"url": ["x"], "key": ["1"]}), folder / f"{number:05}.parquet")
        (folder / f"{number:05}_stats.json").write_text("{}")
    sources, images = found(str(folder))
    assert len(images) == 12
    one = images["00002/000000021.png"]
    assert sources.read(one) == picture(21)
    assert one.metadata == {"caption": "picture 21", "width": "48", "key": "000000021", "text": "picture 21"}
    told = sources.read_parts()
    assert [(part["uri"][-9:], part["images"]) for part in told[0]["parts"]] == [
        (f"{number:05}.tar", 4) for number in range(3)
    ]
    # A shard more, and one less: the ids of the others stay as they are.
    shard(folder / "00003.tar", range(30, 34))
    (folder / "00000.tar").unlink()
    _, later = found(str(folder))
    assert {name for name in later if name in images} == {name for name in images if not name.startswith("00000/")}


@pytest.mark.parametrize("name", ["data-{000..002}.tar", "data-*.tar"])
def test_shards_by_braces_and_stars(tmp_path: Path, name: str) -> None:
    for number in range(3):
        tar(tmp_path / f"data-{number:03}.tar", {"a.png": picture(number), "a.cls": str(number).encode()})
    _, images = found(str(tmp_path / name))
    assert {key: image.label for key, image in images.items()} == {
        f"data-{number:03}/a.png": str(number) for number in range(3)
    }
    with pytest.raises(SourceError, match="no shards, or for more than a million"):
        open_sources([str(tmp_path / "data-{0..99999999}.tar")])


def table(labels: list[int], **more: list[Any]) -> pa.Table:
    cells = [{"bytes": picture(number), "path": None} for number in range(len(labels))]
    features = {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}}
    rows = pa.table({"image": pa.array(cells), "label": labels, **more})
    return rows.replace_schema_metadata({b"huggingface": json.dumps({"info": features}).encode()})


def test_parquet_with_bytes_and_names_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(table([0, 1, 1, 7], year=[1999, None, 2001, 2002]), path, row_group_size=3)
    sources, images = found(str(path))
    assert [(image.id, image.label, dict(image.metadata)) for image in images.values()] == [
        ("000000000", "cat", {"year": "1999"}), ("000000001", "dog", {}), ("000000002", "dog", {"year": "2001"}),
        ("000000003", "7", {"year": "2002"}),
    ]  # fmt: skip
    assert [sources.read(image) for image in images.values()] == [picture(number) for number in range(4)]
    for row in ("4", "-1", "1e3", "9" * 30, "../x"):
        with pytest.raises(ImageError, match="row"):
            read_uri(f"{path}!/{row}")
    with pytest.raises(ImageError, match="more than the limit"):
        read_uri(f"{path}!/0", max_bytes=100)


def test_a_column_names_the_rows(tmp_path: Path) -> None:
    rows = {"jpg": [picture(0), picture(1)], "key": ["x1", "x2"], "caption": ["one", "two"]}
    pq.write_table(pa.table(rows), tmp_path / "part.parquet")
    _, images = found(str(tmp_path / "part.parquet"))
    assert {key: dict(image.metadata) for key, image in images.items()} == {
        "x1": {"caption": "one"}, "x2": {"caption": "two"}
    }  # fmt: skip
    pq.write_table(pa.table({**rows, "key": ["x1", "x1"]}), tmp_path / "part.parquet")
    with pytest.raises(SourceError, match="two images have the id 'x1'"):
        found(str(tmp_path / "part.parquet"))


def test_a_data_set_of_hugging_face_on_disk(tmp_path: Path) -> None:
    rows = table([0, 1, 0])
    for split in ("train", "test"):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
        (folder / "dataset_info.json").write_text("{}")
        for number in range(2):
            with (
                pa.OSFile(str(folder / f"data-{number:05}-of-00002.arrow"), "wb") as file,
                pa.ipc.new_stream(file, rows.schema) as writer,
            ):
                writer.write_table(rows, max_chunksize=2)
    (tmp_path / "set" / "dataset_dict.json").write_text("{}")
    sources, images = found(str(tmp_path / "set"))
    assert len(images) == 12
    one = images["train/data-00001-of-00002/000000001"]
    assert (one.label, sources.read(one)) == ("dog", picture(1))
    _, part = found(str(tmp_path / "set" / "test"))
    assert len(part) == 6


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\0" * 4096, b"ARROW1\0\0" + b"\xff" * 64])
@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_a_damaged_table_is_told(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        found(str(path))
    assert caught.value.reason == "SOURCE_FORMAT"
    assert str(path) in str(caught.value)


def test_shards_tell_without_a_scan_that_nothing_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        shard(tmp_path / "w" / f"{number:05}.tar", range(4 * number, 4 * number + 4))
    sources, _ = found(str(tmp_path / "w"))
    told = json.loads(json.dumps(sources.read_parts()))
    again = open_sources([str(tmp_path / "w")])
    with monkeypatch.context() as patch:
        patch.setattr("cbir.indexer.sources.shards.ShardSource.scan", None)
        assert again.same_as(told)
        assert not open_sources([str(tmp_path / "w")], exclude=["x*"]).same_as(told)
        for wrong in (None, [], [{}], [{"parts": 7}], "x"):
            assert not again.same_as(wrong)
    shard(tmp_path / "w" / "00001.tar", range(4, 9))
    assert not open_sources([str(tmp_path / "w")]).same_as(told)
