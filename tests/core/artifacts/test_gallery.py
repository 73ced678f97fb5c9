"""The gallery's rows: labels, twins, and the masks of filters."""

from __future__ import annotations

import numpy as np
import pytest

from cbir.core.artifacts import Gallery, GalleryImage
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
