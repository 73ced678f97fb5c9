"""How large an image may be, what a full disk says, and names in either spelling, from scan to answer."""

from __future__ import annotations

import argparse
import errno
import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from images import encode, pattern
from PIL import Image
from safetensors import SafetensorError

from cbir.client.cli.program import main
from cbir.core.artifacts import IndexStore
from cbir.core.ensemble import load_ensemble
from cbir.core.errors import ConfigurationError
from cbir.core.images import DecodeLimits
from cbir.core.search import Retriever
from cbir.indexer.build import RunSettings, build, index_limits
from cbir.indexer.commands.console import amount, writing_to
from cbir.indexer.evaluate import source_queries
from cbir.indexer.sources import open_sources

SETTINGS = RunSettings(device="cpu", runtime="torch", batch=16, workers=2)


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("200M", 200_000_000), ("64Mi", 2**26), ("64MiB", 2**26), ("1_000", 1000), ("1,000 k", 10**6)],
)
def test_amounts(text: str, number: int) -> None:
    assert amount(text) == number


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5M", "many", "1T", "1i", "99999999999999999999"])
def test_amounts_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        amount(text)


def test_limits_are_lifted_and_what_was_refused_is_tried_again(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = pictures(4), tmp_path / "index"
    Image.new("L", (200, 100)).save(source / "class0/wide.bmp")
    arguments = ["index", str(source), "--out", str(out), "--ensemble", str(tiny), "--device", "cpu", "--json"]

    def run(*more: str) -> dict[str, Any]:
        assert main([*arguments, *more]) == 0
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    small = run("--max-pixels", "10k")
    assert (small["images"], [one["code"] for one in small["skipped"]]) == (16, ["IMAGE_TOO_MANY_PIXELS"])
    assert run("--max-pixels", "10k")["published"] is False
    lifted = run("--max-pixels", "20k")
    assert (lifted["images"], lifted["embedded"], lifted["skipped"]) == (17, 1, [])
    assert index_limits(IndexStore(out).open().manifest.settings).max_pixels == 20_000
    few = run("--max-pixels", "20k", "--max-bytes", "25k", "--exclude", "class[12]", "--rebuild")
    assert few["images"] == 9
    heavy = source / "class0/heavy.png"
    heavy.write_bytes(encode(Image.effect_noise((140, 140), 90), "PNG") + bytes(30_000))
    heavier = run("--max-pixels", "20k", "--max-bytes", "25k")
    assert [one["code"] for one in heavier["skipped"]] == ["IMAGE_TOO_LARGE"]
    # Queries may be as large as the index's images.
    assert (
        main(["eval", str(out), "--queries", str(source), "--exclude", "heavy.png", "--device", "cpu", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["queries"] == 17


def test_limits_of_indexes_made_before_are_the_usual_ones() -> None:
    assert index_limits({}) == DecodeLimits()
    assert index_limits({"decoding": {"max_pixels": "many"}}) == DecodeLimits()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_its_path(number: int, tmp_path: Path) -> None:
    for error in (
        OSError(number, os.strerror(number)),
        SafetensorError(f"Error while serializing: I/O error: No space left on device (os error {number})"),
    ):
        with (
            pytest.raises(ConfigurationError, match=f"the disk of {tmp_path}/index is full: free") as caught,
            writing_to(tmp_path / "index"),
        ):
            raise error
        assert caught.value.reason == "DISK_FULL"
    with pytest.raises(ConfigurationError, match="the disk of /elsewhere is full"), writing_to(tmp_path):
        raise OSError(number, os.strerror(number), "/elsewhere")
    with pytest.raises(PermissionError), writing_to(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_disk_that_fills_while_indexing(
    pictures: Callable[..., Path], tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source, out = pictures(3), tmp_path / "index"
    monkeypatch.setattr("cbir.core.artifacts.vector_file.VectorFile.append", full)
    assert main(["index", str(source), "--out", str(out), "--ensemble", str(tiny), "--device", "cpu"]) == 1
    assert f"cbir: the disk of {out} is full: free some space there" in capsys.readouterr().err


@pytest.mark.parametrize("gallery_form", ["NFC", "NFD"])
@pytest.mark.parametrize("query_form", ["NFC", "NFD"])
def test_a_class_with_accents_is_one_in_gallery_and_queries(
    gallery_form: str, query_form: str, tmp_path: Path, tiny: Path
) -> None:
    def folder(place: Path, form: str, seed: int) -> Path:
        for kind, name in enumerate(("café", "naïve")):
            at = place / unicodedata.normalize(form, name)
            at.mkdir(parents=True)
            for number in range(3):
                pattern(kind, seed + number).save(at / f"{number}.png")
        return place

    out = tmp_path / "index"
    build(open_sources([str(folder(tmp_path / "g", gallery_form, 0))]), out, load_ensemble(tiny), SETTINGS)
    version = IndexStore(out).open()
    retriever = Retriever.load(version, "cpu")
    queries = source_queries(
        version, retriever, open_sources([str(folder(tmp_path / "q", query_form, 50))]), out / "cache", SETTINGS
    )
    assert set(queries.labels) == set(version.gallery.labels) == {"café", "naïve"}
    for form in ("NFC", "NFD"):
        label = unicodedata.normalize(form, "café")
        assert version.gallery.row(f"{label}/1.png") == version.gallery.row("café/1.png")
        mask = version.gallery.mask(labels=[label])
        assert mask is not None
        assert mask.sum() == 3
