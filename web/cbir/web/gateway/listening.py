"""A socket that listens, and the HTTP server behind it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from cbir.core.errors import ConfigurationError
from cbir.web.gateway.settings import Settings

__all__ = ["Listening"]

_BACKLOG = 128


class _Server(uvicorn.Server):
    """Leaves signals to the command."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listening:
    """Listens from the moment it is made.

    Raises:
        ConfigurationError: The address cannot be listened on.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server: uvicorn.Server | None = None
        self._ended = False
        self._socket = _listen(settings.host, settings.port)
        self.port: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host = self._socket.getsockname()[0]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not listened on
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    async def serve(self, app: ASGIApp) -> None:
        """Answer until :meth:`stop`."""
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=self._settings.connections,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=5,
        )
        server = self._server = _Server(config)
        server.should_exit = self._ended
        await server.serve([self._socket])

    def stop(self) -> None:
        """Answer what is under way, take nothing new; may come before :meth:`serve`."""
        self._ended = True
        if self._server is not None:
            self._server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"the page cannot listen on {host} port {port} ({error.strerror}): choose another --port, or 0 for any",
            reason="PORT_UNAVAILABLE",
            host=host,
            port=port,
        ) from error
    return listening
