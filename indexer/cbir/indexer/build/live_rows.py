"""The rows of the live version, one after another, as far as a run compares them with what it finds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cbir.core.artifacts import IndexVersion

__all__ = ["LiveRow", "live_rows"]

_COLUMNS = ("id", "uri", "stamp", "sha256", "label", "metadata")


class LiveRow(NamedTuple):
    """One image of the live version."""

    number: int
    id: str
    uri: str
    stamp: str
    digest: bytes
    label: str | None
    metadata: dict[str, str]


def live_rows(version: IndexVersion | None) -> Iterator[LiveRow]:
    """All rows in the order of ids; none where there is no version.

    Rows out of that order, as only a foreign program writes them, end the stream: their images count as new, and are
    found in the cache by their bytes.
    """
    if version is None:
        return
    number, last = 0, ""
    for batch in version.table(_COLUMNS):
        for name, uri, stamp, digest, label, metadata in zip(
            *(batch.column(column).to_pylist() for column in _COLUMNS), strict=True
        ):
            if number and name <= last:
                return
            yield LiveRow(number, name, uri, stamp, bytes.fromhex(digest), label, dict(metadata))
            number, last = number + 1, name
