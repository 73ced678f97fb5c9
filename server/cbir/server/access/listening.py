"""Where the server listens, and what it takes to be let in there."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cbir.core.errors import ConfigurationError
from cbir.server.access.tls import ServerTls

__all__ = ["Access", "Listener"]


@dataclass(frozen=True)
class Listener:
    """An address to listen on: ``host:port`` (port 0 takes any free one) or ``unix:PATH``."""

    host: str = "127.0.0.1"
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Listener:
        """Read ``host:port``, ``[address]:port`` or ``unix:PATH``.

        Raises:
            ValueError: It is none of these.
        """
        if text.startswith("unix:"):
            return cls("", 0, Path(text.removeprefix("unix:")))
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"{text!r} is no address: give host:port or unix:PATH")
        return cls(host.strip("[]"), int(port))

    def address(self, port: int) -> str:
        """What gRPC calls it, with the port that was taken."""
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def try_it(self) -> None:
        """Bind and let go again: gRPC does not tell why it could not bind.  Blocks.

        Raises:
            ConfigurationError: ``PORT_IN_USE`` or ``ADDRESS_UNUSABLE``.
        """
        if self.path is not None:
            _clear_socket(self.path)
        else:
            _try_address(self.host, self.port)

    def taken(self) -> ConfigurationError:
        """Somebody was faster between the trial and now."""
        return _unusable(self.host or str(self.path), self.port, errno.EADDRINUSE, "")


@dataclass(frozen=True)
class Access:
    """Who is let in.

    Attributes:
        tls: Speak TLS; None: in the clear.
        tokens: The file of tokens; None asks for none.
        admin: Where admin calls are taken; None: on loopback, at the port after the public one (any, if that is any).
        expose: Of ``health`` and ``reflection``, what the public listener tells everybody.
        insecure: Listen beyond this machine though anybody could be let in, or listen in on it.
    """

    tls: ServerTls | None = None
    tokens: Path | None = None
    admin: Listener | None = None
    expose: frozenset[str] = field(default_factory=lambda: frozenset({"health"}))
    insecure: bool = False

    def admin_beside(self, public: Listener) -> Listener:
        """Where admin calls are taken beside a public listener."""
        return self.admin or Listener("127.0.0.1", public.port + 1 if 0 < public.port < 65535 else 0)

    def check(self, listener: Listener) -> None:
        """Refuse to listen where strangers could come in or listen in.

        Raises:
            ConfigurationError: ``INSECURE``.
        """
        if listener.is_local or self.insecure:
            return
        known = self.tokens is not None or (self.tls is not None and self.tls.client_ca is not None)
        missing = [
            *([] if self.tls else ["TLS (--tls-cert, --tls-key)"]),
            *([] if known else ["tokens (--tokens) or certificates of clients (--tls-client-ca)"]),
        ]
        if missing:
            raise ConfigurationError(
                f"{listener.host} can be reached from other machines, and there is no {' and no '.join(missing)}: give "
                "them, listen on 127.0.0.1, or let everybody in with --insecure",
                reason="INSECURE",
            )


def _clear_socket(path: Path) -> None:
    """Remove the socket of a server that has ended, and refuse anything else in its place."""
    try:
        mode = path.stat(follow_symlinks=False).st_mode
    except FileNotFoundError:
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise _unusable(str(path), 0, None, "its folder is not there, or may not be written") from None
        return
    if not stat.S_ISSOCK(mode):
        raise _unusable(str(path), 0, None, "something else is there")
    with socket.socket(socket.AF_UNIX) as trial:
        if trial.connect_ex(str(path)) == 0:
            raise _unusable(str(path), 0, errno.EADDRINUSE, "")
    path.unlink(missing_ok=True)


def _try_address(host: str, port: int) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(
            f"the host {host!r} is not known ({error.strerror}): give --host an address of this machine",
            reason="ADDRESS_UNUSABLE",
        ) from error
    failures: list[OSError] = []
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as trial:
                # As servers do: connections of a server that has just ended do not count.
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
                trial.listen(1)
        except OSError as error:
            failures.append(error)
    # A name may stand for addresses of which this machine has only some; but all that it has must be free.
    taken = [error for error in failures if error.errno == errno.EADDRINUSE]
    if taken or len(failures) == len(found):
        first = (taken or failures)[0]
        raise _unusable(host, port, first.errno, first.strerror or "") from first


def _unusable(host: str, port: int, number: int | None, detail: str) -> ConfigurationError:
    where = f"port {port} on {host}" if port or not host.startswith("/") else f"the socket {host}"
    if number == errno.EADDRINUSE:
        return ConfigurationError(
            f"{where} is in use: stop the program that listens there, or give another --port or --admin "
            "(port 0 takes any free one)",
            reason="PORT_IN_USE",
            port=port,
        )
    return ConfigurationError(
        f"{where} cannot be listened on ({detail.lower()}): give another --host, --port or --admin",
        reason="ADDRESS_UNUSABLE",
        port=port,
    )
