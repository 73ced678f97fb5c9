"""The artifact store: immutable index versions below one folder, published by rename.

INDEX/CURRENT                      name and checksum of the live version (see :mod:`cbir.core.artifacts.seal`)
INDEX/versions/<version>/          complete or absent; seal and manifest.json are written last
INDEX/versions/.partial-<version>/ being written; removed by the next indexer
INDEX/versions/.removed-<version>/ being removed; likewise
INDEX/cache/                       raw embeddings, see cbir.core.artifacts.embedding_cache
INDEX/.lock                        held by the one who writes
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cbir.core.artifacts.index_version import IndexVersion
from cbir.core.artifacts.manifest import LARGEST, MANIFEST_FILE, Manifest
from cbir.core.artifacts.seal import SEAL_FILE, VERSION_NAME, Seal
from cbir.core.artifacts.signature import SigningKey, TrustedKeys
from cbir.core.artifacts.version_files import open_folder, read_beside
from cbir.core.artifacts.version_writer import VersionWriter
from cbir.core.errors import ArtifactError
from cbir.core.files import make_folder, remove, sync, write_durably

__all__ = ["IndexStore"]

_LARGEST_SEAL = 4096
#: How often a version is looked for that was collected between the look at CURRENT and its opening.
_ATTEMPTS = 5


class IndexStore:
    """One INDEX folder.

    Args:
        trust: Who must have signed a version that is opened; None: nobody need have.
        key: Signs what is published.
        on_live: Called with a version just before it becomes the live one; None where vectors are in the files.
    """

    def __init__(
        self,
        path: Path | str,
        trust: TrustedKeys | None = None,
        key: SigningKey | None = None,
        on_live: Callable[[IndexVersion], None] | None = None,
    ) -> None:
        self.path, self._trust, self._key, self._on_live = Path(path), trust, key, on_live
        self._locked = False

    @property
    def _versions(self) -> Path:
        return self.path / "versions"

    def current(self) -> str:
        """The name of the live version.

        Raises:
            ArtifactError: ``INDEX_NOT_FOUND``, ``INDEX_INCOMPLETE`` or ``INDEX_CORRUPT``.
        """
        return self._live_seal().version

    def _live_seal(self) -> Seal:
        try:
            folder = open_folder(self.path)
            try:
                return Seal.parse(read_beside(folder, "CURRENT", self.path / "CURRENT", _LARGEST_SEAL))
            finally:
                os.close(folder)
        except ValueError:
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

    def has_current(self) -> bool:
        """Whether a version is live."""
        return (self.path / "CURRENT").is_file()

    def versions(self) -> list[str]:
        """The complete versions, oldest first."""
        if not self._versions.is_dir():
            return []
        found = (p.parent.name for p in self._versions.glob(f"*/{MANIFEST_FILE}"))
        return sorted(name for name in found if re.fullmatch(VERSION_NAME, name))

    def open(self, version: str | None = None, *, verify: bool | None = None) -> IndexVersion:
        """Open a version, by default the live one, and check that all its files are there with their sizes.

        Args:
            version: Its name.
            verify: True: compare every file with its checksum now; None: each when it is first used; False: sizes only.

        Raises:
            ArtifactError: ``INDEX_NOT_FOUND``, ``VERSION_NOT_FOUND``, ``INDEX_INCOMPLETE``, ``INDEX_CORRUPT``,
                ``INDEX_LINKED``, ``INDEX_REFUSED``, ``INDEX_UNTRUSTED``, or ``INDEX_MISMATCH`` where the format is
                another.
        """
        for attempt in range(_ATTEMPTS):
            live = self._live_seal() if version is None else None
            try:
                opened = self._open(live.version if live else version or "", live, verify is not False)
                break
            except ArtifactError:
                # A newer version may have gone live, and this one been collected, since CURRENT was read.
                if live is None or attempt + 1 == _ATTEMPTS or self._live_seal() == live:
                    raise
        if verify:
            opened.verify()
        return opened

    def _open(self, name: str, live: Seal | None, verify: bool) -> IndexVersion:
        path = self._versions / name
        try:
            if not re.fullmatch(VERSION_NAME, name):
                raise FileNotFoundError
            folder = open_folder(self.path, "versions", name)
        except FileNotFoundError:
            known = ", ".join(self.versions()) or "none"
            raise ArtifactError(
                f"the index {self.path} has no version {name!r}; complete versions are: {known}",
                reason="VERSION_NOT_FOUND",
            ) from None
        try:
            seal, data = self._read_sealed(folder, path)
        finally:
            os.close(folder)
        if live is not None and live != seal.unsigned():
            raise ArtifactError(
                f"{self.path}/CURRENT and the seal of version {name} differ, so one of them is damaged: roll back with "
                f"`cbir rollback {self.path} --version-name VERSION`",
                reason="INDEX_CORRUPT",
            )
        if self._trust is not None and not seal.is_trusted(self._trust):
            found = "is signed by another" if seal.signature else "is not signed"
            raise ArtifactError(
                f"the version {path} {found}: give its key with --trust-key, or publish it with --sign-key",
                reason="INDEX_UNTRUSTED",
            )
        return IndexVersion(path, Manifest.parse(data, path, sealed=seal.digest is not None), verify=verify)

    def _read_sealed(self, folder: int, path: Path) -> tuple[Seal, bytes]:
        """The seal of a version, and the manifest that it is the seal of."""
        try:
            data = read_beside(folder, MANIFEST_FILE, path / MANIFEST_FILE, LARGEST)
        except FileNotFoundError:
            raise ArtifactError(
                f"the version {path} has no {MANIFEST_FILE}, so it was only half copied: copy it again",
                reason="INDEX_INCOMPLETE",
            ) from None
        try:
            seal = Seal.parse(read_beside(folder, SEAL_FILE, path / SEAL_FILE, _LARGEST_SEAL))
            if seal.version != path.name or seal.digest is None:
                raise ValueError("the seal of another version")
        except FileNotFoundError:
            seal = Seal(path.name)  # written before there were seals, or the manifest will say otherwise
        except ValueError:
            raise ArtifactError(
                f"{path / SEAL_FILE} is damaged: roll back with `cbir rollback`, or index again", reason="INDEX_CORRUPT"
            ) from None
        if seal.digest is not None and hashlib.sha256(data).hexdigest() != seal.digest:
            raise ArtifactError(
                f"{path / MANIFEST_FILE} does not match its checksum: roll back with `cbir rollback`, or index again "
                "with --rebuild",
                reason="INDEX_CORRUPT",
            )
        return seal, data

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock for writing the index.

        Raises:
            ArtifactError: ``INDEX_LOCKED`` where another indexer holds it; ``INDEX_UNWRITABLE``.
        """
        try:
            make_folder(self._versions)
            file = os.fdopen(os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
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
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    def _check_locked(self) -> None:
        if not self._locked:
            raise RuntimeError("whoever writes an index holds its lock: `with store.lock(): ...`")

    def begin(self) -> VersionWriter:
        """Start a new version.  Call with the lock held: leftovers of killed writers are removed."""
        self._check_locked()
        self._sweep()
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"[:-3] + f"Z-{secrets.token_hex(3)}"
        previous = None
        if self.has_current():
            try:
                previous = self.open()
            except ArtifactError:
                previous = None  # the live version is damaged: link none of its files
        return VersionWriter(self.path, name, previous, self.activate, self._key)

    def activate(self, version: str) -> None:
        """Make a complete version the live one, signed where there is a key.  Call with the lock held."""
        self._check_locked()
        opened = self.open(version)
        folder = open_folder(self.path, "versions", version)
        try:
            seal, data = self._read_sealed(folder, opened.path)
        finally:
            os.close(folder)
        if self._key is not None:
            if seal.digest is None:
                raise ArtifactError(
                    f"the version {version} was written before versions could be signed: index again with --rebuild",
                    reason="INDEX_MISMATCH",
                )
            seal = Seal.of(version, data, self._key)
            self._replace(opened.path / SEAL_FILE, seal.text())
        if self._on_live is not None:
            self._on_live(opened)
        else:
            opened.manifest.check_store("local", opened.path)
        self._replace(self.path / "CURRENT", seal.unsigned().text())

    def _replace(self, path: Path, text: str) -> None:
        partial = path.with_name(f".{path.name}-{secrets.token_hex(3)}")
        write_durably(partial, text)
        partial.replace(path)
        sync(path.parent)

    def rollback(self, version: str | None = None) -> str:
        """Make ``version`` (default: the newest one older than the live one) the live one; return its name."""
        if version is None:
            live = self.current()
            older = [name for name in self.versions() if name < live]
            if not older:
                raise ArtifactError(
                    f"the index {self.path} has no version before {live}: nothing to roll back to",
                    reason="VERSION_NOT_FOUND",
                )
            version = older[-1]
        self.activate(version)
        return version

    def collect(self, keep: int) -> list[str]:
        """Remove all but the live version and the ``keep`` newest ones; return what was removed.

        Who has opened a version goes on reading it: its files are gone when the last reader lets go of them.
        """
        self._check_locked()
        names = self.versions()
        kept = {self.current(), *(names[-keep:] if keep else ())}
        removed = [name for name in names if name not in kept]
        for name in removed:
            # By one rename a version is absent, and never half there.
            (self._versions / name).rename(self._versions / f".removed-{name}")
        sync(self._versions)
        self._sweep()
        for leftover in self._versions.iterdir():
            if not (leftover / MANIFEST_FILE).exists():
                remove(leftover)
        return removed

    def _sweep(self) -> None:
        """Remove what killed writers and collectors left behind."""
        for pattern in ("versions/.partial-*", "versions/.removed-*", ".CURRENT-*", f"versions/*/.{SEAL_FILE}-*"):
            for leftover in self.path.glob(pattern):
                remove(leftover)
