"""Fingerprints: identify a member's raw embeddings, for the cache and to check an index against an ensemble."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from cbir.core.ensemble.spec import MemberSpec
from cbir.core.errors import EnsembleError
from cbir.core.files import file_sha256
from cbir.core.images import CROP_VERSION, Crop

__all__ = ["member_fingerprint"]


@lru_cache(maxsize=64)
def _remembered_sha256(path: str, size: int, mtime_ns: int) -> str:
    del size, mtime_ns  # only part of the cache's key
    return file_sha256(Path(path))


def member_fingerprint(member: MemberSpec, crop: Crop, crop_version: int = CROP_VERSION) -> str:
    """The digest of everything that determines a member's raw embeddings: weights, architecture, preprocessing, crop.

    Two members with equal fingerprints give the same raw embedding for the same bytes.  Projection, weight and index
    are applied later and do not count; neither does the path of the weights file.

    Args:
        crop_version: That of an earlier release gives the fingerprint that it would have given.

    Returns:
        32 hexadecimal digits.
    """
    weights = f"tag:{member.weights}" if member.weights else "random"
    if file := member.weights_file:
        digest = hashlib.sha256()
        # An OpenVINO IR is two files: the graph (.xml) and the weights (.bin).
        for part in (file, file.with_suffix(".bin")) if file.suffix == ".xml" else (file,):
            if not part.is_file():
                raise EnsembleError(
                    f"the weights file {part} of member {member.name!r} is not there: put it back or name another",
                    reason="WEIGHTS_NOT_FOUND",
                )
            status = part.stat()
            found = _remembered_sha256(str(part), status.st_size, status.st_mtime_ns)
            if part == file and member.sha256 not in (None, found):
                raise EnsembleError(
                    f"{file} (member {member.name!r}) has the SHA-256 {found}, not {member.sha256} as the ensemble "
                    "file asks: install the release that the ensemble was made for",
                    reason="WEIGHTS_MISMATCH",
                )
            digest.update(found.encode())
        weights = f"sha256:{digest.hexdigest()}"
    identity = {
        "backend": member.backend,
        "model": member.model,
        "weights": weights,
        "options": dict(member.options),
        "input": {k: v for k, v in vars(member.input).items() if v is not None},
        "crop": [str(crop), crop_version],
        **({"mirror": True} if member.mirror else {}),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
