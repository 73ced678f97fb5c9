"""A collection as the search sees it: the rows that it proposes for a query, and the vectors of single rows.

Vectors come back as they were sent: float16 values, which float32 holds without rounding.  So scores that are computed
from them here are those of a search in this process's memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.errors import ArtifactError
from cbir.core.milvus.collection import Collection, member_field
from cbir.core.milvus.connection import MilvusConnection
from cbir.core.milvus.filters import expression, rows_in
from cbir.core.search import MAX_DEPTH, inner_products
from cbir.core.vote import Conditions

__all__ = ["RemoteVectors"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Bytes of vectors that are kept once fetched, and that one call fetches.
_CACHE_BYTES, _CALL_BYTES = 256 * 2**20, 4 * 2**20


class RemoteVectors:
    """Implements :class:`cbir.core.search.GalleryMatrix` and :class:`cbir.core.search.Proposer`."""

    def __init__(self, connection: MilvusConnection, collection: Collection, cache_bytes: int = _CACHE_BYTES) -> None:
        self._to, self._collection = connection, collection
        self.stops = tuple(itertools.accumulate((dim for _, dim in collection.members), initial=0))
        width = 4 * self.stops[-1]
        self._kept = np.empty((max(1, min(len(self), cache_bytes // width)), self.stops[-1]), np.float32)
        self._place: dict[int, int] = {}
        #: The row that each place holds, in the order in which they are given up.
        self._held: list[int] = []
        self._next = 0
        self._a_call = max(1, _CALL_BYTES // width)

    def __len__(self) -> int:
        return self._collection.rows

    def propose(self, queries: Floats, members: Sequence[int], depth: int, conditions: Conditions | None) -> list[Rows]:
        """See :class:`cbir.core.search.Proposer`; one round trip for all members, unless the lists are too long."""
        chosen = expression(conditions)
        if len(members) * depth > MAX_DEPTH:
            lists = [self._search(queries[:, self._part(m)], m, depth, chosen) for m in members]
        else:
            lists = [self._hybrid(queries, members, depth, chosen)]
        return [np.unique(np.concatenate([one[b] for one in lists])) for b in range(len(queries))]

    def best(
        self, queries: Floats, count: int, allowed: NDArray[np.bool_] | None = None, member: int | None = None
    ) -> tuple[Rows, Floats]:
        """See :class:`cbir.core.search.GalleryMatrix`; for one query and one member, and without a filter."""
        assert member is not None
        assert allowed is None
        rows = self._search(queries, member, min(count, MAX_DEPTH), "")[0][None]
        return rows, queries @ self.vectors_of(rows[0])[:, self._part(member)].T

    def similarities(self, rows: Rows, queries: Floats) -> Floats:
        """See :class:`cbir.core.search.GalleryMatrix`."""
        wanted, places = np.unique(np.maximum(rows, 0), return_inverse=True)
        return inner_products(self.vectors_of(wanted), places.reshape(rows.shape), queries, self.stops)

    def vectors_of(self, rows: Rows) -> Floats:
        """See :class:`cbir.core.search.GalleryMatrix`."""
        wanted = [int(row) for row in rows]
        result = np.empty((len(wanted), self.stops[-1]), np.float32)
        missing: dict[int, list[int]] = {}
        for i, row in enumerate(wanted):
            place = self._place.get(row)
            if place is None:
                missing.setdefault(row, []).append(i)
            else:
                result[i] = self._kept[place]
        for start in range(0, len(missing), self._a_call):
            for row, vector in self._fetch(list(missing)[start : start + self._a_call]):
                result[missing[row]] = vector
                self._keep(row, vector)
        return result

    def _fetch(self, rows: Sequence[int]) -> list[tuple[int, Floats]]:
        fields = [member_field(m) for m in range(len(self._collection.members))]
        found = self._ask("query", filter=rows_in(rows), output_fields=["row", *fields])
        if {int(one["row"]) for one in found} != set(rows):
            raise self._gone()
        return [(int(o["row"]), np.concatenate([np.asarray(o[f], np.float32) for f in fields])) for o in found]

    def _keep(self, row: int, vector: Floats) -> None:
        if row in self._place:
            return
        if len(self._held) < len(self._kept):
            place = len(self._held)
            self._held.append(row)
        else:
            place, self._next = self._next, (self._next + 1) % len(self._kept)
            del self._place[self._held[place]]
            self._held[place] = row
        self._place[row] = place
        self._kept[place] = vector

    def _hybrid(self, queries: Floats, members: Sequence[int], depth: int, chosen: str) -> list[Rows]:
        from pymilvus import AnnSearchRequest, RRFRanker

        asked = [
            AnnSearchRequest(
                list(queries[:, self._part(m)]), member_field(m), self._params(depth), depth, expr=chosen or None
            )
            for m in members
        ]  # fmt: skip
        # The order does not matter, as all rows are scored again; the limit lets every proposal through.
        limit = min(len(self), len(members) * depth)
        found = self._ask("hybrid_search", asked, RRFRanker(), limit=limit, output_fields=["row"])
        return [_rows(one) for one in found]

    def _search(self, parts: Floats, m: int, depth: int, chosen: str) -> list[Rows]:
        found = self._ask(
            "search", data=list(parts), anns_field=member_field(m), limit=depth, filter=chosen, output_fields=["row"],
            search_params=self._params(depth),
        )  # fmt: skip
        return [_rows(one) for one in found]

    def _part(self, m: int) -> slice:
        return slice(self.stops[m], self.stops[m + 1])

    def _params(self, depth: int) -> dict[str, Any]:
        wider = {"ef": min(32768, 2 * depth)} if self._collection.kind == "HNSW" else {}
        return {"metric_type": "IP", "params": wider}

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._to.call(method, self._collection.name, *args, **kwargs)
        except KeyError:
            raise self._gone() from None

    def _gone(self) -> ArtifactError:
        return ArtifactError(
            f"the collection {self._collection.name} of Milvus at {self._to.name} lost rows or was dropped while it "
            "was searched: load the live version with a reload, or index again with --rebuild",
            reason="STORE_MISSING",
        )


def _rows(found: Any) -> Rows:
    # The client makes a dictionary of every hit that is looked at; numbers alone are wanted.
    ids = getattr(found, "ids", None)
    return np.array([one["row"] for one in found] if ids is None else ids, np.int64)
