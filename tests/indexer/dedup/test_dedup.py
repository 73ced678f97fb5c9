"""``cbir dedup`` on drawn pictures with planted duplicates."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from cbir.client.cli.program import main
from cbir.core.artifacts import IndexStore
from cbir.core.search import LIKENESS
from cbir.indexer.dedup import GROUPS_SHOWN, draw_duplicates, find_duplicates, size_text
from cbir.indexer.samples import LABELS
from cbir.indexer.samples.sample_split import draw_sample
from cbir.indexer.tune import tune


@dataclass(frozen=True)
class Planted:
    """An index and the pictures it was made of."""

    index: Path
    pictures: Path


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Two drawn pictures a class, copies of some of them, and blank pages."""
    folder = tmp_path_factory.mktemp("dedup")
    pictures = folder / "pictures"
    pictures.mkdir()
    for label in LABELS:
        for number in (1, 2):
            draw_sample(label, number).save(pictures / f"{label}-{number}.png")

    def copy(name: str, of: str, change: Any = lambda image: image, **options: Any) -> None:
        with Image.open(pictures / f"{of}.png") as image:
            change(image).save(pictures / name, **options)

    copy("cat-1-jpeg30.jpg", "cat-1", quality=30)
    copy("cat-1-larger.png", "cat-1", lambda image: image.resize((400, 400), Image.Resampling.BICUBIC))
    copy("cat-1-brighter.png", "cat-1", lambda image: ImageEnhance.Brightness(image).enhance(1.15))
    copy("fish-2-half.jpg", "fish-2", lambda image: image.resize((128, 128)), quality=85)
    copy("house-1-cut.png", "house-1", lambda image: image.crop((4, 4, 252, 252)))
    copy("car-1-mirrored.png", "car-1", ImageOps.mirror)
    copy("car-1-mirrored-again.jpg", "car-1", ImageOps.mirror, quality=70)
    copy("sailboat-1-turned.jpg", "sailboat-1", lambda image: image.rotate(90), quality=80)
    copy("cat-1-headlong.jpg", "cat-1", lambda image: image.resize((128, 128)).rotate(180), quality=80)
    copy("rocket-2-screenshot.png", "rocket-2", paste)
    copy("tree-1.jpg", "tree-1", quality=80)
    (pictures / "tree-1.png").unlink()
    # A larger file with the same pixels, and a smaller one that has lost some.
    with Image.open(pictures / "tree-1.jpg") as image:
        image.save(pictures / "tree-1-again.png")
        image.save(pictures / "tree-1-worse.jpg", quality=60)
    shutil.copy(pictures / "tree-2.png", pictures / "aaa-tree-2-again.png")
    for colour in ("red", "navy", "white", "olive"):
        Image.new("RGB", (200, 200), colour).save(pictures / f"blank-{colour}.png")
    index = folder / "index"
    # The cosines that near duplicates must reach were chosen for this ensemble.
    assert main(["index", str(pictures), "--out", str(index), "--ensemble", "compact"]) == 0
    return Planted(index, pictures)


def paste(image: Image.Image) -> Image.Image:
    """A screenshot that shows the picture, smaller than it is."""
    screen = Image.new("RGB", (640, 480), (245, 245, 248))
    screen.paste(image.resize((200, 200), Image.Resampling.LANCZOS), (220, 140))
    return screen


def run(capsys: Any, *arguments: object) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["dedup", *map(str, arguments)]) == 0
    return capsys.readouterr()


def groups(document: dict[str, Any]) -> dict[str, set[str]]:
    return {group["keep"]["id"]: {extra["id"] for extra in group["extras"]} for group in document["groups"]}


EXPECTED = {
    "aaa-tree-2-again.png": {"tree-2.png"},
    "car-1-mirrored.png": {"car-1-mirrored-again.jpg"},
    "cat-1-larger.png": {"cat-1.png", "cat-1-jpeg30.jpg", "cat-1-brighter.png"},
    "fish-2.png": {"fish-2-half.jpg"},
    "house-1.png": {"house-1-cut.png"},
    "rocket-2.png": {"rocket-2-screenshot.png"},
    "tree-1.jpg": {"tree-1-again.png", "tree-1-worse.jpg"},
}


def test_the_planted_duplicates_are_found_and_nothing_else(planted: Planted, capsys: Any) -> None:
    before = sorted((path, path.stat().st_size) for path in planted.pictures.iterdir())
    out, err = run(capsys, planted.index, "--json")
    document = json.loads(out)
    assert groups(document) == EXPECTED
    assert (document["images"], document["bits"], document["extras"]) == (49, 4, 10)
    assert document["version"] == IndexStore(planted.index).current()
    extras = {extra["id"]: extra for group in document["groups"] for extra in group["extras"]}
    assert document["extra_bytes"] == sum((planted.pictures / name).stat().st_size for name in extras)
    assert err.startswith("7 groups with 10 superfluous images (")
    again, jpeg = extras["tree-2.png"], extras["cat-1-jpeg30.jpg"]
    assert (again["same_bytes"], again["bits"], jpeg["same_bytes"]) == (True, 0, False)
    assert 0.9 < jpeg["similarity"] < 1
    assert jpeg["uri"] == str(planted.pictures / "cat-1-jpeg30.jpg")
    assert (jpeg["width"], jpeg["height"]) == (256, 256)
    assert jpeg["bytes"] == (planted.pictures / "cat-1-jpeg30.jpg").stat().st_size
    assert sorted((path, path.stat().st_size) for path in planted.pictures.iterdir()) == before


def test_turned_and_mirrored_copies_are_found_where_asked_for(planted: Planted, capsys: Any, tmp_path: Path) -> None:
    picture = tmp_path / "turned.png"
    document = json.loads(run(capsys, planted.index, "--json", "--symmetries", "--save", picture)[0])
    assert document["symmetries"] is True
    found = groups(document)
    assert found["sailboat-1.png"] == {"sailboat-1-turned.jpg"}
    assert found["cat-1-larger.png"] == EXPECTED["cat-1-larger.png"] | {"cat-1-headlong.jpg"}
    # Two groups become one: the kept picture of one is a copy of the other's.
    cars = {"car-1.png", "car-1-mirrored.png", "car-1-mirrored-again.jpg"}
    (kept,) = cars & found.keys()
    assert found[kept] == cars - {kept}
    others = {keep: extras for keep, extras in found.items() if not keep.startswith(("sailboat", "car", "cat"))}
    assert others == {keep: extras for keep, extras in EXPECTED.items() if not keep.startswith(("car", "cat"))}
    extras = {extra["id"]: extra for group in document["groups"] for extra in group["extras"]}
    # Turned against the clock by 90 degrees is turned by 270 with it.
    assert (extras["sailboat-1-turned.jpg"]["symmetry"], extras["sailboat-1-turned.jpg"]["same_bytes"]) == (
        "rotate-270",
        False,
    )
    assert extras["cat-1-headlong.jpg"]["symmetry"] == "rotate-180"
    assert extras["cat-1.png"]["symmetry"] is None
    assert {extras[name]["symmetry"] for name in cars - {kept}} <= {"mirror", None}
    assert "mirror" in {extras[name]["symmetry"] for name in cars - {kept}}
    assert all(extra["similarity"] >= LIKENESS for extra in extras.values() if extra["symmetry"])
    assert picture.stat().st_size > 10_000
    assert "rotate-270" in run(capsys, planted.index, "--symmetries")[0]


def test_a_turned_copy_that_is_gone_is_no_copy(planted: Planted, capsys: Any, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("sailboat-1.png", "sailboat-1-turned.jpg", "fish-1.png"):
        shutil.copy(planted.pictures / name, pictures)
    index = tmp_path / "index"
    assert main(["index", str(pictures), "--out", str(index), "--ensemble", "compact"]) == 0
    assert groups(json.loads(run(capsys, index, "--json", "--symmetries")[0])) == {
        "sailboat-1.png": {"sailboat-1-turned.jpg"}
    }
    (pictures / "sailboat-1.png").unlink()
    assert groups(json.loads(run(capsys, index, "--json", "--symmetries")[0])) == {}


def test_more_bits_never_find_less(planted: Planted, capsys: Any) -> None:
    def pairs(bits: int) -> set[tuple[str, str]]:
        found = groups(json.loads(run(capsys, planted.index, "--json", "--bits", bits)[0]))
        return {(keep, extra) for keep, extras in found.items() for extra in extras}

    usual = {(keep, extra) for keep, extras in EXPECTED.items() for extra in extras}
    assert pairs(0) <= usual == pairs(4) <= pairs(8)
    equal = groups(json.loads(run(capsys, planted.index, "--json", "--bits", 0)[0]))
    assert equal["aaa-tree-2-again.png"] == {"tree-2.png"}


def test_extras_alone_can_be_piped(planted: Planted, capsys: Any) -> None:
    out, _ = run(capsys, planted.index, "--list-extra")
    extras = {name for names in EXPECTED.values() for name in names}
    assert sorted(out.splitlines()) == sorted(str(planted.pictures / name) for name in extras)


def test_a_table_for_people_and_a_picture(planted: Planted, capsys: Any, tmp_path: Path) -> None:
    picture = tmp_path / "duplicates.png"
    out, err = run(capsys, planted.index, "--save", picture)
    assert [line.split()[1] for line in out.splitlines() if line.split()[1:2] in (["keep"], ["extra"])].count(
        "keep"
    ) == 7
    assert "nothing was deleted" in err
    assert f"saved {picture}" in err
    with Image.open(picture) as drawn:
        colours = np.asarray(drawn.convert("RGB"))
    # One green frame a group, all at the left.
    rows, columns = np.nonzero((colours == (0x17, 0xA6, 0x73)).all(axis=2))
    assert len(np.flatnonzero(np.diff(np.unique(rows)) > 100)) == 6
    assert columns.max() < 320


def test_what_is_gone_is_not_kept(planted: Planted, capsys: Any, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("cat-1.png", "cat-1-larger.png", "fish-1.png", "car-1.png"):
        shutil.copy(planted.pictures / name, pictures)
    assert main(["index", str(pictures), "--out", str(tmp_path / "index")]) == 0
    (pictures / "cat-1-larger.png").unlink()
    document = json.loads(run(capsys, tmp_path / "index", "--json", "--save", tmp_path / "gone.png")[0])
    assert groups(document) == {"cat-1.png": {"cat-1-larger.png"}}
    assert document["groups"][0]["extras"][0]["bytes"] is None
    assert document["extra_bytes"] == 0


def test_no_duplicates_are_said(planted: Planted, capsys: Any, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("fish-1.png", "car-1.png"):
        shutil.copy(planted.pictures / name, pictures)
    assert main(["index", str(pictures), "--out", str(tmp_path / "index")]) == 0
    out, err = run(capsys, tmp_path / "index", "--save", tmp_path / "none.png")
    assert out == ""
    assert err.startswith("no near duplicates among 2 images\n")


def test_a_picture_of_very_many_groups_stops(planted: Planted) -> None:
    (group, *_) = find_duplicates("x", IndexStore(planted.index).open()).groups
    assert draw_duplicates([group] * 500, "").height == draw_duplicates([group] * GROUPS_SHOWN, "").height


def test_averaged_vectors_change_nothing(planted: Planted, tmp_path: Path) -> None:
    shutil.copytree(planted.index, tmp_path / "index")
    plain = IndexStore(tmp_path / "index").open()
    tune(tmp_path / "index", use_labels=False)
    averaged = IndexStore(tmp_path / "index").open()
    assert averaged.vote.augmentation_neighbours > 1
    for member in averaged.manifest.members:
        np.testing.assert_array_equal(averaged.plain_embeddings(member), plain.embeddings(member))
        assert (averaged.embeddings(member) != plain.embeddings(member)).any()
    assert find_duplicates("x", averaged).groups == find_duplicates("x", plain).groups


@pytest.mark.parametrize(
    "wrong", [["--bits", "17"], ["--bits", "few"], ["--save", "x.gif"], ["--json", "--list-extra"]]
)
def test_wrong_usage(planted: Planted, capsys: Any, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["dedup", str(planted.index), *wrong])
    assert caught.value.code == 2
    assert wrong[1] in capsys.readouterr().err


def test_no_index_is_one_sentence(tmp_path: Path, capsys: Any) -> None:
    assert main(["dedup", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"cbir: there is no index at {tmp_path}")


@pytest.mark.parametrize(
    ("size", "text"), [(None, "gone"), (0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 * 2**30, "5.0 GiB")]
)
def test_sizes_for_people(size: int | None, text: str) -> None:
    assert size_text(size) == text
