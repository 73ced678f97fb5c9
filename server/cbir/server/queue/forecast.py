"""How long the queue takes, from what the last queries took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from time import monotonic

from cbir.server.queue.admission import OverloadedError
from cbir.server.queue.flight import Flight

__all__ = ["Forecast", "Pace"]


#: Part of the time which a query has that the queue may be expected to take.  A forecast errs, most of all where a
#: flood takes cores from the engine, and what is answered too late has cost as much as what comes in time.
_SURE = 0.75


class Pace:
    """How long a stage takes for one query lately: a moving average that follows the last hundred or so."""

    def __init__(self, seconds_each: float) -> None:
        self.seconds_each = seconds_each

    def add(self, seconds: float, count: int = 1) -> None:
        """Note that ``count`` queries took ``seconds`` together."""
        keep = 0.98**count
        self.seconds_each = keep * self.seconds_each + (1 - keep) * seconds / count


class Forecast:
    """Counts what is under way, and knows the pace.

    Args:
        threads: That decode.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        # Guesses until there is something to go by.
        self.heavy, self.light, self.decode = Pace(0.01), Pace(0.001), Pace(0.01)
        # A query is answered when its batch is, which is longer than its own turn.
        self.batch_seconds = 0.0
        self.heavies = 0
        self.lights = 0
        # Nobody waits for those whose images take long: they have threads of their own.
        self.slows = 0
        self._pressed_since: float | None = None

    @property
    def under_way(self) -> int:
        """Queries that are admitted and not yet answered."""
        return self.heavies + self.lights + self.slows

    def count(self, flight: Flight, by: int) -> None:
        """Note that a query comes (1) or goes (-1)."""
        if flight.is_slow:
            self.slows += by
        elif flight.is_heavy:
            self.heavies += by
        else:
            self.lights += by

    def note_batch(self, flights: Sequence[Flight], seconds: float) -> None:
        """Note how long a finished batch took.

        Where queries waited already when the batch before it ended, that is at least the time since then.
        """
        now = monotonic()
        if self._pressed_since is not None:
            seconds = max(seconds, now - self._pressed_since)
        self._pressed_since = now if self.under_way else None
        self.batch_seconds += 0.2 * (seconds - self.batch_seconds)
        heavies = sum(flight.is_heavy for flight in flights)
        if heavies:
            self.heavy.add(seconds, heavies)
        else:
            self.light.add(seconds, len(flights))

    def wait(self) -> float:
        """Seconds until what is admitted now should be done."""
        engine = self.heavies * self.heavy.seconds_each + self.lights * self.light.seconds_each
        return max(engine, self.heavies * self.decode.seconds_each / self._threads)

    def check(self, flight: Flight, mine: float, held: Iterable[float]) -> None:
        """Refuse what would only expire in the queue.

        An idle server refuses nothing: what it measured last may be out of date.

        It is told as overload, with the time that the queue needs, which is more than the caller has: a client that
        heeds it does not come again in vain, and may ask another server while there is time.  DEADLINE_EXCEEDED would
        be untrue as yet, and would put the blame on the query.

        Args:
            mine: What of its own identity's work comes before the query.
            held: Costs that all identities hold, this one included.

        Raises:
            OverloadedError: ``DEADLINE_UNREACHABLE``.
        """
        if flight.deadline is None or not self.under_way:
            return
        left = flight.deadline - monotonic()
        most = _SURE * left
        wait = self.wait() + max(
            (self.heavy if flight.is_heavy else self.light).seconds_each, self.batch_seconds / 2
        )  # fmt: skip
        if wait < most:
            return
        # Identities take turns: only so much of each comes before this query.
        costs, mine = list(held), mine + flight.cost
        wait *= min(1.0, (sum(min(cost, mine) for cost in costs) + flight.cost) / (sum(costs) + flight.cost))
        if wait >= most:
            raise _unreachable(wait, left)

    def check_unread(self, deadline: float | None) -> None:
        """As :meth:`check`, for a query that is not read yet: it may be the lightest, of one who has nothing else.

        Raises:
            OverloadedError: ``DEADLINE_UNREACHABLE``.
        """
        if deadline is None or not self.under_way:
            return
        left = deadline - monotonic()
        # It joins the next batch at best, and a batch of heavy queries may be followed by a short one.
        wait = self.light.seconds_each
        if wait >= left:
            raise _unreachable(wait, left)


def _unreachable(wait: float, left: float) -> OverloadedError:
    # In steps, so that a flood gets few different answers, each of which is written once.
    step = 0.1 if left > 0.5 else 0.01
    wait = step * ceil(max(wait, 0.0) / step - 1e-9)
    return OverloadedError(
        f"the queue needs about {wait:.2f} seconds and the query has {step * int(max(left, 0.0) / step):.2f} left, "
        "which is too close: give it more time, or come again when there is less to do",
        round(wait, 2) + 0.01,
        "DEADLINE_UNREACHABLE",
    )
