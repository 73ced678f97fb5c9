"""The connection to a Milvus server, a cluster, or a local file of Milvus Lite."""

from __future__ import annotations

import importlib.util
import logging
import re
import time
from typing import Any

from cbir.core.errors import ArtifactError, ConfigurationError, StoreUnavailableError

__all__ = ["MilvusConnection"]

#: Seconds that a call may take, reconnecting included; and those that load, index or flush whole collections.
_CALL_SECONDS, _LONG_SECONDS = 30.0, 3600.0
#: Seconds for which calls fail at once after Milvus did not answer, so that queries do not wait for it one by one.
_PAUSE_SECONDS = 1.0
_URI = re.compile(r"(?:https?|tcp)://\S+|unix:\S+|\S.*\.db", re.DOTALL)
_SLOW = ("create_index", "flush", "load_collection")
#: Code of Milvus for a collection that is not in its memory, as after a restart.
_NOT_LOADED = 101
#: Codes of Milvus for a collection, an alias or an index that does not exist.
_NOT_FOUND = (100, 700, 1600)


class MilvusConnection:
    """Calls Milvus, and says in one sentence what went wrong.  A lost connection is made anew at the next call.

    Args:
        uri: ``http://host:19530``, or the path of a Milvus Lite file that ends in ``.db``.
        token: ``user:password`` or a key; empty for none.

    Raises:
        ConfigurationError: ``STORE_URI`` or ``EXTRA_MISSING``.
    """

    def __init__(self, uri: str, token: str = "") -> None:
        if not _URI.fullmatch(uri):
            raise ConfigurationError(
                f"{_without_password(uri)!r} is no address of Milvus: give http://host:port, or a path ending in .db "
                "for Milvus Lite",
                reason="STORE_URI",
            )
        package = "milvus_lite" if uri.endswith(".db") and "://" not in uri else "pymilvus"
        if importlib.util.find_spec("pymilvus") is None or importlib.util.find_spec(package) is None:
            lite = importlib.util.find_spec("pymilvus") is not None
            how = "pip install --no-deps milvus-lite" if lite else "pip install 'ensemble-cbir[milvus]'"
            raise ConfigurationError(
                f"vectors in Milvus need the package {package if lite else 'pymilvus'}: {how}", reason="EXTRA_MISSING"
            )
        #: The address, fit to be shown.
        self.name = _without_password(uri)
        self._uri, self._token = uri, token
        self._client: Any = None
        self._away_until = 0.0

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of ``pymilvus.MilvusClient``.

        Raises:
            StoreUnavailableError: ``STORE_UNAVAILABLE``: Milvus does not answer.
            KeyError: There is no such collection or alias.
            ArtifactError: ``STORE_REFUSED``: Milvus refuses the call, with its own words.
        """
        from pymilvus.exceptions import MilvusException

        if time.monotonic() < self._away_until:
            raise self._unavailable("it did not answer a moment ago")
        try:
            if self._client is None:
                self._client = self._connect()
            try:
                return self._ask(method, *args, **kwargs)
            except MilvusException as error:
                if error.code != _NOT_LOADED:
                    raise
                self._ask("load_collection", args[0])
                return self._ask(method, *args, **kwargs)
        except MilvusException as error:
            # Codes of gRPC are members of an enumeration, those of Milvus are numbers; 2 is a failed connection.
            if not isinstance(error.code, int) or error.code == 2:
                raise self._away(error) from error
            if error.code in _NOT_FOUND:
                raise KeyError(error.message) from error
            raise ArtifactError(
                f"Milvus at {self.name} refuses {method}: {' '.join(str(error.message).split())[:300]}",
                reason="STORE_REFUSED",
            ) from error
        except (OSError, RuntimeError, ValueError) as error:  # a channel that was closed
            raise self._away(error) from error

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        seconds = _LONG_SECONDS if method in _SLOW else _CALL_SECONDS
        return getattr(self._client, method)(*args, **{"timeout": seconds, **kwargs})

    def close(self) -> None:
        """Give the connection back; the next call makes another."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connect(self) -> Any:
        from pymilvus import MilvusClient

        # What goes wrong is raised as an exception; pymilvus would print it with a traceback besides.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        return MilvusClient(self._uri, token=self._token, timeout=_CALL_SECONDS)

    def _away(self, error: Exception) -> StoreUnavailableError:
        self._away_until = time.monotonic() + _PAUSE_SECONDS
        self.close()
        return self._unavailable(" ".join(str(error).split())[:200])

    def _unavailable(self, why: str) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"Milvus at {self.name} does not answer ({why}): start it, or check the address and the token; calls "
            "connect again by themselves",
            reason="STORE_UNAVAILABLE",
        )


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)
