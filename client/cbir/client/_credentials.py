"""How a client shows who it is, and finds out whom it talks to."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import grpc

__all__ = ["Tls", "Token", "check_secrecy"]

_LOCAL = ("localhost:", "127.", "[::1]:", "unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D")
_LARGEST = 4096


@dataclass(frozen=True, slots=True)
class Tls:
    """A connection that is encrypted, to a server that has proved its name.

    Attributes:
        ca: File of the authority (PEM) that must have signed the server's certificate; None: those that this system
            trusts.
        certificate: File of the client's own certificate chain (PEM), for servers that ask for one.
        key: File of its private key (PEM).
        server_name: Name that the certificate must be of, where it is another than the target's.
    """

    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a client's certificate takes its key: give both certificate and key, or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            OSError: One cannot be read.
        """
        ca, certificate, key = (Path(p).read_bytes() if p else None for p in (self.ca, self.certificate, self.key))
        return grpc.ssl_channel_credentials(ca, key, certificate)


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token.

    Attributes:
        value: Its text; never shown.
        file: A file that holds it in place of ``value``, and is read at every call, so that it may be exchanged.
    """

    value: str | None = field(default=None, repr=False)
    file: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.value is None) == (self.file is None):
            raise ValueError("a token is either a text or a file that holds it: give one of value and file")
        self.header()

    def header(self) -> tuple[str, str]:
        """The metadata that shows it.

        Raises:
            OSError: Its file cannot be read.
            ValueError: It is empty, or cannot be sent.
        """
        text = self.value
        if self.file is not None:
            with open(self.file, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - any kind of path
                text = file.read(_LARGEST + 1).strip()
        if not text or len(text) > _LARGEST or not text.isascii() or not text.isprintable() or " " in text:
            source = f"the file {os.fspath(self.file)!r}" if self.file is not None else "the text"
            raise ValueError(f"{source} holds no token: give printable characters without spaces")
        return "authorization", f"Bearer {text}"


def check_secrecy(target: str, token: Token | None, encrypted: bool) -> None:
    """Refuse to send a token through a network in the clear.

    Raises:
        ValueError: So it would be.
    """
    if token is not None and not encrypted and not target.startswith(_LOCAL):
        raise ValueError(
            f"the token would be sent to {target} in the clear: give tls=Tls(...), or connect to this machine's own "
            "address"
        )
