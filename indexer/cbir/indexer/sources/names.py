"""What the names of files and folders tell: which are images, which are pictures of other kinds, which are nobody's."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import cache

from cbir.core.files import nfc

__all__ = ["Chooser", "image_extensions", "is_hidden", "unreadable"]

#: A file of a folder or archive is taken for an image by its name; what it holds is seen when it is decoded.
_IMAGES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".avif", ".avifs",
)  # fmt: skip

#: Formats of the extra ``formats``: what they are called, the package, the extensions.
_EXTRA = (
    ("HEIC", "pillow_heif", (".heic", ".heif", ".hif", ".heics", ".heifs")),
    ("JPEG XL", "pillow_jxl", (".jxl",)),
)

#: Pictures of formats that are not read, so that none is left out without a word.
_UNREADABLE = {
    "JPEG 2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jpm"),
    "camera raw": (
        ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".k25", ".kdc", ".mef",
        ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
    ),
    "SVG": (".svg", ".svgz"),
    "Photoshop": (".psd", ".psb"),
    "OpenEXR": (".exr",),
    "Radiance": (".hdr",),
    "JPEG XR": (".jxr", ".wdp", ".hdp"),
    "JPEG-LS": (".jls",),
    "Netpbm": (".pbm", ".pgm", ".ppm", ".pnm", ".pam"),
    "Targa": (".tga",),
    "DICOM": (".dcm",),
    "GIMP": (".xcf",),
    "Windows icon": (".ico", ".cur"),
    "Windows metafile": (".wmf", ".emf"),
    "PostScript": (".ai", ".eps", ".ps"),
    "PCX": (".pcx",),
    "DirectDraw": (".dds",),
}  # fmt: skip

#: Folders that systems put among those of their users, in lower case: thumbnails, waste paper, what was lost.
_SYSTEM_FOLDERS = frozenset((
    "__macosx", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin", "recycler",
    "system volume information", "lost+found",
))  # fmt: skip


@cache
def image_extensions() -> frozenset[str]:
    """The extensions of files that are taken for images on this machine, in lower case."""
    found = set(_IMAGES)
    for _, package, extensions in _EXTRA:
        if importlib.util.find_spec(package) is not None:
            found.update(extensions)
    return frozenset(found)


@cache
def unreadable() -> dict[str, str]:
    """Extension of pictures that are left out -> one clause that says why."""
    why = {
        extension: f"{name} is not read; save them as JPEG, PNG or TIFF"
        for name, extensions in _UNREADABLE.items()
        for extension in extensions
    }
    for name, package, extensions in _EXTRA:
        if importlib.util.find_spec(package) is None:
            reason = f"{name} is read with the extra 'formats' (pip install 'ensemble-cbir[formats]')"
            why.update((extension, reason) for extension in extensions)
    return why


def is_hidden(parts: Sequence[str]) -> bool:
    """Tell whether a path leads through a dot file or a folder that belongs to the system."""
    return any(part[:1] == "." or part.lower() in _SYSTEM_FOLDERS for part in parts)


class Chooser:
    """Chooses files by their names, and counts the pictures that it leaves out.

    Args:
        exclude: Patterns of shells (``*``, ``?``, ``[..]``).  One without a slash is matched against the name of every
            file and folder, one with a slash against the path below the source; what lies in a folder that matches is
            left out with it.
    """

    def __init__(self, exclude: Iterable[str] = ()) -> None:
        self._exclude = tuple(nfc(pattern).strip("/") for pattern in exclude)
        self.left_out: Counter[str] = Counter()

    def passes(self, parts: Sequence[str]) -> bool:
        """Tell whether a file or folder is looked at at all, when the folders above it are."""
        name = parts[-1]
        if name[:1] == "." or name.lower() in _SYSTEM_FOLDERS:
            return False
        return not self._exclude or not self._matches(parts)

    def excludes(self, parts: Sequence[str]) -> bool:
        """Tell whether the user left out a path of which no part was asked about before."""
        if not self._exclude:
            return False
        heads = [parts[:depth] for depth in range(1, len(parts) + 1)]
        return any(self._matches(head) for head in heads)

    def passes_whole(self, parts: Sequence[str]) -> bool:
        """Tell the same of a path of which no part was asked about before."""
        return not is_hidden(parts) and not self.excludes(parts)

    def _matches(self, parts: Sequence[str]) -> bool:
        name, path = nfc(parts[-1]), nfc("/".join(parts))
        return any(fnmatchcase(path if "/" in pattern else name, pattern) for pattern in self._exclude)

    def is_image(self, name: str) -> bool:
        """Tell by the extension whether a file is taken for an image; pictures of other kinds are counted."""
        dot = name.rfind(".")
        extension = name[dot:].lower() if dot > 0 else ""
        if extension in unreadable():
            self.left_out[extension] += 1
        return extension in image_extensions()

    def reasons(self) -> dict[str, str]:
        """Extension -> a sentence about the pictures that were left out."""
        told = {}
        for extension, count in sorted(self.left_out.items()):
            files = "file was" if count == 1 else "files were"
            told[extension] = f"{count:,} {extension} {files} left out: {unreadable()[extension]}"
        return told
