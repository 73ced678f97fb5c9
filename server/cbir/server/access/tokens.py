"""Bearer tokens: a file says which there are, what each may do and until when.

::

    [[tokens]]
    name = "shop"
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    scopes = ["search", "image"]
    expires = 2027-01-01T00:00:00Z       # optional

``sha256`` is that of the token's text (``printf %s "$TOKEN" | sha256sum``): tokens are drawn at random, so that no
slow hash is needed, and whoever reads the file cannot use them.  ``token = "..."`` in its place is the text itself;
then only its owner may read the file.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from time import monotonic
from typing import Any

from cbir.core.errors import ConfigurationError

__all__ = ["Grant", "Scope", "TokenFile"]

_log = logging.getLogger(__name__)

_LARGEST = 2**20
_MOST = 1000
_SHORTEST = 16
#: Seconds between two looks at whether the file has changed.
_LOOK_EVERY = 1.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@\-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_READ_BY_OTHERS, _WRITTEN_BY_OTHERS = 0o077, 0o022


class Scope(StrEnum):
    """What a token may be good for."""

    SEARCH = "search"
    IMAGE = "image"
    ADMIN = "admin"


@dataclass(frozen=True)
class Grant:
    """What one token allows.

    Attributes:
        name: Of the token: under this name its calls wait, and are written to the audit log.
        digest: SHA-256 of its text.
        expires: From then on it is refused; None: never.
    """

    name: str
    digest: bytes
    scopes: frozenset[Scope]
    expires: datetime | None = None

    @property
    def is_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and datetime.now(UTC) >= self.expires


class TokenFile:
    """The tokens of a file, which is read again when it changes.

    A file that is changed to something that cannot be read leaves the tokens as they were, and the log says why: a
    mistake in it neither lets anybody in nor shuts anybody out.

    Raises:
        ConfigurationError: ``TOKENS_UNUSABLE``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _stamp(path)
        self._grants = _read(path)
        self._look_at = monotonic() + _LOOK_EVERY

    def find(self, token: str) -> Grant | None:
        """The grant of a token, expired or not; None where there is none of it."""
        if monotonic() >= self._look_at:
            self._look_again()
        digest = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        found = None
        for grant in self._grants:
            # All are compared, each in a time that does not tell how much of it was right.
            if hmac.compare_digest(grant.digest, digest):
                found = grant
        return found

    def _look_again(self) -> None:
        self._look_at = monotonic() + _LOOK_EVERY
        stamp = _stamp(self._path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._grants = _read(self._path)
        except ConfigurationError as error:
            _log.error("the tokens stay as they were: %s", error)
        else:
            _log.warning("read %d tokens from %s", len(self._grants), self._path)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> tuple[Grant, ...]:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(_LARGEST + 1)
        tables = tomllib.loads(data.decode())
    except OSError as error:
        raise _unusable(path, f"cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        # The parser's own words could quote a token.
        raise _unusable(path, "is no valid TOML") from error
    if len(data) > _LARGEST:
        raise _unusable(path, f"has more than {_LARGEST:,} bytes")
    mode = stat.S_IMODE(status.st_mode)
    if mode & _WRITTEN_BY_OTHERS:
        raise _unusable(path, f"may be written by others than its owner: run `chmod go-w {path}`")
    entries = tables.get("tokens", [])
    if set(tables) - {"tokens"} or not isinstance(entries, list) or len(entries) > _MOST:
        raise _unusable(path, f"must hold at most {_MOST:,} tables [[tokens]] and nothing else")
    grants: list[Grant] = []
    for number, entry in enumerate(entries, 1):
        grant = _grant(path, number, entry, plain_allowed=not mode & _READ_BY_OTHERS)
        if any(other.name == grant.name or other.digest == grant.digest for other in grants):
            raise _unusable(path, f"has token {number} ({grant.name}) twice, by name or by text")
        grants.append(grant)
    return tuple(grants)


def _grant(path: Path, number: int, entry: Any, *, plain_allowed: bool) -> Grant:
    if not isinstance(entry, dict) or set(entry) - {"name", "sha256", "token", "scopes", "expires"}:
        raise _unusable(path, f"may say of token {number} its name, sha256 (or token), scopes and expires, no more")
    name, digest, text = entry.get("name"), entry.get("sha256"), entry.get("token")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _unusable(path, f"gives token {number} no name of letters, digits and '-_.@'")
    if (digest is None) == (text is None):
        raise _unusable(path, f"must give either sha256 or token for {name}")
    if text is not None:
        if not plain_allowed:
            raise _unusable(
                path, f"holds the text of {name} and may be read by others: run `chmod 600 {path}`, or give its sha256"
            )
        if not isinstance(text, str) or len(text) < _SHORTEST:
            raise _unusable(path, f"gives {name} a token of fewer than {_SHORTEST} characters: draw a longer one")
        digest = hashlib.sha256(text.encode()).hexdigest()
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise _unusable(path, f"gives {name} a sha256 that is not 64 hexadecimal digits")
    scopes = entry.get("scopes")
    if not isinstance(scopes, list) or not scopes or not all(scope in tuple(Scope) for scope in scopes):
        raise _unusable(path, f"must give {name} scopes, some of {', '.join(Scope)}")
    expires = entry.get("expires")
    if expires is not None and (not isinstance(expires, datetime) or expires.tzinfo is None):
        raise _unusable(path, f"gives {name} an end that is no date and time with a zone, such as 2027-01-01T00:00:00Z")
    return Grant(name, bytes.fromhex(digest), frozenset(Scope(scope) for scope in scopes), expires)


def _unusable(path: Path, problem: str) -> ConfigurationError:
    return ConfigurationError(f"the token file {path} {problem}", reason="TOKENS_UNUSABLE")
