"""The gallery's rows: labels, twins, and the masks of filters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cbir.core.artifacts import Gallery, GalleryImage, gallery_batches, read_gallery, write_gallery
from cbir.core.errors import QueryError, UnknownImageError
from cbir.core.images import Box


def image(name: str, label: str | None = None, **metadata: str) -> GalleryImage:
    return GalleryImage(name, f"/x/{name}", label, 8, 8, name * 2, 2**63 + 5, Box(0, 0, 8, 8), "s", metadata)


def test_gallery_rows_labels_and_masks() -> None:
    gallery = Gallery.from_images(
        [image("a", "cat", year="1999"), image("b", None), image("c", "ant", year="2001"), image("d", "cat")]
    )
    assert gallery.labels == ["ant", "cat"]
    assert gallery.label_codes.tolist() == [1, -1, 0, 1]
    assert gallery[0] == next(gallery.images()) == image("a", "cat", year="1999")
    assert gallery.row("c") == 2
    assert gallery.rows_with_sha256("dd") == [3]
    assert gallery.mask() is None

    def mask(**conditions: object) -> list[int]:
        return np.flatnonzero(gallery.mask(**conditions)).tolist()  # type: ignore[arg-type]

    assert mask(labels=["cat"]) == [0, 3]
    assert mask(exclude_labels=["cat"]) == [1, 2]
    assert mask(labels=["cat", "ant"], metadata={"year": ["1999", "2001"]}) == [0, 2]
    with pytest.raises(UnknownImageError):
        gallery.row("z")
    with pytest.raises(QueryError, match="label 'dog'"):
        gallery.mask(labels=["dog"])
    with pytest.raises(QueryError, match="metadata column 'size'"):
        gallery.mask(metadata={"size": ["1"]})


def test_ids_in_any_order_and_spelling_are_found(tmp_path: Path) -> None:
    names = ["b", "a", "e\N{COMBINING ACUTE ACCENT}", "c"]
    gallery = Gallery.from_images(image(name) for name in names)
    gallery.write(tmp_path / "images.parquet")
    for known in (gallery, Gallery.read(tmp_path / "images.parquet")):
        assert known.ids == names
        assert (known.ids[-1], known.ids[1:3]) == ("c", names[1:3])
        assert [known.row(name) for name in names] == [0, 1, 2, 3]
        assert known.row("\N{LATIN SMALL LETTER E WITH ACUTE}") == 2
        assert known.rows_with_sha256("aa") == [1]
        assert known.rows_with_sha256("") == []


def test_a_table_is_written_and_read_a_few_rows_at_a_time(tmp_path: Path) -> None:
    images = [image(f"{number:06}", f"class{number % 3}") for number in range(20_000)]
    write_gallery(tmp_path / "images.parquet", gallery_batches(images))
    batches = list(read_gallery(tmp_path / "images.parquet", ["id", "label"]))
    assert max(batch.num_rows for batch in batches) < 10_000
    assert [name for batch in batches for name in batch.column("id").to_pylist()] == [one.id for one in images]
    assert list(Gallery.read(tmp_path / "images.parquet").images()) == images
