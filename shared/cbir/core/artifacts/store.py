"""The artifact store: immutable index versions below one folder, published by rename.

INDEX/CURRENT                      name of the live version
INDEX/versions/<version>/          a complete version
INDEX/versions/.partial-<version>/ being written, or left by a killed indexer; removed by the next one
INDEX/cache/                       raw embeddings, see cbir.core.artifacts.embedding_cache
"""

from __future__ import annotations

import fcntl
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cbir.core.artifacts.index_version import IndexVersion
from cbir.core.artifacts.manifest import Manifest
from cbir.core.artifacts.version_writer import VersionWriter
from cbir.core.errors import ArtifactError
from cbir.core.files import sync, write_durably

__all__ = ["IndexStore"]


class IndexStore:
    """One INDEX folder."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def _versions(self) -> Path:
        return self.path / "versions"

    def current(self) -> str:
        """The name of the live version.

        Raises:
            ArtifactError: ``INDEX_NOT_FOUND``.
        """
        try:
            name = (self.path / "CURRENT").read_text(encoding="utf-8").strip()
        except UnicodeDecodeError:
            raise ArtifactError(
                f"{self.path}/CURRENT is damaged: roll back with `cbir rollback {self.path} --version-name VERSION`",
                reason="INDEX_CORRUPT",
            ) from None
        except OSError:
            if complete := self.versions():
                raise ArtifactError(
                    f"{self.path} has versions but no CURRENT file, so it was only half copied: copy it again, or make "
                    f"one live with `cbir rollback {self.path} --version-name {complete[-1]}`",
                    reason="INDEX_INCOMPLETE",
                ) from None
            raise ArtifactError(
                f"there is no index at {self.path}: make one with `cbir index SOURCE --out {self.path}`",
                reason="INDEX_NOT_FOUND",
            ) from None
        return name

    def has_current(self) -> bool:
        """Whether a version is live."""
        return (self.path / "CURRENT").is_file()

    def versions(self) -> list[str]:
        """The complete versions, oldest first."""
        if not self._versions.is_dir():
            return []
        return sorted(
            p.parent.name for p in self._versions.glob("*/manifest.json") if not p.parent.name.startswith(".")
        )

    def open(self, version: str | None = None, *, verify: bool = False) -> IndexVersion:
        """Open a version, by default the live one, and check that all its files are there with their sizes.

        Args:
            version: Its name.
            verify: Compare the checksums of all files too.

        Raises:
            ArtifactError: ``INDEX_NOT_FOUND``, ``VERSION_NOT_FOUND``, ``INDEX_INCOMPLETE``, ``INDEX_CORRUPT`` or
                ``INDEX_MISMATCH`` where the format is another.
        """
        name = version or self.current()
        path = self._versions / name
        if not name or Path(name).name != name or not path.is_dir():
            known = ", ".join(self.versions()) or "none"
            raise ArtifactError(
                f"the index {self.path} has no version {name!r}; complete versions are: {known}",
                reason="VERSION_NOT_FOUND",
            )
        manifest = Manifest.read(path)
        for file, facts in manifest.files.items():
            size = (path / file).stat().st_size if (path / file).is_file() else -1
            if size != facts["size"]:
                found = "is missing" if size < 0 else f"has {size:,} bytes in place of {facts['size']:,}"
                raise ArtifactError(
                    f"{path / file} {found}, so the version was only half copied: copy it again, or roll back",
                    reason="INDEX_INCOMPLETE",
                )
        opened = IndexVersion(path, manifest)
        if verify:
            opened.verify()
        return opened

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock for writing the index.

        Raises:
            ArtifactError: ``INDEX_LOCKED`` where another indexer holds it; ``INDEX_UNWRITABLE``.
        """
        try:
            self._versions.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("a")
        except OSError as error:
            raise ArtifactError(
                f"{self.path} cannot be written ({error.strerror}): choose another --out", reason="INDEX_UNWRITABLE"
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ArtifactError(
                    f"another process is writing {self.path}: wait for it to end", reason="INDEX_LOCKED"
                ) from None
            yield

    def begin(self) -> VersionWriter:
        """Start a new version, and remove what killed writers left behind.  Call with the lock held."""
        for leftover in self._versions.glob(".partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"[:-3] + f"Z-{secrets.token_hex(3)}"
        previous = None
        if self.has_current():
            try:
                previous = self.open()
            except ArtifactError:
                previous = None  # the live version is damaged: link none of its files
        return VersionWriter(self.path, name, previous, self.activate)

    def activate(self, version: str) -> None:
        """Make a complete version the live one (publish, rollback)."""
        self.open(version)
        partial = self.path / f".CURRENT-{secrets.token_hex(3)}"
        write_durably(partial, version + "\n")
        partial.replace(self.path / "CURRENT")
        sync(self.path)

    def rollback(self, version: str | None = None) -> str:
        """Make ``version`` (default: the newest one older than the live one) the live one; return its name."""
        if version is None:
            self.current()
            older = [name for name in self.versions() if name < self.current()]
            if not older:
                raise ArtifactError(
                    f"the index {self.path} has no version before {self.current()}: nothing to roll back to",
                    reason="VERSION_NOT_FOUND",
                )
            version = older[-1]
        self.activate(version)
        return version

    def collect(self, keep: int) -> list[str]:
        """Remove all versions but the live one and the ``keep`` newest; return the names of the removed ones."""
        names = self.versions()
        kept = {self.current(), *(names[-keep:] if keep else ())}
        removed = [name for name in names if name not in kept]
        for name in removed:
            # The manifest first: without it, a version that is removed only in part does not count as one.
            (self._versions / name / "manifest.json").unlink()
            shutil.rmtree(self._versions / name)
        for leftover in self._versions.iterdir():
            # Left behind by a killed writer or by an interrupted removal.
            if not (leftover / "manifest.json").exists():
                shutil.rmtree(leftover, ignore_errors=True)
        return removed
