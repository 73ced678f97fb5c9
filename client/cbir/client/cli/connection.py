"""The options of every command that calls a server, completed by the environment and the user's file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cbir.client.cli.argument_types import number
from cbir.client.cli.configuration import setting, settings_of

if TYPE_CHECKING:
    from cbir.client import Client

__all__ = ["add_connection_arguments", "connect", "connection"]

_TARGET, _TIMEOUT = "localhost:50051", 10.0


def add_connection_arguments(parser: argparse.ArgumentParser, timeout: float = _TIMEOUT) -> None:
    """Declare the arguments; ``timeout`` is what :func:`connection` is given too."""
    group = parser.add_argument_group(
        "connection",
        "What is left out is taken from the environment (CBIR_TARGET, CBIR_TIMEOUT, CBIR_PROXY, CBIR_TLS, CBIR_TLS_CA, "
        "CBIR_TLS_CERT, CBIR_TLS_KEY, CBIR_TOKEN_FILE or CBIR_TOKEN), then from ~/.config/cbir/config.toml (target, "
        "token_file, ...; CBIR_CONFIG names another file).",
    )
    group.add_argument("--target", metavar="HOST:PORT", help=f"the server's address (default: {_TARGET})")
    group.add_argument(
        "--timeout", metavar="S", type=number(above=0, what="a number of seconds"),
        help=f"seconds to wait for an answer (default: {timeout:g})",
    )  # fmt: skip
    group.add_argument(
        "--proxy", metavar="URL", help="HTTP proxy for a server elsewhere; '' for none (default: as http_proxy says)"
    )
    group.add_argument(
        "--tls", action="store_true", default=None, help="connect by TLS, to a server that this system trusts"
    )
    group.add_argument("--tls-ca", metavar="FILE", help="connect by TLS; authority of the server's certificate (PEM)")
    group.add_argument("--tls-cert", metavar="FILE", help="own certificate, for servers that ask for one (PEM)")
    group.add_argument("--tls-key", metavar="FILE", help="private key of --tls-cert (PEM)")
    group.add_argument("--token-file", metavar="FILE", help="file that holds the token to show")
    parser.set_defaults(usage_error=parser.error)


def connection(
    args: argparse.Namespace, environment: Mapping[str, str] | None = None, timeout: float = _TIMEOUT
) -> dict[str, Any]:
    """What :class:`cbir.client.Client` takes for these arguments.

    Args:
        environment: In place of this process's.
        timeout: Seconds for a call where nothing says otherwise.

    Raises:
        ValueError: They contradict each other, or a file holds no token or no settings.
        OSError: A file cannot be read.
    """
    # Imported here, so that help and wrong usage do not wait for gRPC.
    from cbir.client import Tls, Token

    known = settings_of(environment)
    settings: dict[str, Any] = {
        "target": setting("target", args.target, known, _TARGET),
        "timeout": setting("timeout", args.timeout, known, timeout),
        "proxy": setting("proxy", args.proxy, known),
    }
    ca, certificate, key = (
        setting(name, getattr(args, name), known) or None for name in ("tls_ca", "tls_cert", "tls_key")
    )
    if setting("tls", args.tls, known) or ca or certificate or key:
        settings["tls"] = Tls(ca, certificate, key)
    if file := setting("token_file", args.token_file, known):
        settings["token"] = Token(file=file)
    elif text := known.get("token"):
        settings["token"] = Token(text)
    return settings


def connect(args: argparse.Namespace) -> Client:
    """A client for these arguments; ends the program with wrong usage where there can be none."""
    from cbir.client import Client

    try:
        return Client(**connection(args))
    except (ValueError, TypeError, OSError) as error:
        args.usage_error(str(error))
        raise
