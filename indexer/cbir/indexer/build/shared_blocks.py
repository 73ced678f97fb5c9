"""Blocks of the embedding cache at an address that all machines of a cluster reach, such as ``s3://bucket/run``."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from pathlib import Path

import fsspec

from cbir.core.errors import ConfigurationError
from cbir.core.files import make_folder, sync, write_durably

__all__ = ["SharedBlocks"]


class SharedBlocks:
    """A folder of an fsspec filesystem.

    A block's name is the SHA-256 of its bytes, so that one that is there is whole, and what is fetched is checked.

    Raises:
        ConfigurationError: ``BLOCKS_UNREACHABLE``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise self._unreachable(error) from error

    def send(self, folder: Path, names: Iterable[str]) -> None:
        """Copy blocks from a folder; each appears whole or not at all."""
        try:
            for name in names:
                place = f"{self._root}/{name}"
                self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
                # Object stores make an object visible once it is complete; elsewhere the rename does.
                partial = f"{place}.{secrets.token_hex(4)}.partial"
                self._files.pipe_file(partial, (folder / name).read_bytes())
                self._files.mv(partial, place)
        except OSError as error:
            raise self._unreachable(error) from error

    def names(self) -> list[str]:
        """All blocks, as ``fingerprint/name``."""
        try:
            self._files.invalidate_cache()
            found = self._files.find(self._root)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unreachable(error) from error
        return sorted("/".join(path.split("/")[-2:]) for path in found if path.endswith(".safetensors"))

    def fetch(self, folder: Path, names: Iterable[str]) -> list[str]:
        """Copy blocks into a folder, but for those that are there; return which are there now.

        A block that does not match its name is left out, and its images are embedded again.
        """
        there = []
        for name in names:
            if (folder / name).exists():
                there.append(name)
                continue
            try:
                data = self._files.cat_file(f"{self._root}/{name}")
            except OSError as error:
                raise self._unreachable(error) from error
            if hashlib.sha256(data).hexdigest() != Path(name).stem:
                continue
            make_folder((folder / name).parent)
            partial = (folder / name).with_name(f"{secrets.token_hex(8)}.partial")
            write_durably(partial, data)
            partial.replace(folder / name)
            sync(partial.parent)
            there.append(name)
        return there

    def _unreachable(self, error: Exception) -> ConfigurationError:
        return ConfigurationError(
            f"blocks cannot be kept at {self.url} ({' '.join(str(error).split())[:200]}): check --ray-blocks, the "
            "package of its filesystem and the access to it, on every machine of the cluster",
            reason="BLOCKS_UNREACHABLE",
        )
