"""What lies in folders and archives of real users: nothing there ends a scan, and nothing is dropped without a word."""

from __future__ import annotations

import io
import os
import tarfile
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbir.client.cli.query_files import named_queries
from cbir.core.errors import SourceError
from cbir.core.files import read_uri
from cbir.indexer.sources import Sources, open_sources
from cbir.indexer.sources import names as names_module

JPEG = b"\xff\xd8 not really, but nothing here decodes \xff\xd9"
NFC, NFD = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"


def put(path: Path, data: bytes = JPEG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def scanned(*names: Path, **options: Any) -> tuple[Sources, dict[str, str | None]]:
    sources = open_sources([str(name) for name in names], **options)
    return sources, {image.id: image.label for image in sources.scan()}


def told(sources: Sources) -> dict[str, str]:
    return {Path(problem.uri).name: problem.reason for problem in sources.problems}


# Folders


def test_links_that_lead_nowhere_end_no_scan(tmp_path: Path) -> None:
    put(tmp_path / "cat/1.jpg")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "one").symlink_to("other")
    (tmp_path / "other").symlink_to("one")
    (tmp_path / "through").symlink_to("cat/1.jpg/x")
    (tmp_path / "through.jpg").symlink_to("cat/1.jpg/x")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "long").symlink_to("x" * 300)
    sources, found = scanned(tmp_path)
    assert found == {"cat/1.jpg": "cat"}
    itself, through = "cannot be read: the link leads to itself", "cannot be read: the link leads through a file"
    reasons = told(sources)
    assert {name for name, why in reasons.items() if why == itself} == {"self", "self.jpg", "one", "other"}
    assert {name for name, why in reasons.items() if why.startswith(through)} == {"through", "through.jpg"}
    assert reasons["gone"] == reasons["gone.jpg"] == "cannot be read: the link leads nowhere"
    assert reasons["long"].startswith("cannot be read: the link cannot be followed")


class _Denied:
    """An entry that may not be looked at; root may look at everything, so a locked folder would prove nothing."""

    def __init__(self, entry: os.DirEntry[str]) -> None:
        self.name, self.path, self._entry = entry.name, entry.path, entry

    def is_symlink(self) -> bool:
        return self._entry.is_symlink()

    def is_dir(self) -> bool:
        raise PermissionError(13, "Permission denied")

    def stat(self) -> os.stat_result:
        raise PermissionError(13, "Permission denied")


def test_links_that_may_not_be_followed_end_no_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.jpg")
    for name in ("denied", "denied.jpg"):
        (tmp_path / name).symlink_to("a.jpg")
    real = os.scandir

    class Listing:
        def __init__(self, path: str) -> None:
            with real(path) as listing:
                self.entries = [_Denied(entry) if entry.name.startswith("denied") else entry for entry in listing]

        def __enter__(self) -> list[Any]:
            return self.entries

        def __exit__(self, *exception: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Listing)
    sources, found = scanned(tmp_path)
    assert found == {"a.jpg": None}
    why = "cannot be read: the link leads where this user may not look"
    assert told(sources) == {"denied": why, "denied.jpg": why}


def test_folders_of_the_system_are_left_out(tmp_path: Path) -> None:
    put(tmp_path / "cat/1.jpg")
    for folder in (
        "@eaDir",
        "#recycle",
        "#snapshot",
        "$RECYCLE.BIN",
        "$Recycle.Bin",
        "lost+found",
        "__MACOSX",
        "@Recycle",
    ):
        put(tmp_path / "cat" / folder / "1.jpg")
        put(tmp_path / folder / "2.jpg")
    sources, found = scanned(tmp_path)
    assert found == {"cat/1.jpg": "cat"}
    assert sources.problems == []
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("cat/1.jpg", JPEG)
        archive.writestr("cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", JPEG)
    assert scanned(tmp_path / "x.zip")[1] == {"cat/1.jpg": "cat"}


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ([], {"cat/1.jpg", "cat/1_thumb.jpg", "cat/old/2.jpg", "dog/3.jpg", "dog/old/4.jpg"}),
        (["old"], {"cat/1.jpg", "cat/1_thumb.jpg", "dog/3.jpg"}),
        (["cat/old"], {"cat/1.jpg", "cat/1_thumb.jpg", "dog/3.jpg", "dog/old/4.jpg"}),
        (["*_thumb.*", "dog/"], {"cat/1.jpg", "cat/old/2.jpg"}),
        (["*/old/*"], {"cat/1.jpg", "cat/1_thumb.jpg", "dog/3.jpg"}),
        (["[cd]*g/*.jpg"], {"cat/1.jpg", "cat/1_thumb.jpg", "cat/old/2.jpg"}),
    ],
)
def test_what_the_user_excludes_is_left_out(tmp_path: Path, patterns: list[str], left: set[str]) -> None:
    names = ("cat/1.jpg", "cat/1_thumb.jpg", "cat/old/2.jpg", "dog/3.jpg", "dog/old/4.jpg")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in names:
            put(tmp_path / "pets" / name)
            archive.writestr(name, JPEG)
    put(tmp_path / "pets/list.csv", "\n".join(["path", *names]).encode())
    for source in (tmp_path / "pets", tmp_path / "x.zip", tmp_path / "pets/list.csv"):
        found = scanned(source, exclude=patterns)[1]
        # In the zip, the folder that all share then names no class but for the last.
        assert {name for name in names if any(name.endswith(one) for one in found)} == left


def test_extensions_of_known_formats_are_images(tmp_path: Path) -> None:
    images = [
        f"{number}{end}" for number, end in enumerate((".jfif", ".JIF", ".mpo", ".apng", ".jpe", ".dib", ".avif"))
    ]
    for name in images:
        put(tmp_path / name)
    assert sorted(scanned(tmp_path)[1]) == sorted(images)


@pytest.mark.parametrize("installed", [True, False])
def test_pictures_that_cannot_be_read_are_counted(
    tmp_path: Path, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names_module.importlib.util, "find_spec", lambda name: object() if installed else None)
    names_module.image_extensions.cache_clear()
    names_module.unreadable.cache_clear()
    try:
        files = [
            "a.jpg",
            *(f"{n}.HEIC" for n in range(3)),
            "b.jxl",
            "c.jp2",
            "d.NEF",
            "e.cr2",
            "f.svg",
            "g.psd",
            "n.txt",
        ]
        for name in files:
            put(tmp_path / "pics/sub" / name)
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for name in files:
                archive.writestr(f"sub/{name}", JPEG)
        for source in (tmp_path / "pics", tmp_path / "x.zip"):
            sources, found = scanned(source)
            reasons = told(sources)
            always = {"*.jp2", "*.nef", "*.cr2", "*.svg", "*.psd"}
            assert set(reasons) == (always if installed else always | {"*.heic", "*.jxl"})
            assert reasons["*.jp2"] == "1 .jp2 file was left out: JPEG 2000 is not read; save them as JPEG, PNG or TIFF"
            assert len(found) == (5 if installed else 1)
            if not installed:
                assert reasons["*.heic"].startswith(
                    "3 .heic files were left out: HEIC is read with the extra 'formats'"
                )
    finally:
        names_module.image_extensions.cache_clear()
        names_module.unreadable.cache_clear()


# Names with accents


def test_both_spellings_of_a_class_are_one(tmp_path: Path) -> None:
    put(tmp_path / "pics" / NFC / "1.jpg")
    put(tmp_path / "pics" / NFD / "2.jpg")
    put(tmp_path / "pics" / NFD / f"{NFD}.jpg")
    sources, found = scanned(tmp_path / "pics")
    assert found == {f"{NFC}/1.jpg": NFC, f"{NFC}/2.jpg": NFC, f"{NFC}/{NFC}.jpg": NFC}
    assert all(read_uri(image.uri) == JPEG for image in sources.scan())


def test_one_name_in_both_spellings_is_one_image(tmp_path: Path) -> None:
    put(tmp_path / f"{NFC}.jpg")
    put(tmp_path / f"{NFD}.jpg")
    sources, found = scanned(tmp_path)
    assert found == {f"{NFC}.jpg": None}
    assert [problem.reason.split(" of ")[0] for problem in sources.problems] == ["its name means the same as that"]


@pytest.mark.parametrize("written", [NFC, NFD])
@pytest.mark.parametrize("stored", [NFC, NFD])
def test_a_table_finds_files_in_any_spelling(tmp_path: Path, stored: str, written: str) -> None:
    put(tmp_path / stored / f"{stored}.jpg")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(f"{stored}/1.jpg", JPEG)
    table = f"path,label,id\n{written}/{written}.jpg,{written},{written}\nx.zip!/{written}/1.jpg,{written},2\n"
    put(tmp_path / "list.csv", table.encode())
    sources, found = scanned(tmp_path / "list.csv")
    assert found == {NFC: NFC, "2": NFC}
    assert sources.problems == []
    assert [sources.read(image) for image in sources.scan()] == [JPEG, JPEG]


accented = st.text(st.sampled_from("aéüñçÅΏΰ가힣ẛ̣ḍ̇﷐Ω"), min_size=1, max_size=5).map(
    lambda name: unicodedata.normalize("NFC", name)
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(accented, st.sampled_from(["NFC", "NFD"]), st.sampled_from(["NFC", "NFD"])), min_size=1))
def test_any_name_means_the_same_in_every_source(tmp_path_factory: pytest.TempPathFactory, names: list[Any]) -> None:
    root = tmp_path_factory.mktemp("names")
    rows = []
    with zipfile.ZipFile(root / "x.zip", "w") as archive:
        for number, (name, on_disk, in_table) in enumerate(names):
            stored = unicodedata.normalize(on_disk, name)
            written = unicodedata.normalize(in_table, name)
            put(root / "pics" / stored / f"{number}.jpg")
            archive.writestr(f"{stored}/{number}.jpg", JPEG)
            rows.append(f"pics/{written}/{number}.jpg,{written}")
        archive.writestr("top.jpg", JPEG)
    put(root / "list.csv", "\n".join(["path,label", *rows]).encode())
    expected = {f"{name}/{number}.jpg": name for number, (name, _, _) in enumerate(names)}
    assert scanned(root / "pics")[1] == expected
    assert scanned(root / "x.zip")[1] == {**expected, "top.jpg": None}
    sources, found = scanned(root / "list.csv")
    assert found == {f"pics/{name}": label for name, label in expected.items()}
    assert sources.problems == []


# The command line's own search


def test_search_and_index_find_the_same_files(tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "cat/2.JFIF", "dog/a.mpo", "dog/@eaDir/a.jpg", ".x/1.jpg", "top.apng", "b.heic", "c.svg"):
        put(tmp_path / "pets" / name)
    put(tmp_path / "pets" / NFD / "1.jpg")
    put(tmp_path / "elsewhere/9.jpg")
    (tmp_path / "pets/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pets/self").symlink_to("self")
    (tmp_path / "pets/back").symlink_to(tmp_path / "pets")
    (tmp_path / "pets/gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "pets/pipe.jpg")
    sources = open_sources([str(tmp_path / "pets")])
    indexed = {(image.uri, image.label) for image in sources.scan()}
    asked = {
        (str(query.query), next(iter(query.expected), None)) for query in named_queries([str(tmp_path / "pets")], [])
    }
    assert asked == indexed
    assert len(indexed) >= 6


name = st.sampled_from(
    ["a", "b", "1.jpg", "2.jpeg", "x.jfif", "x.HEIC", "x.jxl", "n.txt", ".h", "@eaDir", "lost+found", NFC, NFD, "p.png"]
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(name, min_size=1, max_size=4), max_size=12),
    st.lists(st.tuples(st.lists(name, max_size=2), name, st.lists(name, max_size=3)), max_size=4),
)
def test_any_folder_gives_both_the_same(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[str]], links: list[tuple[list[str], str, list[str]]]
) -> None:
    root = tmp_path_factory.mktemp("tree") / "pics"
    put(root / "first.jpg")
    for parts in files:
        path = root.joinpath(*parts)
        try:
            put(path)
        except OSError:
            continue  # a file already stands where a folder is wanted, or the other way round
    for above, own, target in links:
        place = root.joinpath(*above)
        if place.is_dir() and not os.path.lexists(place / own):
            (place / own).symlink_to(root.joinpath(*target))
    sources = open_sources([str(root)])
    indexed = {(image.uri, image.label) for image in sources.scan()}
    twins = {problem.uri for problem in sources.problems if "means the same" in problem.reason}
    asked = {(str(query.query), next(iter(query.expected), None)) for query in named_queries([str(root)], [])}
    assert {pair for pair in asked if pair[0] not in twins} == indexed


# Archives


def zip_without_flag(path: Path, *names: bytes) -> Path:
    """A zip as macOS makes it: names in UTF-8, and no flag that says so."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, raw in enumerate(names):
            archive.writestr(f"{number:0{len(raw)}d}", JPEG + raw)
    data = path.read_bytes()
    for number, raw in enumerate(names):
        data = data.replace(f"{number:0{len(raw)}d}".encode(), raw)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2])
def test_zips_of_macos_keep_their_names(tmp_path: Path, method: int) -> None:
    names = [f"{NFD}/1.jpg", "日本/2.jpg", "dog/3.jpg"]
    archive = zip_without_flag(tmp_path / "x.zip", *(name.encode() for name in names))
    sources, found = scanned(archive)
    assert found == {f"{NFC}/1.jpg": NFC, "日本/2.jpg": "日本", "dog/3.jpg": "dog"}
    assert {sources.read(image) for image in sources.scan()} == {JPEG + name.encode() for name in names}
    # An index that was made before knows such a member by the letters of DOS.
    assert read_uri(f"{archive}!/{'日本/2.jpg'.encode().decode('cp437')}") == JPEG + "日本/2.jpg".encode()


def test_names_in_other_letters_stay_as_they_are(tmp_path: Path) -> None:
    archive = zip_without_flag(tmp_path / "x.zip", "größe/1.jpg".encode("cp437"), b"dog/2.jpg")
    assert sorted(scanned(archive)[1].values(), key=str) == ["dog", "größe"]


def test_members_of_other_methods_are_read_by_their_place(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr(f"{NFD}/1.jpg", JPEG + b"1")
        archive.writestr("b/2.jpg", JPEG + b"2")
    sources, _ = scanned(tmp_path / "x.zip")
    assert {sources.read(image) for image in sources.scan()} == {JPEG + b"1", JPEG + b"2"}


def tar_of(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for member, data in members:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_sidecars_without_an_image_are_told(tmp_path: Path) -> None:
    shard = tar_of(
        tmp_path / "x.tar", ("1.jpg", JPEG), ("1.cls", b"cat"), ("2.cls", b"dog"), ("3.cls", b"cow"), ("4.json", b"{}")
    )
    sources, found = scanned(shard)
    assert found == {"1.jpg": "cat"}
    assert [(problem.uri, problem.reason) for problem in sources.problems] == [
        (f"{shard}!/2.cls", "no image belongs to this .cls file, like 1 others: it is ignored"),
        (f"{shard}!/4.json", "no image belongs to this .json file: it is ignored"),
    ]


def test_names_that_occur_twice_are_told(tmp_path: Path) -> None:
    shard = tar_of(tmp_path / "x.tar", ("1.jpg", JPEG), ("1.cls", b"cat"), ("1.jpg", JPEG + b"2"), ("1.cls", b"dog"))
    sources, found = scanned(shard)
    assert found == {"1.jpg": "dog"}
    twice = "its name occurs more than once in the archive: the last of them is taken"
    assert {Path(problem.uri).name: problem.reason for problem in sources.problems} == {"1.jpg": twice, "1.cls": twice}
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/1.jpg", JPEG)
        archive.writestr("b/1.jpg", JPEG + b"2")
    (tmp_path / "x.zip").write_bytes((tmp_path / "x.zip").read_bytes().replace(b"b/1.jpg", b"a/1.jpg"))
    sources, _ = scanned(tmp_path / "x.zip")
    assert [problem.reason for problem in sources.problems] == [twice]
    assert [sources.read(image) for image in sources.scan()] == [JPEG + b"2"]


def test_paths_that_mean_the_same_end_no_scan(tmp_path: Path) -> None:
    shard = tar_of(tmp_path / "x.tar", ("a/1.jpg", JPEG), ("./a/1.jpg", JPEG), ("b/2.jpg", JPEG))
    sources, found = scanned(shard)
    assert found == {"a/1.jpg": "a", "b/2.jpg": "b"}
    assert len(sources.problems) == 1


def test_a_directory_of_a_zip_that_is_damaged_is_one_sentence(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(f"{NFC}/1.jpg", JPEG)
    whole = (tmp_path / "x.zip").read_bytes()
    flagged = whole.replace(NFC.encode(), b"caf\xff\xfe")
    assert flagged != whole
    (tmp_path / "x.zip").write_bytes(flagged)
    with pytest.raises(SourceError, match="damaged or no zip archive"):
        scanned(tmp_path / "x.zip")
