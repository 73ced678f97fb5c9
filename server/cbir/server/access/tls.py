"""TLS: the server's certificate and key, and whose certificates it asks of its clients, from files that may change."""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc

from cbir.core.errors import ConfigurationError

__all__ = ["ServerTls"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerTls:
    """Files of PEM.

    Attributes:
        certificate: The server's, with those between it and the authority's behind it.
        key: Its private key.
        client_ca: Authorities of which one must have signed a client's certificate (mutual TLS); None asks for none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials that read the files again, when they have changed, at the next connection.

        Raises:
            ConfigurationError: ``TLS_UNUSABLE``.
        """
        current = _Current(self)
        return grpc.dynamic_ssl_server_credentials(
            current.load(), current.again, require_client_authentication=self.client_ca is not None
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.certificate, self.key, *((self.client_ca,) if self.client_ca else ()))


class _Current:
    """What the files said last."""

    def __init__(self, tls: ServerTls) -> None:
        self._tls = tls
        self._seen: tuple[tuple[int, ...], ...] = ()
        self._lock = threading.Lock()

    def load(self) -> grpc.ServerCertificateConfiguration:
        self._seen = self._stamps()
        _check(self._tls)
        try:
            key, chain = self._tls.key.read_bytes(), self._tls.certificate.read_bytes()
            roots = self._tls.client_ca.read_bytes() if self._tls.client_ca else None
        except OSError as error:
            raise _unusable(self._tls, error) from error
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=roots)

    def again(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC at every new connection; None: nothing has changed."""
        with self._lock:
            if self._stamps() == self._seen:
                return None
            try:
                configuration = self.load()
            except ConfigurationError as error:
                # A certificate that was changed before its key, for instance: the next look may find both.
                _log.error("the certificate stays as it was: %s", error)
                return None
            _log.warning("read the certificate %s anew", self._tls.certificate)
            return configuration

    def _stamps(self) -> tuple[tuple[int, ...], ...]:
        stamps: list[tuple[int, ...]] = []
        for path in self._tls.files:
            try:
                status = path.stat()
                stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
            except OSError:
                stamps.append(())
        return tuple(stamps)


def _check(tls: ServerTls) -> None:
    """Have Python's own library look at the files: gRPC does not say what is wrong with them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.certificate, tls.key, password="")
        if tls.client_ca:
            context.load_verify_locations(tls.client_ca)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise _unusable(tls, error) from error


def _unusable(tls: ServerTls, error: Exception) -> ConfigurationError:
    detail = " ".join(str(getattr(error, "strerror", None) or error).split())[:160]
    return ConfigurationError(
        f"TLS cannot be had with {', '.join(map(str, tls.files))} ({detail}): give a certificate and the key that "
        "belongs to it, in PEM and without a password",
        reason="TLS_UNUSABLE",
    )
