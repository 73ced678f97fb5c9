"""All sources of one command, opened by name and seen as one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from cbir.core.errors import SourceError
from cbir.core.files import MAX_BYTES, REMOTE_SCHEMES, is_remote, nfc, read_remote, read_uri, remote_files
from cbir.indexer.sources.archive import TarSource, ZipSource
from cbir.indexer.sources.folder import FolderSource
from cbir.indexer.sources.image import ScanProblem, Source, SourceImage
from cbir.indexer.sources.manifest import ManifestSource
from cbir.indexer.sources.metadata_limit import MetadataLimit
from cbir.indexer.sources.names import image_extensions
from cbir.indexer.sources.place import LocalPlace, Place, RemotePlace
from cbir.indexer.sources.remote_folder import RemoteFolder
from cbir.indexer.sources.shards import SHARD_KINDS, ShardSource, braces, shards_in
from cbir.indexer.sources.table_images import TableSource, holds_images

__all__ = ["Sources", "open_sources"]

#: File extension -> source.  A new kind of source is one class and one line here.
KINDS: dict[str, Callable[[Path, Sequence[str]], Source]] = {
    ".zip": ZipSource,
    ".tar": TarSource,
    ".csv": ManifestSource,
    ".tsv": ManifestSource,
    ".parquet": ManifestSource,
    ".arrow": TableSource,
}

#: Files of a remote folder that are looked at to tell whether it holds shards.
_LOOKED_AT = 1000
_COMPRESSED_TAR = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$", re.IGNORECASE)


class Sources:
    """One or more sources.

    Args:
        max_bytes: Largest image file that is read, in bytes.

    Attributes:
        problems: What the last :meth:`scan` passed over: folders that cannot be read, broken links, pictures of
            formats that are not read, rows without a path.
    """

    def __init__(self, sources: Sequence[Source], max_bytes: int = MAX_BYTES, exclude: Sequence[str] = ()) -> None:
        self._sources = tuple(sources)
        self._max_bytes, self._exclude = max_bytes, tuple(exclude)
        self._counts: dict[int, int] = {}
        self.problems: list[ScanProblem] = []

    def stream(self) -> Iterator[tuple[int, SourceImage]]:
        """Find all images one after another, in any order, with the number of the source that each is from.

        Two may have the same id: :meth:`settle` tells what becomes of the second.

        Raises:
            SourceError: ``SOURCE_EMPTY``, ``SOURCE_FORMAT`` or ``SOURCE_UNREADABLE``.
        """
        self.problems = []
        for number, source in enumerate(self._sources):
            limit = MetadataLimit()
            self._counts[number] = 0
            for image in source.scan():
                self._counts[number] += 1
                if len(self._sources) > 1 and not source.names_ids:
                    image = dataclasses.replace(image, id=f"{nfc(source.name)}/{image.id}")
                yield number, limit.apply(image)
            # Pictures left out are told before single files, of which there may be many.
            self.problems.extend((*source.problems, *limit.problems()))
            if not self._counts[number]:
                raise _empty(source)

    def settle(self, image: SourceImage, number: int, other: SourceImage, its_number: int) -> ScanProblem:
        """Why ``image`` is passed over: it has the id of ``other``, which was found before it.

        Args:
            number: Of the source of ``image``.
            its_number: Of the source of ``other``.

        Raises:
            SourceError: ``SOURCE_DUPLICATE_ID``: they are two images, of several sources or of a manifest.
        """
        if number != its_number or not isinstance(self._sources[number], FolderSource | TarSource | ZipSource):
            raise _duplicate(image, other)
        # Names that differ in the spelling of their accents alone: one file, copied between systems.
        return ScanProblem(image.uri, f"its name means the same as that of {other.uri}: rename one")

    def scan(self) -> list[SourceImage]:
        """Find all images, in the order of the sources and there by id (manifests: in their own order).

        Raises:
            SourceError: As from :meth:`stream` and :meth:`settle`.
        """
        images: dict[str, tuple[int, SourceImage]] = {}
        twins: list[ScanProblem] = []
        for number, image in self.stream():
            if (known := images.get(image.id)) is not None:
                twins.append(self.settle(image, number, known[1], known[0]))
            else:
                images[image.id] = number, image
        self.problems += twins
        listed = [isinstance(source, ManifestSource) for source in self._sources]
        # The sort is stable, so that manifests keep their order.
        ordered = sorted(images.values(), key=lambda item: (item[0], "" if listed[item[0]] else item[1].id))
        return [image for _, image in ordered]

    def read(self, image: SourceImage) -> bytes:
        """Return the bytes of an image.  Thread-safe.

        Raises:
            ImageError: ``IMAGE_UNREADABLE`` or ``IMAGE_TOO_LARGE``.
        """
        read = read_remote if is_remote(image.uri) else read_uri
        return read(image.uri, max_bytes=self._max_bytes)

    def read_parts(self) -> list[dict[str, Any]]:
        """What the last :meth:`stream` read: by source, and by shard where it has shards; kept with a version."""
        told: list[dict[str, Any]] = []
        for number, source in enumerate(self._sources):
            parts = source.parts if isinstance(source, ShardSource) else []
            place = getattr(source, "place", None)
            stamps = [] if place is None else [{"uri": place.uri, "stamp": place.stamp()}]
            if isinstance(source, FolderSource) and source.stamp:
                stamps = [{"uri": str(source.path), "stamp": source.stamp}]
            told.append({
                "source": source.name,
                "kind": type(source).__name__.removesuffix("Source").lower(),
                "images": self._counts.get(number, 0),
                "parts": [vars(part) for part in parts] or stamps,
                "exclude": list(self._exclude),
            })  # fmt: skip
        return told

    def same_as(self, told: object) -> bool:
        """Whether nothing can have changed since a version was told :meth:`read_parts`; found out without a scan.

        Archives, tables and shards tell by their stamps that nothing in them has changed; of folders, names, sizes and
        times of all files are compared.  What a table of paths names is not known without a scan.

        Raises:
            SourceError: A folder cannot be read.
        """
        if not isinstance(told, list) or len(told) != len(self._sources):
            return False
        try:
            for source, known in zip(self._sources, told, strict=True):
                before = [(part["uri"], part["stamp"]) for part in known["parts"]]
                if (known["source"], known["exclude"]) != (source.name, list(self._exclude)):
                    return False
                if isinstance(source, ShardSource):
                    now = source.stamps()
                elif isinstance(source, FolderSource):
                    if [uri for uri, _ in before] != [str(source.path)]:
                        return False
                    now = [(str(source.path), source.look())]
                elif (place := getattr(source, "place", None)) is not None:
                    now = [(place.uri, place.stamp())]
                else:
                    return False
                if now != before:
                    return False
        except (OSError, TypeError, KeyError):
            return False
        for source in self._sources:
            if isinstance(source, FolderSource):
                source.forget()
        return True


def open_sources(names: Sequence[str], *, exclude: Sequence[str] = (), max_bytes: int = MAX_BYTES) -> Sources:
    """Open every SOURCE that a user named.

    It is a folder, a ``.zip``, ``.tar``, ``.csv``, ``.tsv``, ``.parquet`` or ``.arrow`` file; shards by braces
    (``data-{000..099}.tar``), by ``*``, or in a folder of their own; or, by URL, a folder of a store, archives and
    tables there.

    Args:
        exclude: Patterns of files and folders that are left out; one without a slash is matched against names, one
            with a slash against paths below the source.
        max_bytes: Largest image file that is read, in bytes.

    Raises:
        SourceError: ``SOURCE_NOT_FOUND``, ``SOURCE_FORMAT`` or ``SOURCE_REMOTE``.
    """
    if not names:
        raise SourceError("no source was named: give a folder of images", reason="SOURCE_NOT_FOUND")
    return Sources([_open(name, exclude) for name in names], max_bytes, exclude)


def _open(name: str, exclude: Sequence[str]) -> Source:
    if is_remote(name):
        return _open_remote(name, exclude)
    path = _local_path(name)
    if path.is_dir():
        try:
            shards = shards_in(path)
        except OSError:
            shards = []  # what is wrong with the folder is told when it is scanned
        return ShardSource(path.name, shards, exclude) if shards else FolderSource(path, exclude)
    listed = [] if path.exists() else _listed(path)
    if listed:
        return ShardSource(path.parent.name, listed, exclude)
    if not path.exists():
        message = f"there is no folder or file {name}: check the path (it was looked for at {path})"
        raise SourceError(message, reason="SOURCE_NOT_FOUND", source=name)
    if _COMPRESSED_TAR.search(path.name):
        message = (
            f"{name} is a compressed tar, in which no image can be addressed: unpack it, or store it as plain .tar"
        )
        raise SourceError(message, reason="SOURCE_FORMAT", source=name)
    kind = KINDS.get(path.suffix.lower())
    if kind is ManifestSource and path.suffix.lower() == ".parquet" and holds_images(path):
        kind = TableSource
    if kind is None:
        what = "a single image" if path.suffix.lower() in image_extensions() else "of no known kind"
        message = f"{name} is {what}: a source is a folder or a {', '.join(KINDS)} file"
        raise SourceError(message, reason="SOURCE_FORMAT", source=name)
    return kind(path, exclude)


def _open_remote(name: str, exclude: Sequence[str]) -> Source:
    """A file or folder by its URL: one archive or table, shards by braces, or all images below a prefix."""
    files = remote_files(name)
    urls = braces(name)
    suffix = PurePosixPath(urlsplit(name).path).suffix.lower()
    places = [RemotePlace(url) for url in urls]
    if suffix in SHARD_KINDS:
        if len(places) == 1:
            return SHARD_KINDS[suffix](places[0], exclude)
        return ShardSource(PurePosixPath(urlsplit(name).path).parent.name, places, exclude)
    if len(places) > 1 or suffix in (*KINDS, *image_extensions()) or name.lower().startswith("http"):
        message = (
            f"{name} is no source: on other machines these are folders of a store, and {', '.join(SHARD_KINDS)} files"
        )
        raise SourceError(message, reason="SOURCE_FORMAT", source=name)
    try:
        found = [url for url, _, _ in islice(files.walk(name.rstrip("/")), _LOOKED_AT)]
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {error}", reason="SOURCE_UNREADABLE", source=name) from error
    ends = {PurePosixPath(url).suffix.lower() for url in found}
    for kind in (".tar", ".arrow", ".parquet"):
        if kind in ends and not ends & image_extensions():
            urls = [url for url, _, _ in files.walk(name.rstrip("/")) if url.lower().endswith(kind)]
            return ShardSource(PurePosixPath(name.rstrip("/")).name, [RemotePlace(url) for url in urls], exclude)
    return RemoteFolder(name, exclude)


def _listed(path: Path) -> list[Place]:
    """The local shards that a name with braces or with ``*`` stands for."""
    names = braces(str(path))
    if len(names) > 1:
        return [LocalPlace(Path(name)) for name in names]
    if "*" not in path.name or path.suffix.lower() not in SHARD_KINDS or not path.parent.is_dir():
        return []
    return [LocalPlace(found) for found in path.parent.glob(path.name)]


def _local_path(name: str) -> Path:
    if "://" in name:
        url = urlsplit(name)
        if url.scheme != "file":
            known = ", ".join(f"{scheme}://" for scheme in REMOTE_SCHEMES)
            message = f"{name} is not on this machine, and is none of {known}: copy it to a local folder first"
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
