"""The options of a connection: small frozen values, checked when they are made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Compression", "Keepalive", "Limits", "Proxy", "checked", "number"]

_PROXY = re.compile(r"(http://)?[^/\s]+/?")


class Compression(StrEnum):
    """How requests are compressed. Images are compressed already; embeddings and long lists of ids are not."""

    NONE = "none"
    """Not at all."""
    DEFLATE = "deflate"
    """Deflate."""
    GZIP = "gzip"
    """Gzip."""


@dataclass(frozen=True, slots=True)
class Keepalive:
    """Pings that find out whether a connection still stands.

    Attributes:
        interval: Seconds between pings. By default servers close connections of clients that ping more often than every
            5 minutes.
        timeout: Seconds after which a connection whose ping is not answered is given up.
        idle: Whether to ping while no call is under way.
    """

    interval: float = 300.0
    timeout: float = 20.0
    idle: bool = False

    def __post_init__(self) -> None:
        for name in ("interval", "timeout"):
            number(f"keepalive {name}", getattr(self, name), "a positive number of seconds", above=0)


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest messages; larger ones are neither sent nor received.

    Attributes:
        sent_bytes: Of one request, and so of an image that is sent.
        received_bytes: Of one answer, and of an image that is fetched.
    """

    sent_bytes: int = 64 * 2**20
    received_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        for name in ("sent_bytes", "received_bytes"):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}: give a positive number of bytes")


@dataclass(frozen=True, slots=True)
class Proxy:
    """The HTTP proxy for servers elsewhere; a server on this machine is never asked through one.

    Attributes:
        url: Such as ``http://proxy:3128``; None: no proxy, whatever the environment says.
    """

    url: str | None = field(repr=False)

    def __post_init__(self) -> None:
        if self.url is not None and not (isinstance(self.url, str) and _PROXY.fullmatch(self.url)):
            raise ValueError(
                f"proxy is {self.url!r}: give the URL of an HTTP proxy, such as http://proxy:3128, or False for none"
            )


def number(name: str, value: object, what: str, above: float) -> None:
    """Check that a value is a number above another.

    Raises:
        TypeError: It is no number.
        ValueError: It is not above.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {value!r}: give {what}")
    if not value > above:
        raise ValueError(f"{name} is {value}: give {what}")


def checked(metadata: object) -> dict[str, str]:
    """Metadata that can be sent: names in lower case, values of printable ASCII.

    Raises:
        TypeError: It is no mapping of texts.
        ValueError: A name or value that gRPC does not send.
    """
    if metadata is None:
        return {}
    pairs: dict[Any, Any] = dict(metadata) if isinstance(metadata, Mapping) else {0: 0}
    if not all(isinstance(text, str) for pair in pairs.items() for text in pair):
        raise TypeError("metadata must map names to values, both texts, such as {'x-request-id': 'photo-7'}")
    for name, value in pairs.items():
        if not re.fullmatch(r"[0-9a-z_.\-]+", name):
            way = f"write {name.lower()!r}" if name != name.lower() else "use letters a to z, digits, '-', '_' and '.'"
            raise ValueError(f"the metadata name {name!r} cannot be sent: {way}")
        if name.startswith("grpc-") or name.endswith("-bin"):
            raise ValueError(f"the metadata name {name!r} is kept for gRPC or for bytes: choose another")
        if not value.isascii() or not value.isprintable():
            raise ValueError(f"the value of the metadata {name!r} cannot be sent: use printable ASCII letters alone")
    return pairs
