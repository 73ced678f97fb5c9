"""The gate before every method: who has no token for it is turned away before a byte of his request is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

import grpc

from cbir.core.errors import CbirError
from cbir.server.access.tokens import Grant, Scope, TokenFile

__all__ = ["GRANT", "AccessError", "Gate", "ScopeError", "Signpost"]

#: What the call that runs now was let in by; None without tokens.
GRANT: ContextVar[Grant | None] = ContextVar("cbir_grant", default=None)

_LONGEST = 4096
_BEARER = "bearer "

Refuse = Callable[[Any, BaseException], Awaitable[Any]]


class AccessError(CbirError):
    """There is no token, or none that is known and still good."""


class ScopeError(CbirError):
    """The token is good, but not for this; or this is not done here."""


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets calls in by their token.

    Args:
        tokens: Those that are known.
        scopes: What each method asks for, by its full name (``/package.Service/Method``); None: nothing.  A method
            that is not listed is left to the server, which knows it or does not.
        refuse: Ends a call with an error.
    """

    def __init__(self, tokens: TokenFile, scopes: Mapping[str, Scope | None], refuse: Refuse) -> None:
        self._tokens, self._scopes, self._refuse = tokens, scopes, refuse

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """See :class:`grpc.aio.ServerInterceptor`."""
        try:
            self._check(_method(details), details.invocation_metadata)
        except (AccessError, ScopeError) as error:
            return _refusal(self._refuse, error)
        return await continuation(details)

    def _check(self, method: str, metadata: Any) -> None:
        scope = self._scopes.get(method)
        if scope is None:
            return
        token = _bearer(metadata)
        if token is None:
            raise AccessError(
                "this server wants a token: send it as metadata `authorization: Bearer TOKEN`", reason="TOKEN_MISSING"
            )
        grant = self._tokens.find(token)
        if grant is None:
            raise AccessError("the token is not known here: ask for a new one", reason="TOKEN_UNKNOWN")
        if grant.is_expired:
            raise AccessError(f"the token {grant.name} has expired: ask for a new one", reason="TOKEN_EXPIRED")
        if scope not in grant.scopes:
            raise ScopeError(
                f"the token {grant.name} is not good for this: it has {', '.join(sorted(grant.scopes))}, and this "
                f"needs {scope}",
                reason="SCOPE_MISSING",
            )
        GRANT.set(grant)


class Signpost(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Refuses methods that exist, but on another listener.

    Args:
        elsewhere: These methods, and what to say of each.
        refuse: As for :class:`Gate`.
    """

    def __init__(self, elsewhere: Mapping[str, str], refuse: Refuse) -> None:
        self._elsewhere, self._refuse = elsewhere, refuse

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """See :class:`grpc.GenericRpcHandler`."""
        told = self._elsewhere.get(_method(details))
        return None if told is None else _refusal(self._refuse, ScopeError(told, reason="ADMIN_ELSEWHERE"))


def _method(details: grpc.HandlerCallDetails) -> str:
    return details.method.decode() if isinstance(details.method, bytes) else str(details.method)


def _refusal(refuse: Refuse, error: CbirError) -> grpc.RpcMethodHandler:
    async def answer(_: object, context: grpc.aio.ServicerContext) -> None:
        await refuse(context, error)

    # As a stream of requests, of which none is waited for: gRPC would read a whole one first otherwise.
    return grpc.stream_stream_rpc_method_handler(answer)


def _bearer(metadata: Any) -> str | None:
    for name, value in metadata or ():
        if name == "authorization" and isinstance(value, str) and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip() if len(value) <= _LONGEST else None
    return None
