"""Zips, and tars in WebDataset form, read in place."""

from __future__ import annotations

import json
import struct
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cbir.core.errors import ImageError, SourceError
from cbir.core.files import ArchiveMember, ArchiveTable, member_uri, nfc
from cbir.indexer.sources.image import (
    ScanProblem,
    SourceImage,
    first_folder,
    is_text,
    member_stamp,
    shared_folders,
    tidy_label,
)
from cbir.indexer.sources.names import Chooser, is_hidden
from cbir.indexer.sources.place import LocalPlace, Place

__all__ = ["TarSource", "ZipSource"]

_SIDECARS = ("cls", "txt", "json")
_MAX_SIDECAR_BYTES = 2**20


@dataclass(frozen=True)
class _Found:
    """An image member: its name as the archive has it, and its path without the folders all images share."""

    member: ArchiveMember
    parts: tuple[str, ...]

    @property
    def id(self) -> str:
        return nfc("/".join(self.parts))


class _ArchiveSource:
    def __init__(self, path: Path | Place, exclude: Sequence[str] = ()) -> None:
        self.place: Place = LocalPlace(path) if isinstance(path, Path) else path
        self.path = self.place.uri
        self.name = PurePosixPath(self.place.name).stem
        self.names_ids = False
        self.problems: list[ScanProblem] = []
        self._exclude = tuple(exclude)

    def _members(self) -> ArchiveTable:
        kind = self.place.name.rpartition(".")[2].lower()
        try:
            return self.place.members()
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError, NotImplementedError, struct.error) as error:
            message = f"{self.path} is damaged or no {kind} archive ({error}): make it or fetch it again"
            raise SourceError(message, reason="SOURCE_FORMAT", source=self.path) from error
        except OSError as error:
            message = f"{self.path} cannot be read: {error.strerror or error}; check its permissions"
            raise SourceError(message, reason="SOURCE_UNREADABLE", source=self.path) from error

    def _images(self, members: ArchiveTable) -> list[_Found]:
        """Return the image members without the folders that they all share, sorted by id."""
        self.problems = []
        chooser = Chooser(self._exclude)
        found: list[_Found] = []
        for name, member in members.items():
            parts = _parts(name)
            if not parts or not chooser.passes_whole(parts) or not chooser.is_image(parts[-1]):
                continue
            if not is_text(name):
                self._pass_over(name, "its name is not valid UTF-8: rename it")
                continue
            found.append(_Found(member, parts))
            if name in members.repeated:
                self._pass_over(name, "its name occurs more than once in the archive: the last of them is taken")
        left_out = [ScanProblem(member_uri(self.path, f"**/*{end}"), why) for end, why in chooser.reasons().items()]
        self.problems[:0] = left_out
        shared = shared_folders([item.parts for item in found])
        return sorted((_Found(item.member, item.parts[shared:]) for item in found), key=lambda item: item.id)

    def _pass_over(self, name: str, reason: str) -> None:
        uri = member_uri(self.path, name).encode(errors="backslashreplace").decode()
        self.problems.append(ScanProblem(uri, reason))


class ZipSource(_ArchiveSource):
    """The images of a zip.

    Leading folders that all images share (``train`` in ``train/<class>/..``) are left out of ids and labels; the first
    folder after them is the label.  A folder that holds all images is the label of all.
    """

    def scan(self) -> Iterator[SourceImage]:
        """Find the images, sorted by id; see :class:`~cbir.indexer.sources.image.Source`."""
        mark = self.place.stamp()
        for item in self._images(self._members()):
            yield SourceImage(
                id=item.id,
                uri=member_uri(self.path, item.member.name),
                label=first_folder(item.parts),
                stamp=member_stamp(mark, item.member),
            )


@dataclass
class _Sample:
    """What the members beside an image, ``key.cls``, ``key.json`` and ``key.txt``, tell about it."""

    label: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    sidecars: list[str] = field(default_factory=list)
    used: bool = False


class TarSource(_ArchiveSource):
    """The images of an uncompressed tar, each addressed by its offset.

    In WebDataset form, the members that share a key (the path up to the first dot of the file's name) are one sample:
    the label is in ``key.cls`` or under ``label`` in ``key.json``; other entries of ``key.json`` and the text of
    ``key.txt`` (as ``text``) are metadata.  Without such members the label comes from the folders, as in zips.
    """

    def scan(self) -> Iterator[SourceImage]:
        """Find the images, sorted by id; see :class:`~cbir.indexer.sources.image.Source`."""
        members, mark = self._members(), self.place.stamp()
        images = self._images(members)
        samples = self._samples(members)
        # A sample may hold further pictures, such as a mask in key.mask.png; only key.jpg is the image.
        plain = {_key(item.member.name)[0] for item in images if "." not in _key(item.member.name)[1]}
        for item in images:
            key, kind = _key(item.member.name)
            sample = samples.get(key)
            if sample is not None:
                sample.used = True
            if sample is not None and "." in kind and key in plain:
                continue
            yield SourceImage(
                id=item.id,
                uri=member_uri(self.path, item.member.name),
                label=sample.label if sample is not None and sample.label else first_folder(item.parts),
                stamp=member_stamp(mark, item.member),
                metadata=sample.metadata if sample is not None else {},
            )
        self._tell_unused(samples)

    def _tell_unused(self, samples: Mapping[str, _Sample]) -> None:
        """Report the sidecars that stand beside no image: a line for each kind, with the first of them."""
        unused: dict[str, list[str]] = {}
        for sample in samples.values():
            for name in () if sample.used else sample.sidecars:
                unused.setdefault(_key(name)[1], []).append(name)
        for kind, names in unused.items():
            others = f", like {len(names) - 1:,} others" if len(names) > 1 else ""
            self._pass_over(names[0], f"no image belongs to this .{kind} file{others}: it is ignored")

    def _samples(self, members: ArchiveTable) -> dict[str, _Sample]:
        samples: dict[str, _Sample] = {}
        for name in members:
            key, kind = _key(name)
            if kind not in _SIDECARS or is_hidden(_parts(name)):
                continue
            uri = member_uri(self.path, name)
            samples.setdefault(key, _Sample()).sidecars.append(name)
            if name in members.repeated:
                self._pass_over(name, "its name occurs more than once in the archive: the last of them is taken")
            try:
                text = self.place.read(uri, _MAX_SIDECAR_BYTES).decode("utf-8-sig").strip()
                self._read_sidecar(samples[key], kind, text)
            except (ImageError, ValueError, RecursionError) as error:
                self._pass_over(name, f"cannot be read as {kind}, so it is ignored: {error}")
        return samples

    @staticmethod
    def _read_sidecar(sample: _Sample, kind: str, text: str) -> None:
        if kind == "cls":
            # key.cls is made to name the class, so it wins over the label in key.json.
            sample.label = tidy_label(text) or sample.label
        elif kind == "txt":
            sample.metadata["text"] = text
        else:
            facts = json.loads(text)
            if not isinstance(facts, dict):
                raise ValueError("it holds no JSON object")
            # JSON can spell halves of characters, which no table can hold.
            json.dumps(facts, ensure_ascii=False).encode()
            for name, value in facts.items():
                if name == "label":
                    sample.label = sample.label or (tidy_label(str(value)) if value not in (None, "") else None)
                elif value is not None:
                    sample.metadata[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parts(name: str) -> tuple[str, ...]:
    # Some Windows programs write backslashes into zips.
    path = name if "/" in name else name.replace("\\", "/")
    return tuple(part for part in path.split("/") if part not in ("", "."))


def _key(name: str) -> tuple[str, str]:
    """Split a WebDataset member into key and extension, at the first dot of the file's name."""
    folder, slash, file = nfc(name).rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()
