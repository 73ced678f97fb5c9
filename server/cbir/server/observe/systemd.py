"""What systemd is told: that the server is ready, that it lives, that it stops.

The protocol is a line a message to the datagram socket that ``NOTIFY_SOCKET`` names; see sd_notify(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

__all__ = ["Notifier"]


class Notifier:
    """Tells systemd, where it has asked to be told; otherwise nobody.

    Attributes:
        watchdog_seconds: How often it wants to hear that the server lives, half of what it waits; None: never.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        known = os.environ if environment is None else environment
        self._address = known.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # a name without a file
            self._address = "\0" + self._address[1:]
        microseconds, process = known.get("WATCHDOG_USEC", ""), known.get("WATCHDOG_PID", "")
        meant = process in ("", str(os.getpid()))
        self.watchdog_seconds = (
            int(microseconds) / 2e6 if microseconds.isdecimal() and meant and self._address else None
        )

    def ready(self, status: str) -> None:
        """It answers from now on."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, text: str) -> None:
        """What ``systemctl status`` shows."""
        self._send(f"STATUS={text}")

    def alive(self) -> None:
        """It does what it should."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """It ends what is under way."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if self._address:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.sendto(text.encode(), self._address)
