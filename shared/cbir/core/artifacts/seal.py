"""The seal of a version: its name, the checksum of its manifest, and whose word that is.

A manifest holds the checksums of all other files, so whoever knows the seal can prove every byte of a version.  The
seal lies beside the manifest, and CURRENT says the same of the live version, but for the signature::

    20260102T030405678Z-a1b2c3
    sha256 <64 hexadecimal digits>
    ed25519 <signature in base64>        not in CURRENT, and only where the version was signed

Indexes that were written before there were seals have the name alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, replace

from cbir.core.artifacts.signature import SigningKey, TrustedKeys

__all__ = ["SEAL_FILE", "VERSION_NAME", "Seal"]

#: Beside ``manifest.json``.
SEAL_FILE = "seal"
#: What a version may be called, as its name becomes a folder's.
VERSION_NAME = r"[0-9A-Za-z][0-9A-Za-z_.\-]{0,127}"

_TEXT = re.compile(
    rf"(?P<version>{VERSION_NAME})\n"
    r"(?:sha256 (?P<digest>[0-9a-f]{64})\n(?:ed25519 (?P<signature>[0-9A-Za-z+/=]{88})\n)?)?"
)


@dataclass(frozen=True)
class Seal:
    """What is said of a version.

    Attributes:
        version: The name of the version.
        digest: SHA-256 of its manifest in hexadecimal digits; None: written before there were seals.
        signature: 64 bytes, or None.
    """

    version: str
    digest: str | None = None
    signature: bytes | None = None

    @classmethod
    def of(cls, version: str, manifest: bytes, key: SigningKey | None = None) -> Seal:
        """The seal of a version with this manifest."""
        seal = cls(version, hashlib.sha256(manifest).hexdigest())
        return seal if key is None else seal.signed(key)

    @classmethod
    def parse(cls, data: bytes) -> Seal:
        """Read what :meth:`text` wrote.

        Raises:
            ValueError: It is something else, be it by one byte.
        """
        found = _TEXT.fullmatch(data.decode("ascii"))
        if found is None:
            raise ValueError("no seal")
        try:
            signature = base64.b64decode(found["signature"], validate=True) if found["signature"] else None
        except binascii.Error as error:
            raise ValueError(str(error)) from None
        seal = cls(found["version"], found["digest"], signature)
        if seal.text() != data.decode("ascii"):
            raise ValueError("no seal, as base64 has one way to write a signature")
        return seal

    def text(self) -> str:
        """The contents of CURRENT and of the seal's file."""
        lines = [self.version]
        if self.digest is not None:
            lines.append(f"sha256 {self.digest}")
        if self.signature is not None:
            lines.append(f"ed25519 {base64.b64encode(self.signature).decode()}")
        return "\n".join(lines) + "\n"

    def unsigned(self) -> Seal:
        """What CURRENT says of this version; a version may be signed anew while it is live."""
        return replace(self, signature=None)

    def signed(self, key: SigningKey) -> Seal:
        """The same under a signature."""
        return replace(self, signature=key.sign(self._message()))

    def is_trusted(self, keys: TrustedKeys) -> bool:
        """Whether one of the keys signed it."""
        return self.digest is not None and self.signature is not None and keys.verify(self.signature, self._message())

    def _message(self) -> bytes:
        return f"cbir index version\n{self.version}\n{self.digest}\n".encode()
