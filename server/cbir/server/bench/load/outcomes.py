"""What became of the requests of a load: when each was due, sent and done, and how it ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from numpy.typing import NDArray

__all__ = ["Failure", "Outcomes", "Recorder", "details_of"]

_STATUS_DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True)
class Failure:
    """Why a request got no answer.

    Attributes:
        code: Name of the gRPC status.
        reason: Of its ErrorInfo; the code where there is none.
        retry_info: It says when to try again.
    """

    code: str
    reason: str
    retry_info: bool


@dataclass(frozen=True)
class Outcomes:
    """N requests, in the order in which they ended.

    Attributes:
        due: (N,) when each was to be sent, in seconds on one clock.  In a closed loop that is when it was sent.
        sent: (N,) when it was sent.
        done: (N,) when its answer, or its failure, was there.
        place: (N,) which of the loop's requests in flight it was; in an open loop they are all different.
        failures: By row; the others were answered.
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
        """(N,) which were answered."""
        result = np.ones(len(self), bool)
        result[list(self.failures)] = False
        return result

    @property
    def refused(self) -> NDArray[np.bool_]:
        """(N,) which were refused for overload."""
        result = np.zeros(len(self), bool)
        result[[row for row, failure in self.failures.items() if failure.code == "RESOURCE_EXHAUSTED"]] = True
        return result

    @property
    def latencies(self) -> NDArray[np.float64]:
        """(N,) seconds from when each was due: a request that could not be sent in time has waited all the same."""
        return self.done - self.due

    def picked(self, wanted: NDArray[np.bool_]) -> Outcomes:
        """The rows of a mask (N,)."""
        rows = np.flatnonzero(wanted)
        failures = {new: self.failures[old] for new, old in enumerate(rows.tolist()) if old in self.failures}
        return Outcomes(self.due[rows], self.sent[rows], self.done[rows], self.place[rows], failures)

    @classmethod
    def merged(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """Those of several loads of the same kind; the places of different loads stay different ones."""
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
        """How many failed, by reason."""
        return dict(Counter(failure.reason for failure in self.failures.values()))


class Recorder:
    """Takes down outcomes while a load runs; cheap, as its cost is the generator's.

    Args:
        most_replies: Answers whose bytes are kept.
    """

    def __init__(self, most_replies: int = 2000) -> None:
        self._most = most_replies
        self._rows: list[tuple[float, float, float, int]] = []
        self._failed: list[tuple[int, str, bytes]] = []
        self.replies: list[bytes] = []

    def answer(self, due: float, sent: float, done: float, place: int, reply: bytes) -> None:
        """An answer came."""
        self._rows.append((due, sent, done, place))
        if len(self.replies) < self._most:
            self.replies.append(reply)

    def fail(self, due: float, sent: float, done: float, place: int, code: str, details: bytes) -> None:
        """A failure came.

        Args:
            code: Name of the gRPC status.
            details: The serialised ``google.rpc.Status``, if any.
        """
        self._failed.append((len(self._rows), code, details))
        self._rows.append((due, sent, done, place))

    def outcomes(self) -> Outcomes:
        """All that was taken down."""
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
