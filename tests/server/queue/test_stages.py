"""Between the engine and the event loop: what cannot be written fails the query whose answer it is, and no other."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from cbir.core.errors import QueryError
from cbir.server.engine import Timings
from cbir.server.limits import Limits
from cbir.server.queue.stages import Stages


def result(name: str, scores: Sequence[float] = ()) -> Any:
    return SimpleNamespace(name=name, ranking=SimpleNamespace(scores=scores), timings=Timings())


def write(results: Sequence[Any]) -> list[tuple[bytes, bytes]]:
    if any(one.name == "bad" for one in results):
        raise ValueError("cannot be written")
    return [(one.name.encode() + b"+", one.name.encode()) for one in results]


@pytest.fixture
def stages() -> Any:
    return Stages(Limits(), write, lambda *_: None)


def test_answers_are_written_together_and_refusals_stay_in_their_places(stages: Any) -> None:
    refused = QueryError("no such image", reason="UNKNOWN_IMAGE")
    written = stages._write([result("a", [0.75, 0.5]), refused, result("b")])
    assert written == [(b"a+", b"a", Timings(), 0.75), refused, (b"b+", b"b", Timings(), None)]
    assert stages._write([]) == []


def test_an_answer_that_cannot_be_written_fails_alone(stages: Any) -> None:
    first, bad, last = stages._write([result("a"), result("bad"), result("b")])
    assert (first[0], last[0]) == (b"a+", b"b+")
    assert isinstance(bad, ValueError)
