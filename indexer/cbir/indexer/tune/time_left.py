"""Progress of tuning: what is done, and an estimate of how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable

from cbir.indexer.build import Progress

__all__ = ["TimeLeft"]

Counter = Callable[[int, int], None]


class TimeLeft:
    """Reports progress; the rest is estimated from the time that score tables and votes have taken so far.

    It is only an estimate: a search may need fewer votes than planned, or more for a light member.

    Args:
        trials: Number of votes that one search measures.
    """

    def __init__(self, report: Callable[[Progress], None], trials: int, clock: Callable[[], float] = time.monotonic):
        self._report, self._clock = report, clock
        #: Votes still to be measured, in units of one vote on all queries: two searches on all, and one on each half.
        self._votes_to_come = 3.0 * trials
        self._tables_to_come = 2.0
        self._queries = 0
        self._votes_done = self._tables_done = 0.0
        self._vote_seconds = self._table_seconds = 0.0

    def tell(self, stage: str, done: int, total: int) -> None:
        """Report a step that takes little time."""
        self._report(Progress(stage, done, total, seconds_left=self._left()))

    def table(self, stage: str) -> Counter:
        """A callback for the making of a score table, called with the splits done and the splits in total."""
        start, before = self._clock(), (self._tables_done, self._table_seconds, self._tables_to_come)

        def count(done: int, total: int) -> None:
            self._tables_done = before[0] + done / total
            self._table_seconds = before[1] + self._clock() - start
            self._tables_to_come = max(0.0, before[2] - done / total)
            self.tell(stage, done, total)

        return count

    def votes(self, stage: str, queries: int) -> Counter:
        """A callback for a search, called with the votes done and the votes in total.

        Args:
            queries: Number of queries that each vote is measured on.
        """
        self._queries = max(self._queries, queries)
        share = queries / self._queries
        start, before = self._clock(), (self._votes_done, self._vote_seconds, self._votes_to_come)

        def count(done: int, total: int) -> None:
            self._votes_done = before[0] + share * done
            self._vote_seconds = before[1] + self._clock() - start
            self._votes_to_come = max(0.0, before[2] - share * done)
            self.tell(stage, done, total)

        return count

    def _left(self) -> float | None:
        """Seconds; None as long as there is nothing to estimate from."""
        if not self._votes_done:
            return None
        each_table = self._table_seconds / self._tables_done if self._tables_done else 0.0
        each_vote = self._vote_seconds / self._votes_done
        return self._tables_to_come * each_table + self._votes_to_come * each_vote
