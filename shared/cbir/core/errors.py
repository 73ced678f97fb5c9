"""The one exception tree of the indexer and the server.

CbirError
├── ImageError            the bytes are no image that may be used
├── SourceError           a SOURCE of images cannot be read
├── EnsembleError         an ensemble file, a model or its weights cannot be used
├── ArtifactError         an index on disk is absent, incomplete, damaged or of another ensemble
├── QueryError            a query's options cannot be met
│   └── UnknownImageError the query names an image that the gallery does not hold
├── ConfigurationError    a setting of this machine or command line cannot be met
└── StoreUnavailableError a store of vectors does not answer

Every message is one sentence that says what was wrong, with what value, and the way out.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "CbirError",
    "ConfigurationError",
    "EnsembleError",
    "ImageError",
    "QueryError",
    "SourceError",
    "StoreUnavailableError",
    "UnknownImageError",
    "forget_frames",
]


class CbirError(Exception):
    """Root of everything a user can cause.

    Attributes:
        reason: Stable UPPER_SNAKE name for programs; becomes ``google.rpc.ErrorInfo.reason``.
        metadata: Further facts by name.
    """

    def __init__(self, message: str, *, reason: str, **metadata: object) -> None:
        super().__init__(message)
        self.reason = reason
        self.metadata = {name: str(value) for name, value in metadata.items()}


class ImageError(CbirError):
    """The bytes are no image that may be used."""


class SourceError(CbirError):
    """A SOURCE of images cannot be read."""


class EnsembleError(CbirError):
    """An ensemble file, a model or its weights cannot be used."""


class ArtifactError(CbirError):
    """An index on disk is absent, incomplete, damaged or was made by another ensemble."""


class QueryError(CbirError):
    """A query's options cannot be met."""


class UnknownImageError(QueryError):
    """The query names an image that the gallery does not hold."""


class ConfigurationError(CbirError):
    """A setting of this machine or command line cannot be met."""


class StoreUnavailableError(CbirError):
    """A store of vectors does not answer; it may answer again."""


def forget_frames(error: BaseException) -> None:
    """Free what an error that has been dealt with still holds: the frames it came through, and all that was in them.

    Frames hold the error too, by a local variable or a future.  Such a circle, with the whole request in it, would stay
    until the garbage collector looks at the oldest objects, and in a server it seldom does.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        found = left.pop()
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            found.__traceback__ = None
            left += (found.__cause__, found.__context__)
