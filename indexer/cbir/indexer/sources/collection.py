"""All sources of one command, opened by name and seen as one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cbir.core.errors import SourceError
from cbir.core.files import MAX_BYTES, nfc, read_uri
from cbir.indexer.sources.archive import TarSource, ZipSource
from cbir.indexer.sources.folder import FolderSource
from cbir.indexer.sources.image import ScanProblem, Source, SourceImage
from cbir.indexer.sources.manifest import ManifestSource
from cbir.indexer.sources.metadata_limit import MetadataLimit
from cbir.indexer.sources.names import image_extensions

__all__ = ["Sources", "open_sources"]

#: File extension -> source.  A new kind of source is one class and one line here.
KINDS: dict[str, Callable[[Path, Sequence[str]], Source]] = {
    ".zip": ZipSource,
    ".tar": TarSource,
    ".csv": ManifestSource,
    ".tsv": ManifestSource,
    ".parquet": ManifestSource,
}

_COMPRESSED_TAR = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$", re.IGNORECASE)


class Sources:
    """One or more sources.

    Args:
        max_bytes: Largest image file that is read, in bytes.

    Attributes:
        problems: What the last :meth:`scan` passed over: folders that cannot be read, broken links, pictures of
            formats that are not read, rows without a path.
    """

    def __init__(self, sources: Sequence[Source], max_bytes: int = MAX_BYTES) -> None:
        self._sources = tuple(sources)
        self._max_bytes = max_bytes
        self.problems: list[ScanProblem] = []

    def scan(self) -> list[SourceImage]:
        """Find all images, in the order of the sources.

        Raises:
            SourceError: ``SOURCE_EMPTY``, ``SOURCE_FORMAT``, ``SOURCE_UNREADABLE``, or ``SOURCE_DUPLICATE_ID`` when
                two images of several sources or of a manifest have the same id.
        """
        self.problems = []
        images: dict[str, SourceImage] = {}
        for source in self._sources:
            before = len(images)
            limit = MetadataLimit()
            twins: list[ScanProblem] = []
            own: set[str] = set()
            for image in source.scan():
                if len(self._sources) > 1 and not source.names_ids:
                    image = dataclasses.replace(image, id=f"{nfc(source.name)}/{image.id}")
                other = images.get(image.id)
                if other is not None:
                    if image.id not in own or isinstance(source, ManifestSource):
                        raise _duplicate(image, other)
                    # Names that differ in the spelling of their accents alone: one file, copied between systems.
                    twins.append(ScanProblem(image.uri, f"its name means the same as that of {other.uri}: rename one"))
                    continue
                own.add(image.id)
                images[image.id] = limit.apply(image)
            # Pictures left out are told before single files, of which there may be many.
            self.problems.extend((*source.problems, *twins, *limit.problems()))
            if len(images) == before:
                raise _empty(source)
        return list(images.values())

    def read(self, image: SourceImage) -> bytes:
        """Return the bytes of an image.  Thread-safe.

        Raises:
            ImageError: ``IMAGE_UNREADABLE`` or ``IMAGE_TOO_LARGE``.
        """
        return read_uri(image.uri, max_bytes=self._max_bytes)


def open_sources(names: Sequence[str], *, exclude: Sequence[str] = (), max_bytes: int = MAX_BYTES) -> Sources:
    """Open every SOURCE that a user named: a folder, ``.zip``, ``.tar``, ``.csv``, ``.tsv`` or ``.parquet``.

    Args:
        exclude: Patterns of files and folders that are left out; one without a slash is matched against names, one
            with a slash against paths below the source.
        max_bytes: Largest image file that is read, in bytes.

    Raises:
        SourceError: ``SOURCE_NOT_FOUND``, ``SOURCE_FORMAT`` or ``SOURCE_REMOTE``.
    """
    if not names:
        raise SourceError("no source was named: give a folder of images", reason="SOURCE_NOT_FOUND")
    return Sources([_open(name, exclude) for name in names], max_bytes)


def _open(name: str, exclude: Sequence[str]) -> Source:
    path = _local_path(name)
    if path.is_dir():
        return FolderSource(path, exclude)
    if not path.exists():
        message = f"there is no folder or file {name}: check the path (it was looked for at {path})"
        raise SourceError(message, reason="SOURCE_NOT_FOUND", source=name)
    if _COMPRESSED_TAR.search(path.name):
        message = (
            f"{name} is a compressed tar, in which no image can be addressed: unpack it, or store it as plain .tar"
        )
        raise SourceError(message, reason="SOURCE_FORMAT", source=name)
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        what = "a single image" if path.suffix.lower() in image_extensions() else "of no known kind"
        message = f"{name} is {what}: a source is a folder or a {', '.join(KINDS)} file"
        raise SourceError(message, reason="SOURCE_FORMAT", source=name)
    return kind(path, exclude)


def _local_path(name: str) -> Path:
    if "://" in name:
        url = urlsplit(name)
        if url.scheme != "file":
            message = f"{name} is not on this machine: copy it to a local folder first"
            raise SourceError(message, reason="SOURCE_REMOTE", source=name)
        name = unquote(url.path)
    try:
        # Not resolve(): a link that the user named is the name that stays when its target moves.
        path = Path(name).expanduser().absolute()
    except RuntimeError:  # "~name" of a user that does not exist
        path = Path(name).absolute()
    return path.resolve() if ".." in path.parts else path


def _duplicate(image: SourceImage, other: SourceImage) -> SourceError:
    message = (
        f"two images have the id '{image.id}' ({other.uri} and {image.uri}): name each source once, "
        "rename one, or list them in a manifest with ids of their own"
    )
    return SourceError(message, reason="SOURCE_DUPLICATE_ID", image_id=image.id)


def _empty(source: Source) -> SourceError:
    kinds = ", ".join(sorted(image_extensions()))
    message = f"the source {source.name} holds no image that can be read (looked for {kinds})"
    if isinstance(source, FolderSource):
        archives = sorted(path.name for path in source.path.iterdir() if path.suffix.lower() in KINDS)
        if archives:
            message += f"; it holds {archives[0]}: give that as the source"
    if source.problems:
        message += f"; {source.problems[0].uri}: {source.problems[0].reason}"
    return SourceError(message, reason="SOURCE_EMPTY", source=source.name)
