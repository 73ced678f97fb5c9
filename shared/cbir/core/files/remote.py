"""Files on other machines, by their URL: ``s3://``, ``gs://``, ``az://``, ``http://`` and ``https://``, through fsspec.

What they hold, how they are called and where they send us is in other hands.  So no URL may name a local file or a
chain of file systems, no answer may be longer than was asked for, and no redirect may lead to this machine or to
addresses that only its network knows, where clouds hand out credentials: a user may name such a host, a server may not.
"""

from __future__ import annotations

import errno
import importlib
import ipaddress
import os
import threading
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from cbir.core.errors import SourceError

__all__ = ["REMOTE_SCHEMES", "RemoteFiles", "is_remote", "remote_files"]

#: Scheme -> what it is called, the package that speaks it, the extra that brings the package.
REMOTE_SCHEMES = {
    "s3": ("s3", "s3fs", "remote"),
    "gs": ("gs", "gcsfs", "gcs"),
    "az": ("az", "adlfs", "azure"),
    "http": ("http", "aiohttp", "remote"),
    "https": ("http", "aiohttp", "remote"),
}
#: Seconds for a connection, and for an answer.
_SECONDS = 30
_TRIES = 3


def is_remote(name: str) -> bool:
    """Whether a name is a URL of a scheme that is read from other machines."""
    return name.partition("://")[0].lower() in REMOTE_SCHEMES and "://" in name


class RemoteFiles:
    """The files of one host or store.  Thread-safe."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem

    def size_and_stamp(self, url: str) -> tuple[int, str]:
        """Bytes of a file, and text that changes when it does.

        Raises:
            OSError: It cannot be reached.
        """
        return self._told(self._tried(lambda: self._filesystem.info(url)))

    @staticmethod
    def _told(facts: Mapping[str, Any]) -> tuple[int, str]:
        size = int(facts.get("size") or 0)
        marks = [facts.get(name) for name in ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified",
                                              "updated", "mtime")]  # fmt: skip
        mark = next((str(value) for value in marks if value), "")
        return size, f"{size}-{mark.strip(chr(34))}"

    def read(self, url: str, start: int, length: int) -> bytes:
        """At most ``length`` bytes of a file from ``start`` on.

        Raises:
            OSError: It cannot be reached.
        """
        data: bytes = self._tried(lambda: self._range(url, start, length))
        return data

    def _range(self, url: str, start: int, length: int) -> bytes:
        if not url.lower().startswith("http"):
            data: bytes = self._filesystem.cat_file(url, start=start, end=start + length)
            return data[:length]
        from fsspec.asyn import sync

        found: bytes = sync(self._filesystem.loop, _http_range, self._filesystem, url, start, length)
        return found

    def open(self, url: str) -> Any:
        """A file object that seeks and reads ranges, with a cache of a few blocks."""
        return self._tried(lambda: self._filesystem.open(url, "rb", block_size=2**22, cache_type="readahead"))

    def walk(self, url: str) -> Any:
        """(URL, size, stamp) of all files below a prefix, a page at a time."""
        scheme = url.partition("://")[0]
        try:
            for folder, _, files in self._filesystem.walk(url, detail=True, on_error="raise"):
                for name, facts in sorted(files.items()):
                    path = str(facts.get("name") or f"{folder}/{name}")
                    yield (path if "://" in path else f"{scheme}://{path}", *self._told(facts))
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error

    @staticmethod
    def _tried(act: Callable[[], Any]) -> Any:
        """What an act gives, which is tried again where the network failed."""
        for left in reversed(range(_TRIES)):
            try:
                return act()
            except (FileNotFoundError, PermissionError):
                raise
            except Exception as error:
                if isinstance(error, _RefusedError) or isinstance(error.__cause__, _RefusedError):
                    raise OSError(str(error.__cause__ or error)) from error
                if not left:
                    raise OSError(f"{type(error).__name__}: {error}") from error
                threading.Event().wait(0.1 * (_TRIES - left))
        raise AssertionError


async def _http_range(filesystem: Any, url: str, start: int, length: int) -> bytes:
    """A range of a file, of which no more is taken than was asked for, whatever the server sends."""
    session = await filesystem.set_session()
    headers = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
    async with session.get(url, headers=headers) as answer:
        if answer.status == 416:  # there is nothing there
            return b""
        if answer.status in (404, 410):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
        if answer.status not in (200, 206):
            raise OSError(f"the server answers {answer.status}")
        # A server that knows no ranges sends the file from its beginning.
        skip = 0 if answer.status == 206 else start
        parts, left = [], length
        while left and (part := await answer.content.read(min(2**20, skip or left))):
            if skip:
                skip -= len(part)
                continue
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


class _RefusedError(OSError):
    """A server sent us where it may not."""


def remote_files(url: str) -> RemoteFiles:
    """The files of the store that a URL is in.

    Raises:
        SourceError: ``SOURCE_REMOTE``: the URL is none that may be read, or its package is missing.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme not in REMOTE_SCHEMES or "::" in url or "\\" in url or not parts.netloc:
        known = ", ".join(f"{name}://" for name in REMOTE_SCHEMES)
        raise SourceError(f"{url} cannot be read: name a file or a folder by {known}", reason="SOURCE_REMOTE")
    return _files(scheme, parts.netloc if scheme.startswith("http") else "")


@cache
def _files(scheme: str, host: str) -> RemoteFiles:
    protocol, package, extra = REMOTE_SCHEMES[scheme]
    try:
        importlib.import_module(package)
        import fsspec
    except ModuleNotFoundError as error:
        raise SourceError(
            f"{scheme}:// needs the package {package}: pip install 'ensemble-cbir[{extra}]'", reason="SOURCE_REMOTE"
        ) from error
    # Listings are not kept: they would grow with the store.
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol == "http":
        options["get_client"] = _client_for(host.rpartition("@")[2])
    return RemoteFiles(fsspec.filesystem(protocol, **options))


def _client_for(named: str) -> Callable[..., Any]:
    """Makes HTTP clients that follow redirects, but not into networks that only this machine sees."""
    import aiohttp

    own = (urlsplit(f"//{named}").hostname or "").lower()

    class Connector(aiohttp.TCPConnector):
        async def _resolve_host(self, host: str, port: int, *args: Any, **options: Any) -> Any:
            found = await super()._resolve_host(host, port, *args, **options)
            for one in found:
                check_address(one["host"], named=host.lower() == own)
            return found

    async def client(**options: Any) -> aiohttp.ClientSession:
        options.pop("connector", None)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SECONDS, sock_read=_SECONDS)
        return aiohttp.ClientSession(connector=Connector(), timeout=timeout, **options)

    return client


def check_address(address: str, *, named: bool) -> None:
    """Refuse an address that no server may send us to.

    Args:
        named: The user has named its host.

    Raises:
        OSError: It is link-local, or it is not public and nobody has named it.
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    if parsed.is_link_local or parsed.is_multicast or parsed.is_unspecified or (not named and not parsed.is_global):
        raise _RefusedError(f"{address} is an address that no server may send us to")
