"""The outcomes of the requests of a load: when each was due, sent and done, and how it ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from numpy.typing import NDArray

__all__ = ["Failure", "Outcomes", "Recorder", "details_of"]

#: Calls beyond the limit of a connection, and beyond the list of those that wait for the server.
_TURNED_AWAY = ("UNAVAILABLE", "CANCELLED")
_STATUS_DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True)
class Failure:
    """Why a request got no answer.

    Attributes:
        code: Name of the gRPC status.
        reason: Reason in its ErrorInfo; the code if there is none.
        retry_info: Whether it says when to try again (RetryInfo).
    """

    code: str
    reason: str
    retry_info: bool


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of N requests, in the order in which they ended.  Times are seconds by :func:`time.perf_counter`.

    Attributes:
        due: (N,) when each was to be sent; in a closed loop, when it was sent.
        sent: (N,) when it was sent.
        done: (N,) when its answer or failure arrived.
        place: (N,) number of the sender, 0..concurrency - 1, in a closed loop; in an open loop all numbers differ.
        failures: By row, the requests that failed; all others were answered.
    """

    due: NDArray[np.float64]
    sent: NDArray[np.float64]
    done: NDArray[np.float64]
    place: NDArray[np.int64]
    failures: Mapping[int, Failure]

    def __len__(self) -> int:
        return len(self.done)

    @property
    def answered(self) -> NDArray[np.bool_]:
        """(N,) whether each was answered."""
        result = np.ones(len(self), bool)
        result[list(self.failures)] = False
        return result

    @property
    def refused(self) -> NDArray[np.bool_]:
        """(N,) whether each was refused for overload, in words."""
        result = np.zeros(len(self), bool)
        result[[row for row, failure in self.failures.items() if failure.code == "RESOURCE_EXHAUSTED"]] = True
        return result

    @property
    def turned_away(self) -> NDArray[np.bool_]:
        """(N,) whether the server's transport did not let each in, in a load that cancels nothing itself."""
        result = np.zeros(len(self), bool)
        result[[row for row, failure in self.failures.items() if failure.code in _TURNED_AWAY]] = True
        return result

    @property
    def latencies(self) -> NDArray[np.float64]:
        """(N,) seconds from when each was due, so that time it could not be sent in counts as waiting too."""
        return self.done - self.due

    def picked(self, wanted: NDArray[np.bool_]) -> Outcomes:
        """The outcomes selected by a mask (N,)."""
        rows = np.flatnonzero(wanted)
        failures = {new: self.failures[old] for new, old in enumerate(rows.tolist()) if old in self.failures}
        return Outcomes(self.due[rows], self.sent[rows], self.done[rows], self.place[rows], failures)

    @classmethod
    def merged(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """The outcomes of several loads of the same kind; numbers of senders are shifted so that they stay distinct."""
        failures: dict[int, Failure] = {}
        places, rows, used = [], 0, 0
        for part in parts:
            failures |= {rows + row: failure for row, failure in part.failures.items()}
            places.append(part.place + used)
            rows += len(part)
            used += 1 + int(part.place.max(initial=0))
        due, sent, done = (np.concatenate([getattr(part, name) for part in parts]) for name in ("due", "sent", "done"))
        return cls(due, sent, done, np.concatenate(places), failures)

    def errors(self) -> dict[str, int]:
        """The number of failures by reason."""
        return dict(Counter(failure.reason for failure in self.failures.values()))


class Recorder:
    """Records outcomes while a load runs; cheap, as its cost adds to the generator's.

    Args:
        most_replies: How many answers are kept as bytes.
    """

    def __init__(self, most_replies: int = 2000) -> None:
        self._most = most_replies
        self._rows: list[tuple[float, float, float, int]] = []
        self._failed: list[tuple[int, str, bytes]] = []
        self.replies: list[bytes] = []

    def answer(self, due: float, sent: float, done: float, place: int, reply: bytes) -> None:
        """Record an answer."""
        self._rows.append((due, sent, done, place))
        if len(self.replies) < self._most:
            self.replies.append(reply)

    def fail(self, due: float, sent: float, done: float, place: int, code: str, details: bytes) -> None:
        """Record a failure.

        Args:
            code: Name of the gRPC status.
            details: The serialised ``google.rpc.Status``; empty if there is none.
        """
        self._failed.append((len(self._rows), code, details))
        self._rows.append((due, sent, done, place))

    def outcomes(self) -> Outcomes:
        """Everything recorded so far."""
        columns = np.array(self._rows, np.float64).reshape(-1, 4)
        failures = {row: _failure(code, details) for row, code, details in self._failed}
        return Outcomes(columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3].astype(np.int64), failures)


def details_of(metadata: Sequence[tuple[str, str | bytes]] | None) -> bytes:
    """The serialised ``google.rpc.Status`` in a call's trailing metadata; empty where there is none."""
    return next((bytes(value) for key, value in metadata or () if key == _STATUS_DETAILS), b"")  # type: ignore[arg-type]


def _failure(code: str, details: bytes) -> Failure:
    status = status_pb2.Status.FromString(details)
    reason, retry = code, False
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason = info.reason
        retry = retry or detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    return Failure(code, reason, retry)
