"""What 8-bit integers are calibrated with: the gallery's images, prepared as queries are."""

from __future__ import annotations

from typing import Any

import pytest

from cbir.core.artifacts import IndexStore, gallery_pictures
from cbir.core.errors import ImageError
from cbir.core.files import read_uri


def test_images_are_spread_over_the_gallery_and_unreadable_ones_left_out(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = IndexStore(tiny.index).open()
    images = gallery_pictures(version)(24, "bilinear")
    assert images.shape == (len(version.gallery), 24, 24, 3) == (65, 24, 24, 3)
    # Every one of the four colours is among the first few, which judge.
    assert len({tuple((image.mean(axis=(0, 1)) > 60).tolist()) for image in images[:16]}) >= 3

    def read(uri: str) -> bytes:
        if "red" in uri:
            raise ImageError("gone", reason="IMAGE_UNREADABLE")
        return read_uri(uri)

    monkeypatch.setattr("cbir.core.artifacts.calibration_pictures.read_uri", read)
    assert len(gallery_pictures(version)(24, "bilinear")) == 65 - 16
    monkeypatch.setattr("cbir.core.artifacts.calibration_pictures.read_uri", lambda uri: b"no image")
    assert gallery_pictures(version)(24, "bilinear").shape == (0, 24, 24, 3)
