"""The audit log: who had what changed, and what came of it.  One JSON object a line, on the logger ``cbir.audit``."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

__all__ = ["audit"]

_log = logging.getLogger("cbir.audit")


def audit(action: str, identity: str, outcome: str, **facts: Any) -> None:
    """Note what was done in whose name.

    Args:
        action: Such as ``ReloadIndex``.
        identity: Of :func:`cbir.server.access.identity_of`, or ``signal`` or ``watch`` for what no call asked for.
        outcome: ``done``, ``unchanged``, or the reason of the refusal.
    """
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "action": action, "identity": identity}
    _log.info("%s", json.dumps(line | {"outcome": outcome} | facts, ensure_ascii=True))
