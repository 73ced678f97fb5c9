"""Under whose name a call waits its turn."""

from __future__ import annotations

import grpc

from cbir.server.access.gate import GRANT
from cbir.server.queue import Lane

__all__ = ["CLIENT_ID", "caller_lane", "identity_of"]

#: Metadata by which a caller divides his share among his own clients, or gathers several connections into one.
CLIENT_ID = "x-client-id"
_LONGEST = 64


def identity_of(context: grpc.aio.ServicerContext) -> str:
    """Who calls, by what he cannot choose at will: his token's name, his certificate's, or the address he comes from.

    The port is left out: another connection costs nothing.
    """
    if (grant := GRANT.get()) is not None:
        return f"token:{grant.name}"
    if names := context.peer_identities():
        return f"certificate:{names[0].decode(errors='replace')}"
    return _address(str(context.peer()))


def caller_lane(context: grpc.aio.ServicerContext) -> Lane:
    """Whose turn a call takes: the caller's, and there that of the client that he names, else of the connection."""
    client = None
    for name, value in context.invocation_metadata() or ():
        if name == CLIENT_ID:
            client = str(value)[:_LONGEST]
    return Lane(identity_of(context), str(context.peer()) if client is None else client)


def _address(peer: str) -> str:
    """``ipv4:192.0.2.1:50000`` without its port."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
