"""Small pictures of gallery images for whoever looks at results, fetched when they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from cbir.client._errors import CbirClientError
from cbir.client._results import ImageBytes

__all__ = ["Pictures"]

_FETCHERS = 8
_SECONDS = 5.0


class Pictures:
    """Fetches pictures from the server that answered, over a connection of its own: the client may be closed by then.

    It is left behind where a result is copied or pickled, as it holds what the connection was made with.

    Args:
        connect: Makes a client for a ``with`` block.
    """

    def __init__(self, connect: Callable[[], AbstractContextManager[Any]] | None) -> None:
        self._connect = connect

    def fetch(self, image_ids: Iterable[str], side: int) -> dict[str, ImageBytes]:
        """Thumbnails by image id; those that cannot be fetched soon are left out.

        Args:
            side: Length of the longer side in pixels.
        """
        ids = list(dict.fromkeys(image_ids))
        if self._connect is None or not ids:
            return {}
        with self._connect() as client, ThreadPoolExecutor(max_workers=_FETCHERS) as pool:

            def fetch(image_id: str) -> ImageBytes | None:
                try:
                    picture: ImageBytes = client.image(image_id, thumbnail=side, timeout=_SECONDS)
                except CbirClientError:
                    return None
                return picture

            found = dict(zip(ids, pool.map(fetch, ids), strict=True))
        return {image_id: picture for image_id, picture in found.items() if picture is not None}

    def __reduce__(self) -> tuple[type[Pictures], tuple[None]]:
        return Pictures, (None,)
