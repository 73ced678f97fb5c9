"""Reloads that no call asked for: at a signal, or when another version goes live on the disk."""

from __future__ import annotations

import asyncio
import logging

from cbir.core.errors import CbirError
from cbir.server.access import audit
from cbir.server.deployment.deployment import Deployment

__all__ = ["reload_unasked", "watch"]

_log = logging.getLogger(__name__)


async def reload_unasked(deployment: Deployment, reason: str) -> bool:
    """Load the live version, and note in the log what came of it; a version that is broken leaves the old one.

    Args:
        reason: ``signal`` or ``watch``, for the audit log.

    Returns:
        Whether another version answers now.
    """
    try:
        done = await deployment.reload(None)
    except CbirError as error:
        audit("ReloadIndex", reason, error.reason)
        _log.error("the old version goes on answering: %s", error)
        return False
    audit("ReloadIndex", reason, "done" if done.changed else "unchanged", previous=done.previous, version=done.version)
    return done.changed


async def watch(deployment: Deployment, every: float) -> None:
    """Look whether another version has gone live, and load it.  Runs until it is cancelled.

    Args:
        every: Seconds between two looks.  CURRENT is read each time: folders of other machines tell of no changes.
    """
    refused: str | None = None
    while True:
        await asyncio.sleep(every)
        try:
            live = await asyncio.to_thread(deployment.live_version)
        except CbirError as error:
            _log.warning("%s", error)
            continue
        if live in (deployment.engine.version, refused):
            continue
        # What was refused is not tried again before something else goes live.
        refused = None if await reload_unasked(deployment, "watch") else live
