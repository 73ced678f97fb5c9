"""The answer to one query."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cbir.client._display import notebook, tables
from cbir.client._display.pictures import Pictures
from cbir.client._results import Box, Hit, LabelPrediction, Timings

if TYPE_CHECKING:
    import pandas
    import pyarrow

__all__ = ["SearchResult"]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The answer to one query; its length and its items are those of ``hits``.

    A notebook shows it with small pictures of the hits, which are fetched from the server then.

    Attributes:
        hits: The hits, best first.
        labels: The classes the query most likely belongs to, best first; empty when the gallery has no labels.
        crop: The part of the query image that was embedded, in pixels of the image; ``None`` if the query was not one.
        index_version: The version of the index that answered.
        timings: Time that the server spent on each stage.
    """

    hits: tuple[Hit, ...]
    labels: tuple[LabelPrediction, ...]
    crop: Box | None
    index_version: str
    timings: Timings
    _pictures: Pictures = field(default=Pictures(None), repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def to_pandas(self) -> pandas.DataFrame:
        """The hits as a ``DataFrame``, one row a hit.

        Its columns: ``rank``, ``image_id``, ``label``, ``score``, ``fused_score``, ``label_contribution``, ``uri``; of
        each member ``vote.NAME`` (its contribution), ``similarity.NAME`` and ``rank.NAME``; and ``metadata.COLUMN``.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        return tables.data_frame(self.hits)

    def to_arrow(self) -> pyarrow.Table:
        """The hits as a PyArrow ``Table``, with the columns of :meth:`to_pandas`.

        Raises:
            ModuleNotFoundError: PyArrow is not installed.
        """
        return tables.arrow_table(self.hits)

    def _repr_html_(self) -> str:
        pictures = self._pictures.fetch((hit.image_id for hit in self.hits[: notebook.HITS_SHOWN]), notebook.SIDE)
        return notebook.page(self.hits, self.labels, self.index_version, pictures)
