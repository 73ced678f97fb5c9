"""Every local SOURCE is scanned, labelled, addressed and read back; what cannot be read is said in one sentence."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from cbir.core.errors import ImageError, SourceError
from cbir.core.files import archive_members, read_uri, split_uri
from cbir.indexer.sources import SourceImage, open_sources

JPEG = b"\xff\xd8 not really, but nothing here decodes \xff\xd9"


def put(path: Path, data: bytes = JPEG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def scan(*names: Path | str) -> list[SourceImage]:
    return open_sources([str(name) for name in names]).scan()


def labels(images: list[SourceImage]) -> dict[str, str | None]:
    return {image.id: image.label for image in images}


# Folders


def test_folder_takes_the_first_sub_folder_as_label(tmp_path: Path) -> None:
    for name in ("cat/1.JPG", "cat/young/2.png", "dog/3.webp", "top.avif"):
        put(tmp_path / "pets" / name)
    images = scan(tmp_path / "pets")
    assert labels(images) == {"cat/1.JPG": "cat", "cat/young/2.png": "cat", "dog/3.webp": "dog", "top.avif": None}
    assert [image.id for image in images] == sorted(image.id for image in images)
    assert images[0].uri == str(tmp_path / "pets/cat/1.JPG")
    assert images[0].metadata == {}


def test_folder_with_one_sub_folder_keeps_it_in_the_id(tmp_path: Path) -> None:
    put(tmp_path / "cat/1.jpg")
    assert labels(scan(tmp_path)) == {"cat/1.jpg": "cat"}


def test_folder_ignores_hidden_files_and_other_kinds(tmp_path: Path) -> None:
    for name in ("a.jpg", ".hidden.jpg", ".trash/b.jpg", "notes.txt", "c.jpg.part", "movie.mp4"):
        put(tmp_path / name)
    assert [image.id for image in scan(tmp_path)] == ["a.jpg"]


def test_folder_survives_loops_of_links_and_keeps_real_names(tmp_path: Path) -> None:
    put(tmp_path / "z/1.jpg")
    (tmp_path / "a").symlink_to("z")
    (tmp_path / "z/back").symlink_to(tmp_path)
    (tmp_path / "z/self").symlink_to(".")
    assert [image.id for image in scan(tmp_path)] == ["z/1.jpg"]


def test_folder_follows_links_out_of_it(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/1.jpg")
    put(tmp_path / "elsewhere/2.jpg")
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets/cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pets/one.jpg").symlink_to(tmp_path / "elsewhere/1.jpg")
    assert labels(scan(tmp_path / "pets")) == {"cat/1.jpg": "cat", "cat/2.jpg": "cat", "one.jpg": None}


def test_folder_reports_what_it_passes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "locked/b.jpg")
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.jpg")).write_bytes(JPEG)
    real = os.scandir

    def scandir(path: str | os.PathLike[str]) -> object:
        if Path(path).name == "locked":  # root may read everything, so chmod would prove nothing
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    sources = open_sources([str(tmp_path)])
    assert [image.id for image in sources.scan()] == ["a.jpg"]
    reasons = {Path(problem.uri).name: problem.reason for problem in sources.problems}
    assert reasons == {
        "locked": "the folder cannot be read: Permission denied",
        "broken.jpg": "cannot be read: the link leads nowhere",
        "pipe.jpg": "is no regular file",
        "caf\\udce9.jpg": "its name is not valid UTF-8: rename it",
    }
    sources.scan()
    assert len(sources.problems) == 4, "a second scan starts a new list"


def test_folder_that_cannot_be_read_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(path: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SourceError, match="check its permissions") as caught:
        scan(tmp_path)
    assert caught.value.reason == "SOURCE_UNREADABLE"


def test_stamp_changes_with_the_file_and_only_then(tmp_path: Path) -> None:
    file = put(tmp_path / "a.jpg")
    first = scan(tmp_path)[0].stamp
    assert scan(tmp_path)[0].stamp == first
    os.utime(file, ns=(1, 1))
    second = scan(tmp_path)[0].stamp
    file.write_bytes(JPEG + b"more")
    os.utime(file, ns=(1, 1))
    assert len({first, second, scan(tmp_path)[0].stamp}) == 3


# Zips


def zip_of(path: Path, *names: str, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            archive.writestr(name, JPEG + name.encode())
    return path


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat/1.jpg", "dog/2.jpg"], {"cat/1.jpg": "cat", "dog/2.jpg": "dog"}),
        (["train/cat/1.jpg", "train/dog/2.jpg"], {"cat/1.jpg": "cat", "dog/2.jpg": "dog"}),
        (["a/b/cat/x/1.jpg", "a/b/dog/2.jpg"], {"cat/x/1.jpg": "cat", "dog/2.jpg": "dog"}),
        (["cat/1.jpg", "cat/2.jpg"], {"cat/1.jpg": "cat", "cat/2.jpg": "cat"}),
        (["train/cat/1.jpg", "train/cat/2.jpg"], {"cat/1.jpg": "cat", "cat/2.jpg": "cat"}),
        (["1.jpg", "2.jpg"], {"1.jpg": None, "2.jpg": None}),
        (["photos/1.jpg", "photos/cat/2.jpg"], {"1.jpg": None, "cat/2.jpg": "cat"}),
        (["1.jpg", "cat/2.jpg", "README.txt", "docs/"], {"1.jpg": None, "cat/2.jpg": "cat"}),
        (["cat/1.jpg", "dog/2.jpg", "__MACOSX/cat/._1.jpg", ".x/3.jpg"], {"cat/1.jpg": "cat", "dog/2.jpg": "dog"}),
        (["cat\\1.jpg", "dog\\2.jpg"], {"cat/1.jpg": "cat", "dog/2.jpg": "dog"}),
    ],
)
def test_zip_labels(tmp_path: Path, names: list[str], expected: dict[str, str | None]) -> None:
    archive = zip_of(tmp_path / "x.zip", *names)
    sources = open_sources([str(archive)])
    images = sources.scan()
    assert labels(images) == expected
    for image in images:
        stored = image.uri.split("!/")[1]
        assert sources.read(image) == read_uri(image.uri) == JPEG + stored.encode()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods(tmp_path: Path, method: int) -> None:
    archive = zip_of(tmp_path / "X.ZIP", "a/1.jpg", method=method)
    assert read_uri(f"{archive}!/a/1.jpg") == JPEG + b"a/1.jpg"


def test_zip_stamp_is_of_the_content(tmp_path: Path) -> None:
    first = scan(zip_of(tmp_path / "x.zip", "a/1.jpg", "b/2.jpg"))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("b/2.jpg", JPEG + b"changed!")
        archive.writestr("a/1.jpg", JPEG + b"a/1.jpg")
    second = scan(tmp_path / "x.zip")
    assert first[0].stamp == second[0].stamp
    assert first[1].stamp != second[1].stamp


def test_damaged_zip_member_is_refused_alone(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "x.zip", "a/1.jpg", "a/2.jpg", method=zipfile.ZIP_STORED)
    data = archive.read_bytes()
    archive.write_bytes(data.replace(JPEG + b"a/1.jpg", JPEG[::-1] + b"a/1.jpg"))
    with pytest.raises(ImageError, match=r"x\.zip!/a/1\.jpg cannot be read: .*damaged") as caught:
        read_uri(f"{archive}!/a/1.jpg")
    assert caught.value.reason == "IMAGE_UNREADABLE"
    assert read_uri(f"{archive}!/a/2.jpg") == JPEG + b"a/2.jpg"


def test_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big.jpg", bytes(2**20))
    with pytest.raises(ImageError, match="more than the limit of 1,000") as caught:
        read_uri(f"{tmp_path}/x.zip!/big.jpg", max_bytes=1000)
    assert caught.value.reason == "IMAGE_TOO_LARGE"
    # A directory that promises less than the data unpacks to.
    data = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "y.zip").write_bytes(data.replace((2**20).to_bytes(4, "little"), (999).to_bytes(4, "little")))
    with pytest.raises(ImageError, match="damaged"):
        read_uri(f"{tmp_path}/y.zip!/big.jpg", max_bytes=1000)


# Tars


def tar_of(path: Path, members: dict[str, bytes | str]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            payload = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    return path


def test_webdataset(tmp_path: Path) -> None:
    shard = tar_of(
        tmp_path / "shard-000.tar",
        {
            "0001.jpg": JPEG,
            "0001.cls": "7\n",
            "0001.txt": "a cat\n",
            "0002.json": json.dumps({"label": "dog", "place": "Rome", "year": 1999, "tags": ["a"], "none": None}),
            "0002.png": JPEG + b"2",
            "0003.json": json.dumps({"label": "from json", "x": 1}),
            "0003.cls": "from cls",
            "0003.webp": JPEG + b"3",
            "0003.mask.png": b"no image of its own",
            "sub/0004.jpg": JPEG + b"4",
        },
    )
    sources = open_sources([str(shard)])
    images = {image.id: image for image in sources.scan()}
    assert labels(list(images.values())) == {
        "0001.jpg": "7",
        "0002.png": "dog",
        "0003.webp": "from cls",
        "sub/0004.jpg": "sub",
    }
    assert images["0001.jpg"].metadata == {"text": "a cat"}
    assert images["0002.png"].metadata == {"place": "Rome", "year": "1999", "tags": '["a"]'}
    assert sources.read(images["0003.webp"]) == read_uri(f"{shard}!/0003.webp") == JPEG + b"3"
    assert sources.problems == []


def test_tar_without_sidecars_is_like_a_zip(tmp_path: Path) -> None:
    names = ["./train/cat/1.a.jpg", "./train/cat/1.b.jpg", "./train/dog/2.jpg"]
    images = scan(tar_of(tmp_path / "x.tar", {name: name for name in names}))
    assert labels(images) == {"cat/1.a.jpg": "cat", "cat/1.b.jpg": "cat", "dog/2.jpg": "dog"}
    assert [read_uri(image.uri).decode() for image in images] == names


def test_tar_stamp_notices_equal_sizes_at_equal_offsets(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    first = scan(tar_of(path, {"a.jpg": b"one"}))[0].stamp
    os.utime(tar_of(path, {"a.jpg": b"two"}), ns=(5, 5))
    assert scan(path)[0].stamp != first
    assert read_uri(f"{path}!/a.jpg") == b"two"


def test_tar_hard_links_and_repeated_names(tmp_path: Path) -> None:
    put(tmp_path / "in/a/1.jpg", b"old")
    os.link(tmp_path / "in/a/1.jpg", tmp_path / "in/a/2.jpg")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "in/a/1.jpg", "a/1.jpg")
        archive.add(tmp_path / "in/a/2.jpg", "a/2.jpg")
        put(tmp_path / "in/a/3.jpg", b"new")
        archive.add(tmp_path / "in/a/3.jpg", "a/1.jpg")
    assert [read_uri(image.uri) for image in scan(tmp_path / "x.tar")] == [b"new", b"old"]


def test_bad_sidecars_are_reported_and_the_image_stays(tmp_path: Path) -> None:
    shard = tar_of(
        tmp_path / "x.tar",
        {"1.jpg": JPEG, "1.json": "{", "2.jpg": JPEG, "2.cls": b"\xff", "3.jpg": JPEG, "3.json": '{"a": "\\ud800"}'},
    )
    sources = open_sources([str(shard)])
    assert labels(sources.scan()) == {"1.jpg": None, "2.jpg": None, "3.jpg": None}
    assert len(sources.problems) == 3
    assert all("so it is ignored" in problem.reason for problem in sources.problems)


def test_truncated_tar(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", {"1.jpg": JPEG, "2.jpg": bytes(5000)})
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(SourceError, match=r"damaged or no tar archive") as caught:
        scan(path)
    assert caught.value.reason == "SOURCE_FORMAT"


# Manifests


def csv_of(path: Path, *rows: list[str], **options: str) -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, **options).writerows(rows)  # type: ignore[arg-type]
    return path


def test_csv_manifest(tmp_path: Path) -> None:
    put(tmp_path / "pics/1.jpg")
    put(tmp_path / "pics/no extension")
    zip_of(tmp_path / "pics/x.zip", "cat/1.jpg")
    manifest = csv_of(
        tmp_path / "list.csv",
        ["path", " label ", "place", "empty"],
        ["pics/1.jpg", "cat", 'Rome, "Italy"', ""],
        [str(tmp_path / "pics" / "no extension"), "", "", ""],
        ["./pics/x.zip!/cat/1.jpg", "dog", "", ""],
        ["pics/gone.jpg", "", "", ""],
        ["", "cat", "", ""],
    )
    sources = open_sources([str(manifest)])
    first, second, third = sources.scan()
    assert (first.id, first.label, first.metadata) == ("pics/1.jpg", "cat", {"place": 'Rome, "Italy"'})
    assert first.uri == str(tmp_path / "pics/1.jpg")
    assert (second.label, second.metadata) == (None, {})
    assert (third.id, third.uri) == ("pics/x.zip!/cat/1.jpg", f"{tmp_path}/pics/x.zip!/cat/1.jpg")
    assert sources.read(third) == JPEG + b"cat/1.jpg"
    assert [problem.reason for problem in sources.problems] == [
        f"there is no such file (named in {manifest} line 5)",
        "the path is empty",
    ]


def test_tsv_manifest_and_ids(tmp_path: Path) -> None:
    put(tmp_path / "1.jpg")
    put(tmp_path / "2.jpg")
    rows = [["id", "path"], ["one", "1.jpg"], ["", "2.jpg"]]
    assert [image.id for image in scan(csv_of(tmp_path / "list.tsv", *rows, delimiter="\t"))] == ["one", "2.jpg"]


def test_parquet_manifest(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    put(tmp_path / "1.jpg")
    put(tmp_path / "2.jpg")
    columns = {
        "path": ["1.jpg", "2.jpg"],
        "label": [3.0, None],
        "id": [10, 11],
        "score": [0.5, None],
        "image": [b"\xff", b"\xff"],
        "tags": [["a"], []],
    }
    parquet.write_table(pa.table(columns), tmp_path / "list.parquet")
    first, second = scan(tmp_path / "list.parquet")
    assert (first.id, first.label, first.metadata) == ("10", "3", {"score": "0.5"})
    assert (second.id, second.label, second.metadata) == ("11", None, {})


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", b"file,label\n1.jpg,cat\n", "no column 'path' (its columns: file, label)"),
        ("a.csv", b"", "no column 'path' (its columns: none)"),
        ("a.csv", b"path,label\n1.jpg,cat,extra\n", "line 2 has more cells than the header"),
        ("a.csv", b"path\n\xe9.jpg\n", "not UTF-8"),
        ("a.csv", b'path\n"1.jpg\n', "line 2: unexpected end of data"),
        ("a.csv", b"path,path\n1.jpg,2.jpg\n", "two columns 'path'"),
        ("a.parquet", b"not parquet", "it is no Parquet file"),
    ],
)
def test_malformed_manifests(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    put(tmp_path / name, content)
    with pytest.raises(SourceError) as caught:
        scan(tmp_path / name)
    assert why in str(caught.value)
    assert caught.value.reason == "SOURCE_FORMAT"


# Several sources


def test_several_sources_prefix_their_names(tmp_path: Path) -> None:
    put(tmp_path / "one/cat/1.jpg")
    put(tmp_path / "3.jpg")
    zip_of(tmp_path / "two.zip", "cat/1.jpg", "dog/2.jpg")
    own = csv_of(tmp_path / "own.csv", ["path", "id"], ["3.jpg", "mine"])
    images = scan(tmp_path / "one", tmp_path / "two.zip", own)
    assert labels(images) == {"one/cat/1.jpg": "cat", "two/cat/1.jpg": "cat", "two/dog/2.jpg": "dog", "mine": None}


def test_duplicate_ids_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "a/pics/1.jpg")
    put(tmp_path / "b/pics/1.jpg")
    with pytest.raises(SourceError, match=r"two images have the id 'pics/1\.jpg' .*a/pics.*b/pics") as caught:
        scan(tmp_path / "a/pics", tmp_path / "b/pics")
    assert caught.value.reason == "SOURCE_DUPLICATE_ID"


@pytest.mark.parametrize(
    ("name", "reason", "why"),
    [
        ("nowhere", "SOURCE_NOT_FOUND", "there is no folder or file"),
        ("empty", "SOURCE_EMPTY", "holds no image"),
        ("zipped", "SOURCE_EMPTY", "it holds x.zip: give that as the source"),
        ("photo.jpg", "SOURCE_FORMAT", "is a single image"),
        ("thing.7z", "SOURCE_FORMAT", "a source is a folder or a .zip"),
        ("x.tar.gz", "SOURCE_FORMAT", "compressed tar"),
        ("text.zip", "SOURCE_FORMAT", "damaged or no zip archive"),
        ("ftp://host/pics", "SOURCE_REMOTE", "copy it to a local folder"),
    ],
)
def test_sources_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    put(tmp_path / "zipped/x.zip")
    for file in ("photo.jpg", "thing.7z", "x.tar.gz", "text.zip"):
        put(tmp_path / file)
    with pytest.raises(SourceError, match=why) as caught:
        scan(name)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


def test_names_a_user_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "my pics/1.jpg")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("../my pics", "~/my pics", f"file://{tmp_path}/my%20pics", f"{tmp_path}/my pics/"):
        assert [image.uri for image in scan(name)] == [str(tmp_path / "my pics/1.jpg")]
    monkeypatch.chdir(tmp_path / "my pics")
    put(tmp_path / "work/2.jpg")
    assert [image.id for image in scan(".", "../work")] == ["my pics/1.jpg", "work/2.jpg"]


# Reading by uri


def test_read_uri_of_what_is_gone(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "x.zip", "a.jpg")
    for uri, why in [
        (f"{tmp_path}/gone.jpg", "there is no such file"),
        (f"{tmp_path}/gone.zip!/a.jpg", "there is no such file"),
        (f"{archive}!/b.jpg", "x.zip has no member of that name"),
        (f"{tmp_path}", "it is no regular file"),
        ("a\0b.jpg", "null byte"),
    ]:
        with pytest.raises(ImageError, match=why) as caught:
            read_uri(uri)
        assert caught.value.reason == ("IMAGE_MISSING" if "no such file" in why else "IMAGE_UNREADABLE")


def test_split_uri_believes_the_disk(tmp_path: Path) -> None:
    file = put(tmp_path / "x.zip!/a.jpg")
    assert split_uri(str(file)) == (file, None)
    assert split_uri(f"{tmp_path}/y.zip!/a!/b.jpg") == (tmp_path / "y.zip", "a!/b.jpg")


def test_many_threads_read_one_archive(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "x.zip", *(f"{n}.jpg" for n in range(200)))
    sources = open_sources([str(archive)])
    images = sources.scan()
    wrong: list[str] = []

    def read_all() -> None:
        wrong.extend(image.id for image in images if sources.read(image) != JPEG + image.id.encode())

    threads = [threading.Thread(target=read_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_sources_travel_to_worker_processes(tmp_path: Path) -> None:
    sources = open_sources([str(zip_of(tmp_path / "x.zip", "a.jpg"))])
    (image,) = sources.scan()
    copy = pickle.loads(pickle.dumps((sources, image)))
    assert copy[0].read(copy[1]) == JPEG + b"a.jpg"


def test_a_replaced_archive_is_read_anew(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "x.zip", "a.jpg")
    assert list(archive_members(archive)) == ["a.jpg"]
    zip_of(archive, "a.jpg", "b.jpg")
    assert list(archive_members(archive)) == ["a.jpg", "b.jpg"]
