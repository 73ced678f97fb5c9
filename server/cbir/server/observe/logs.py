"""What the server writes to its log: lines for people, or one JSON object a line for programs."""

from __future__ import annotations

import logging
import sys

__all__ = ["FORMS", "configure_logs"]

#: Form of the log -> what it is.
FORMS = {"text": "lines for people", "json": "one JSON object a line"}
#: What a record of our own may carry beside its message.
_EXTRAS = ("request_id", "caller", "seconds", "stages", "outcome", "reason", "version")


class _Plain(logging.Formatter):
    """Text in which nothing from outside can move the cursor, colour the terminal or begin a line of its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        extras = [f"{name}={getattr(record, name)}" for name in _EXTRAS if hasattr(record, name)]
        text = f"{line} ({', '.join(extras)})" if extras else line
        # Tracebacks keep their lines; all else that is not printable is shown as an escape.
        kept = "\n" if record.exc_info else ""
        return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def configure_logs(form: str = "text", level: int = logging.WARNING) -> None:
    """Send the log of this process to standard error.

    Args:
        form: One of :data:`FORMS`.
    """
    handler = logging.StreamHandler(sys.stderr)
    formatter: logging.Formatter = _Plain()
    if form == "json":
        from pythonjsonlogger.json import JsonFormatter

        formatter = JsonFormatter(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        )
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
