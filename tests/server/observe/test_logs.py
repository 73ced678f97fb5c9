"""The server's log: harmless to a terminal, or one JSON object a line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from cbir.server.observe import configure_logs


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_cannot_be_forged_nor_the_terminal_coloured(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs()
    logging.getLogger("cbir.test").warning("file %s", "\x1b[31mred\nERROR root: forged\r\u202e")
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert "\x1b" not in written
    assert "\u202e" not in written
    assert "\\x1b[31mred\\nERROR root: forged\\r\\u202e" in written


def test_a_traceback_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs()
    try:
        raise ValueError("bad")
    except ValueError:
        logging.getLogger("cbir.test").exception("it failed")
    lines = capsys.readouterr().err.splitlines()
    assert "it failed" in lines[0]
    assert lines[1].startswith("Traceback")
    assert lines[-1] == "ValueError: bad"


def test_json_lines_carry_what_a_record_carries(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("json")
    extra = {"request_id": "r-1", "seconds": 0.25}
    logging.getLogger("cbir.test").warning("a query took %d ms", 250, extra=extra)
    logging.getLogger("cbir.test").error("two\nlines")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["message"] == "a query took 250 ms"
    assert first["level"] == "WARNING"
    assert first["logger"] == "cbir.test"
    assert first["request_id"] == "r-1"
    assert first["seconds"] == 0.25
    assert first["time"]
    assert second["message"] == "two\nlines"


def test_extras_stand_behind_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs()
    logging.getLogger("cbir.test").warning("slow", extra={"request_id": "r-2", "reason": "X"})
    assert capsys.readouterr().err.rstrip().endswith("slow (request_id=r-2, reason=X)")
