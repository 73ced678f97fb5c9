"""Hits as a table of one row a hit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cbir.client._results import Hit

__all__ = ["arrow_table", "columns", "data_frame"]

_FACTS = ("image_id", "label", "score", "fused_score", "label_contribution", "uri")


def columns(hits: Sequence[Hit]) -> dict[str, list[Any]]:
    """The columns of the table by name, each with one value for every hit.

    Beside the facts of each hit, from its ``rank`` on, ``vote.MEMBER`` is what a member added to the score,
    ``similarity.MEMBER`` its cosine similarity, ``rank.MEMBER`` its own rank, and ``metadata.COLUMN`` what the gallery
    tells of the image; None where a hit has no such thing.
    """
    table: dict[str, list[Any]] = {"rank": list(range(1, len(hits) + 1))}
    table |= {name: [getattr(hit, name) for hit in hits] for name in _FACTS}
    votes = [{vote.member: vote for vote in hit.votes} for hit in hits]
    for member in dict.fromkeys(name for row in votes for name in row):
        for column, fact in (("vote", "contribution"), ("similarity", "similarity"), ("rank", "rank")):
            values = [getattr(row[member], fact) if member in row else None for row in votes]
            table[f"{column}.{member}"] = values
    for name in sorted({name for hit in hits for name in hit.metadata}):
        table[f"metadata.{name}"] = [hit.metadata.get(name) for hit in hits]
    return table


def data_frame(hits: Sequence[Hit]) -> Any:
    """A pandas ``DataFrame``.

    Raises:
        ModuleNotFoundError: pandas is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise _missing("to_pandas()", "pandas", error) from error
    return pandas.DataFrame(columns(hits))


def arrow_table(hits: Sequence[Hit]) -> Any:
    """A PyArrow ``Table``.

    Raises:
        ModuleNotFoundError: PyArrow is not installed.
    """
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise _missing("to_arrow()", "pyarrow", error) from error
    # The types of what is always there are told, so that tables of no hits have them too.
    kinds = {"rank": pyarrow.int64(), "score": pyarrow.float64(), "fused_score": pyarrow.float64(),
             "label_contribution": pyarrow.float64()}  # fmt: skip
    texts = ("image_id", "label", "uri")
    return pyarrow.table({
        name: pyarrow.array(values, kinds.get(name) or (pyarrow.string() if name in texts else None))
        for name, values in columns(hits).items()
    })  # fmt: skip


def _missing(method: str, package: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"{method} needs {package}: pip install {package}", name=error.name)
