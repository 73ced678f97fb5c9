"""What commands that call a server know beside their arguments: the environment, and a file of the user's.

``$CBIR_CONFIG``, else ``cbir/config.toml`` in ``$XDG_CONFIG_HOME`` or ``~/.config``::

    target = "gallery.example:50051"
    token_file = "/run/secrets/cbir-token"   # or token = "...", if only you may read this file
    timeout = 10
    proxy = ""                               # none
    tls_ca = "/etc/cbir/ca.pem"              # also: tls = true, tls_cert, tls_key

An argument comes before the environment, and the environment before the file.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["VARIABLES", "config_file", "setting", "settings_of"]

#: Setting -> the variable that comes before what the file says of it.
VARIABLES = {
    "target": "CBIR_TARGET",
    "proxy": "CBIR_PROXY",
    "timeout": "CBIR_TIMEOUT",
    "tls": "CBIR_TLS",
    "tls_ca": "CBIR_TLS_CA",
    "tls_cert": "CBIR_TLS_CERT",
    "tls_key": "CBIR_TLS_KEY",
    "token_file": "CBIR_TOKEN_FILE",
    "token": "CBIR_TOKEN",
}
_KINDS = {"timeout": (int, float), "tls": (bool,)}
_LARGEST = 2**16


def config_file(environment: Mapping[str, str]) -> Path:
    """Where the file is, or would be."""
    if chosen := environment.get("CBIR_CONFIG"):
        return Path(chosen)
    base = environment.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path("~/.config").expanduser()) / "cbir/config.toml"


def settings_of(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What environment and file say; a setting that neither names is left out.

    Raises:
        ValueError: The file cannot be used; the message says why.
        OSError: It cannot be read, though ``$CBIR_CONFIG`` names it.
    """
    known = os.environ if environment is None else environment
    found = _read(config_file(known), wanted="CBIR_CONFIG" in known)
    if known.get("CBIR_TOKEN") or known.get("CBIR_TOKEN_FILE"):
        # A token of the environment stands in place of the file's, whichever of the two ways each is given in.
        found.pop("token", None)
        found.pop("token_file", None)
    for name, variable in VARIABLES.items():
        if (value := known.get(variable)) is not None and (value or name == "proxy"):
            found[name] = _typed(name, value, variable)
    return found


def setting(name: str, given: Any, settings: Mapping[str, Any], default: Any = None) -> Any:
    """An argument if it was given, else what is set, else the default."""
    return given if given is not None else settings.get(name, default)


def _typed(name: str, value: str, variable: str) -> Any:
    if name == "tls":
        return value.lower() not in ("0", "false", "no", "off")
    if name == "timeout":
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{variable} is {value!r}: give a number of seconds") from None
    return value


def _read(file: Path, wanted: bool) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            data = opened.read(_LARGEST + 1)
    except FileNotFoundError:
        if wanted:
            raise
        return {}
    try:
        if len(data) > _LARGEST:
            raise ValueError("it is too large")
        table = tomllib.loads(data.decode())
    except (ValueError, RecursionError):
        # The parser's own words could quote a token.
        raise ValueError(
            f"the settings in {str(file)!r} cannot be read: write one NAME = VALUE a line (TOML)"
        ) from None
    for name, value in table.items():
        if name not in VARIABLES:
            raise ValueError(f"{str(file)!r} sets {name!r}, which is none of {', '.join(VARIABLES)}: correct the name")
        kinds = _KINDS.get(name, (str,))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            shown = "a number" if name == "timeout" else "true or false" if name == "tls" else "a text"
            raise ValueError(f"{name} in {str(file)!r} is no {shown.removeprefix('a ')}: give {shown}")
    if "token" in table and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ValueError(
            f"{str(file)!r} holds a token and may be read by others: run chmod 600, or set token_file there"
        )
    return table
