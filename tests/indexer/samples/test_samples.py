"""The drawn samples are many, different, repeatable and parted for a fair measurement."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest

from cbir.core.images import decode_image
from cbir.indexer.samples import LABELS, write_split
from cbir.indexer.samples.sample_split import draw_sample, is_query, write_samples
from cbir.indexer.sources import open_sources


def test_there_are_enough_classes() -> None:
    assert len(LABELS) >= 12
    assert list(LABELS) == sorted(set(LABELS))


@pytest.mark.parametrize("label", LABELS)
def test_every_picture_is_another(label: str) -> None:
    pictures = [np.asarray(draw_sample(label, number), np.float32) for number in range(1, 7)]
    assert all(picture.shape == (256, 256, 3) for picture in pictures)
    for first in range(len(pictures)):
        assert pictures[first].std() > 15, "nothing was drawn"
        for second in range(first):
            assert np.abs(pictures[first] - pictures[second]).mean() > 5


def test_the_seed_decides() -> None:
    def digest(number: int, seed: int) -> str:
        return hashlib.sha256(draw_sample("cat", number, seed).tobytes()).hexdigest()

    assert digest(3, 0) == digest(3, 0)
    assert len({digest(3, 0), digest(4, 0), digest(3, 1)}) == 3


def test_write_samples(tmp_path: Path) -> None:
    files = write_samples(tmp_path, per_class=2)
    assert len(files) == 2 * len(LABELS)
    images = open_sources([str(tmp_path)]).scan()
    assert sorted({image.label for image in images if image.label}) == list(LABELS)
    assert {image.uri for image in images} == {str(file) for file in files}
    decoded = decode_image(files[0].read_bytes())
    assert (decoded.format, decoded.width, decoded.height) == ("JPEG", 256, 256)


def test_write_split_holds_every_fifth_out(tmp_path: Path) -> None:
    split = write_split(tmp_path, per_class=5)
    queries = [image.id for image in open_sources([str(split.queries)]).scan()]
    gallery = [image.id for image in open_sources([str(split.gallery)]).scan()]
    assert queries == [f"{label}/{label}-005.jpg" for label in LABELS]
    assert len(gallery) == 4 * len(LABELS)
    assert not set(queries) & set(gallery)
    assert [number for number in range(1, 31) if is_query(number)] == [5, 10, 15, 20, 25, 30]


def test_drawing_is_quick() -> None:
    start = time.process_time()
    for label in LABELS:
        draw_sample(label, 1)
    # 15 s for 16 x 30 is 31 ms each; twice that is allowed to a busy machine.
    assert (time.process_time() - start) / len(LABELS) < 0.062
