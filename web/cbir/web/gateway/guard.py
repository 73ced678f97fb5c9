"""Who may ask at all, and what every answer tells the browser to forbid."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cbir.web.gateway.refusal import Refusal, refused
from cbir.web.gateway.settings import Settings

__all__ = ["Guard"]

#: Scripts, styles, images and answers of this very page only; nothing inline, no frames around it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
#: Cannot be sent by a form, nor by a script of another site without a question that is never answered.
_MARK = "x-cbir-web"

Headers = Sequence[tuple[bytes, bytes]]


class Guard:
    """Stands before an application: lets in only requests of the page itself.

    Args:
        settings: Says under which names the page is asked.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, by the protocol ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if not any(name == b"content-security-policy" for name, _ in headers):
                    headers.append((b"content-security-policy", _POLICY.encode()))
                message = {**message, "headers": [*headers, *_HEADERS]}
            await send(message)

        try:
            self._check(scope["method"], scope["path"], scope["headers"])
        except Refusal as refusal:
            await refused(refusal)(scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        hosts = _values(headers, b"host")
        host = hosts[0] if len(hosts) == 1 else ""
        if not self._settings.answers_to(_name(host)):
            raise Refusal(
                421,
                "UNKNOWN_HOST",
                f"this page does not answer to the name {_name(host)!r}: start it with --allow-host if it should",
            )
        from_elsewhere = Refusal(403, "OTHER_SITE", "this was asked by another site: open the page itself")
        origins = _values(headers, b"origin")
        if any(_site(origin) != host.lower() for origin in origins):
            raise from_elsewhere
        if path.startswith("/api/"):
            # Browsers say where a request comes from; "none" is one that its user typed.
            if any(site not in ("same-origin", "none") for site in _values(headers, b"sec-fetch-site")):
                raise from_elsewhere
            if method not in ("GET", "HEAD") and _values(headers, _MARK.encode()) != ["1"]:
                raise Refusal(403, "NOT_THE_PAGE", f"a request that changes something needs the header {_MARK}: 1")


def _values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in headers if key == name]


def _name(host: str) -> str:
    """The name in a ``Host``, without the port; empty for what is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _site(origin: str) -> str:
    """The ``Host`` that goes with an ``Origin``; empty for what is none."""
    scheme, _, host = origin.lower().partition("://")
    return host if scheme in ("http", "https") else ""
