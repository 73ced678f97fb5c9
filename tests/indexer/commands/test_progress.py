"""Progress where it goes into a log."""

from __future__ import annotations

import io

from rich.console import Console

from cbir.indexer.build import Progress
from cbir.indexer.commands.console import _Lines


def test_a_log_tells_no_estimate_before_there_is_one_and_then_ever_more_seldom() -> None:
    now = 0.0
    written = io.StringIO()
    lines = _Lines(Console(file=written, width=200), clock=lambda: now)
    lines(Progress("scan", 0, 0))
    for second in range(120):
        now = float(second)
        done = 1 + 10 * second
        # The first image took long, as a model was compiled for it.
        lines(Progress("embed", done, 2000, 0.02 if done == 1 else 10.0, 92_103.0 if done == 1 else (2000 - done) / 10))
    told = written.getvalue().splitlines()
    assert told[:2] == ["scan", "embed 2000 images"]
    assert told[2] == "embed 51/2000 (10 images/s, about 3 min left)"
    assert [int(line.split()[1].partition("/")[0]) for line in told[2:]] == [51, 151, 351, 751]
    assert "92103" not in written.getvalue()


def test_a_stage_that_has_hardly_begun_keeps_quiet() -> None:
    now = 0.0
    written = io.StringIO()
    lines = _Lines(Console(file=written, width=200), clock=lambda: now)
    for second, done in ((0, 1), (10, 2), (20, 19), (30, 25)):
        now = float(second)
        lines(Progress("embed", done, 2000, 1.0, 1980.0))
    assert written.getvalue().splitlines() == ["embed 2000 images", "embed 25/2000 (1 images/s, about 33 min left)"]
