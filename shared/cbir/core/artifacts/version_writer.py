"""Writing and publishing a version of an index, so that readers see all of it or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.artifacts.index_version import HEADS_FILE, IndexVersion
from cbir.core.artifacts.manifest import MANIFEST_FILE, Manifest
from cbir.core.artifacts.seal import SEAL_FILE, Seal
from cbir.core.artifacts.signature import SigningKey
from cbir.core.files import file_sha256, sync, sync_tree, write_durably

if TYPE_CHECKING:
    from cbir.core.vote import LinearHead

__all__ = ["VersionWriter"]

#: Most files whose checksums are computed at a time.
_AT_A_TIME = 4


class VersionWriter:
    """A version being written; readers do not see it before :meth:`publish`.

    Args:
        index: The INDEX folder.
        name: Name of the version.
        previous: The version before; files that have not changed are linked to its files.
        make_live: Called with the name to make the complete version the live one.
        key: Private key to sign the version with, if any.
    """

    def __init__(
        self,
        index: Path,
        name: str,
        previous: IndexVersion | None,
        make_live: Callable[[str], None],
        key: SigningKey | None = None,
    ) -> None:
        self.index, self.name, self.previous = index, name, previous
        self._make_live, self._key = make_live, key
        #: Facts of the files that were taken over, as the previous version's manifest tells them.
        self._taken: dict[str, Mapping[str, Any]] = {}
        self.path = index / "versions" / f".partial-{name}"
        self.path.mkdir(parents=True)

    def file(self, name: str) -> Path:
        """The path for a new file; creates its folder."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def take_over(self, name: str) -> None:
        """Take a file of the previous version over as it is, with its checksum, which is not computed again.

        It becomes a hard link; where the file system has none, the file is copied.
        """
        assert self.previous is not None
        path = self.file(name)
        if self.previous.link(name, path):
            self._taken[name] = self.previous.manifest.files[name]

    def write_json(self, name: str, data: Any) -> None:
        """Write a JSON file."""
        self.file(name).write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")

    def publish(self, manifest: Manifest, *, activate: bool = True) -> IndexVersion:
        """Hash and sync the files, write the manifest, rename the folder, and make the version live.

        Args:
            manifest: Complete but for ``version`` and ``files``, which are filled in here.
            activate: Make the version live.
        """
        paths = sorted(p for p in self.path.rglob("*") if p.is_file())
        # Several at a time: some are written to the disk while the checksums of others are computed.
        with ThreadPoolExecutor(min(_AT_A_TIME, os.cpu_count() or 1), "cbir-publish") as pool:
            files = dict(pool.map(self._settled, paths))
        complete = Manifest(**{**vars(manifest), "version": self.name, "files": files})
        text = json.dumps(complete.to_json(), indent=1, ensure_ascii=False)
        write_durably(self.path / SEAL_FILE, Seal.of(self.name, text.encode(), self._key).text())
        write_durably(self.path / MANIFEST_FILE, text)
        # The names in every folder, those below members/ too, and the folder's own name.
        sync_tree(self.path)
        sync(self.path.parent)
        final = self.path.with_name(self.name)
        self.path.rename(final)
        sync(final.parent)
        if activate:
            self._make_live(self.name)
        return IndexVersion(final, complete)

    def _settled(self, path: Path) -> tuple[str, dict[str, Any]]:
        """Bring a file to the disk; return its name and its facts."""
        name = path.relative_to(self.path).as_posix()
        if name in self._taken:
            return name, dict(self._taken[name])  # it is on the disk since it was published
        facts = {"sha256": file_sha256(path), "size": path.stat().st_size}
        if self.previous and self.previous.manifest.files.get(name) == facts and self.previous.is_intact(name):
            # The same bytes as in the previous version: a hard link, so that they are stored once.
            link = path.with_name(path.name + ".link")
            try:
                os.link(self.previous.path / name, link, follow_symlinks=False)
                link.replace(path)
            except OSError:
                link.unlink(missing_ok=True)
        sync(path)
        return name, facts

    def write_heads(self, heads: Mapping[str, LinearHead]) -> None:
        """Write the members' linear heads; no file where there are none."""
        from safetensors.numpy import save_file

        arrays: dict[str, NDArray[np.float32]] = {}
        for name, head in heads.items():
            arrays |= {f"{name}.weight": np.ascontiguousarray(head.weight), f"{name}.bias": head.bias}
        if arrays:
            save_file(arrays, self.file(HEADS_FILE))

    def abandon(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.path, ignore_errors=True)
