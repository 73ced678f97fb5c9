"""The options of every command that calls a server: TLS and tokens, from the command line or the environment."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import Any

from cbir.client._credentials import Tls, Token

__all__ = ["add_connection_arguments", "connection"]


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    group = parser.add_argument_group(
        "connection", "the environment's CBIR_TLS_CA, CBIR_TLS_CERT, CBIR_TLS_KEY and CBIR_TOKEN_FILE (or CBIR_TOKEN) "
        "count where an option is left out",
    )  # fmt: skip
    group.add_argument("--tls", action="store_true", help="connect by TLS, to a server that this system trusts")
    group.add_argument("--tls-ca", metavar="FILE", help="connect by TLS; authority of the server's certificate (PEM)")
    group.add_argument("--tls-cert", metavar="FILE", help="own certificate, for servers that ask for one (PEM)")
    group.add_argument("--tls-key", metavar="FILE", help="private key of --tls-cert (PEM)")
    group.add_argument("--token-file", metavar="FILE", help="file that holds the token to show")


def connection(args: argparse.Namespace, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What :class:`cbir.client.Client` takes for these arguments.

    Raises:
        ValueError: They contradict each other, or a file holds no token.
        OSError: A file cannot be read.
    """
    known = os.environ if environment is None else environment
    ca = args.tls_ca or known.get("CBIR_TLS_CA")
    certificate, key = args.tls_cert or known.get("CBIR_TLS_CERT"), args.tls_key or known.get("CBIR_TLS_KEY")
    settings: dict[str, Any] = {}
    if args.tls or ca or certificate or key:
        settings["tls"] = Tls(ca or None, certificate or None, key or None)
    file, text = args.token_file or known.get("CBIR_TOKEN_FILE"), known.get("CBIR_TOKEN")
    if file:
        settings["token"] = Token(file=file)
    elif text:
        settings["token"] = Token(text)
    return settings
