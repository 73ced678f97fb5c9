"""Ed25519 signatures: who published an index, for those who serve it on another machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbir.core.errors import ConfigurationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["SigningKey", "TrustedKeys"]

_LARGEST_KEY_FILE = 64 * 2**10
_OTHERS = 0o077


class SigningKey:
    """A private key that signs what is published."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def read(cls, path: Path) -> SigningKey:
        """Read a PEM file, as ``openssl genpkey -algorithm ed25519`` writes it, without a password.

        Raises:
            ConfigurationError: ``KEY_UNUSABLE``: no such file, another kind of key, or others may read it.
        """
        data = _read(path)
        if path.stat().st_mode & _OTHERS:
            raise ConfigurationError(
                f"others than its owner may read the private key {path}: run `chmod 600 {path}`", reason="KEY_UNUSABLE"
            )
        serialization, ed25519, crypto_errors = _cryptography()
        try:
            key = serialization.load_pem_private_key(data, None)
        except crypto_errors as error:
            raise _no_key(path, "private", error) from error
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise _no_key(path, "private", "it is of another kind")
        return cls(key)

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(message)


class TrustedKeys:
    """Public keys, of which any one may have signed: old and new while keys are changed."""

    def __init__(self, keys: Sequence[Ed25519PublicKey]) -> None:
        self._keys = tuple(keys)

    @classmethod
    def read(cls, paths: Sequence[Path]) -> TrustedKeys:
        """Read PEM files, as ``openssl pkey -pubout`` writes them.

        Raises:
            ConfigurationError: ``KEY_UNUSABLE``.
        """
        keys = []
        for path in paths:
            data = _read(path)
            serialization, ed25519, crypto_errors = _cryptography()
            try:
                key = serialization.load_pem_public_key(data)
            except crypto_errors as error:
                raise _no_key(path, "public", error) from error
            if not isinstance(key, ed25519.Ed25519PublicKey):
                raise _no_key(path, "public", "it is of another kind")
            keys.append(key)
        return cls(keys)

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether one of the keys signed this message."""
        from cryptography.exceptions import InvalidSignature

        for key in self._keys:
            try:
                key.verify(signature, message)
            except InvalidSignature:
                continue
            return True
        return False


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > _LARGEST_KEY_FILE:
                raise _no_key(path, "", "it is too large for one")
            return file.read(_LARGEST_KEY_FILE)
    except OSError as error:
        raise ConfigurationError(f"the key {path} cannot be read ({error.strerror})", reason="KEY_UNUSABLE") from error


def _no_key(path: Path, kind: str, why: object) -> ConfigurationError:
    detail = " ".join(str(why).split())[:120]
    return ConfigurationError(
        f"{path} is no {f'{kind} ' if kind else ''}Ed25519 key in PEM ({detail}): make one with `openssl genpkey "
        "-algorithm ed25519`, and its public half with `openssl pkey -pubout`",
        reason="KEY_UNUSABLE",
    )


def _cryptography() -> tuple[Any, Any, tuple[type[Exception], ...]]:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "signatures need the package cryptography: pip install 'ensemble-cbir[sign]'", reason="EXTRA_MISSING"
        ) from error
    return serialization, ed25519, (ValueError, TypeError, UnsupportedAlgorithm)
