"""The routes: files of the page, what the search server says of itself, uploads, searches and images."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from cbir.client import AsyncClient, CbirClientError, ImageBytes, IndexInfo, SearchResult, Unsupported
from cbir.client.cli.document import search_document
from cbir.web.gateway.guard import Guard
from cbir.web.gateway.intake import read_body, while_connected
from cbir.web.gateway.media_types import UNKNOWN, media_type
from cbir.web.gateway.refusal import Refusal, failure, refused
from cbir.web.gateway.settings import Settings
from cbir.web.gateway.turnstile import Turnstile
from cbir.web.gateway.uploads import Uploads
from cbir.web.gateway.wishes import LARGEST, Wish, read_wish
from cbir.web.page import Asset, assets

__all__ = ["application"]

#: Longest sides of the thumbnails that the page asks for; others are not made, so that few are kept by browsers.
_SIDES = ("320", "960")
#: Values of each facet that are told.
_VALUES = 500
#: An image must do nothing but be looked at, even where it is opened in a window of its own.
_INERT = "default-src 'none'; sandbox"


def application(settings: Settings, client: AsyncClient) -> ASGIApp:
    """The page and what it asks for, by the protocol ASGI.

    Args:
        client: Asks the search server; its token stays here.
    """
    gateway = _Gateway(settings, client)
    files = assets()

    async def page(request: Request) -> Response:
        return _file(request, files["index.html"])

    async def part(request: Request) -> Response:
        found = files.get(request.path_params["name"])
        if found is None:
            raise Refusal(404, "NOT_FOUND", "the page has no such part: reload it")
        return _file(request, found)

    routes = [
        Route("/", page),
        Route("/page/{name}", part),
        Route("/api/info", gateway.info),
        Route("/api/facets", gateway.facets),
        Route("/api/uploads", gateway.upload, methods=["POST"]),
        Route("/api/upload", gateway.uploaded),
        Route("/api/search", gateway.search, methods=["POST"]),
        Route("/api/image", gateway.image),
    ]
    handlers: Mapping[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        Refusal: _on_refusal,
        CbirClientError: _on_failure,
        ClientDisconnect: _on_gone,
        HTTPException: _on_http,
    }
    return Guard(Starlette(routes=routes, exception_handlers=handlers), settings)


class _Gateway:
    """Answers the page by asking the search server."""

    def __init__(self, settings: Settings, client: AsyncClient) -> None:
        self._settings, self._client = settings, client
        self._uploads = Uploads(settings.uploads, settings.kept)
        self._searching = Turnstile(settings.searches, settings.waiting)
        self._fetching = Turnstile(settings.pictures, settings.waiting)
        self._carrying = Turnstile(settings.originals, settings.waiting)

    async def info(self, request: Request) -> Response:
        """What the page must know before it asks."""
        async with self._searching:
            info = await while_connected(request, self._client.index_info())
        return _json(_info_document(info, self._settings))

    async def facets(self, request: Request) -> Response:
        """What filters can name: labels, and the values of each metadata column."""
        try:
            async with self._searching:
                found = await while_connected(request, self._client.facets(limit=_VALUES))
        except Unsupported:
            # A server of an earlier age: the page then suggests what its answers show.
            return _json({"labels": [], "columns": {}})
        columns = {name: list(facet.values) for name, facet in found.metadata.items()}
        return _json({"labels": list(found.labels.values), "columns": columns})

    async def upload(self, request: Request) -> Response:
        """Keep a picture for the searches that follow."""
        async with self._carrying:
            data = await read_body(request, self._settings.upload, self._settings.reading)
        if not data:
            raise Refusal(400, "EMPTY_IMAGE", "the file is empty: choose a picture")
        return _json({"upload": self._uploads.add(data)}, 201)

    async def uploaded(self, request: Request) -> Response:
        """A picture that was sent before, for whoever has its name."""
        data = self._kept(request.query_params.get("id", ""))
        return _picture(data, media_type(data), "private, no-cache")

    async def search(self, request: Request) -> Response:
        """Search, and answer as ``cbir search --json`` does."""
        wish = read_wish(await read_body(request, LARGEST, self._settings.reading))
        query = self._kept(wish.upload) if wish.upload else wish.query
        begun = asyncio.get_running_loop().time()
        async with self._searching:
            result = await while_connected(request, self._client.search(query, **wish.options))
        return _json(_answer_document(wish, result, asyncio.get_running_loop().time() - begun))

    async def image(self, request: Request) -> Response:
        """An image of the gallery: a thumbnail, or the whole of it to be kept."""
        name, size = request.query_params.get("id", ""), request.query_params.get("size")
        if size is None:
            async with self._carrying:
                image = await while_connected(request, self._client.image(name))
            saved = f"attachment; filename*=UTF-8''{quote(_file_name(name, image), safe='')}"
            return _picture(image, media_type(image), "no-store", {"content-disposition": saved})
        if size not in _SIDES:
            raise Refusal(400, "BAD_REQUEST", f"size must be one of {', '.join(_SIDES)}")
        async with self._fetching:
            image = await while_connected(request, self._client.image(name, int(size)))
        return _picture(image, media_type(image), "private, max-age=3600")

    def _kept(self, name: str) -> bytes:
        data = self._uploads.get(name)
        if data is None:
            minutes = self._settings.kept / 60
            message = f"this picture is no longer here (kept {minutes:g} minutes, or until newer ones need the room)"
            raise Refusal(404, "UPLOAD_GONE", f"{message}: drop it again")
        return data


def _file(request: Request, asset: Asset) -> Response:
    headers = {"cache-control": "no-cache", "etag": asset.tag}
    if request.headers.get("if-none-match") == asset.tag:
        return Response(status_code=304, headers=headers)
    return Response(asset.data, headers=headers, media_type=asset.media_type)


def _json(document: Any, status: int = 200) -> Response:
    return JSONResponse(document, status, {"cache-control": "no-store"})


def _picture(data: bytes, kind: str, cache: str, headers: Mapping[str, str] | None = None) -> Response:
    told = {"cache-control": cache, "content-security-policy": _INERT, **(headers or {})}
    if kind == UNKNOWN:
        told.setdefault("content-disposition", "attachment")
    return Response(bytes(data), headers=told, media_type=kind)


def _file_name(image_id: str, image: ImageBytes) -> str:
    """A name to save an image under: the last part of its id, with an ending."""
    name = image_id.replace("\\", "/").rpartition("/")[2].lstrip(".") or "image"
    return name if "." in name else f"{name}.{media_type(image).partition('/')[2]}"


def _info_document(info: IndexInfo, settings: Settings) -> dict[str, Any]:
    return {
        "version": info.version,
        "created_at": info.created_at.isoformat() if info.created_at else None,
        "images": info.images,
        "labels": info.labels,
        "ensemble": info.ensemble,
        "members": [
            {"name": one.name, "model": one.model, "weight": one.weight, "text": one.text} for one in info.members
        ],
        "crop": info.crop,
        "max_limit": info.max_limit,
        "max_bytes": min(settings.upload, info.max_image_bytes),
        "server_version": info.server_version,
        "kept_minutes": settings.kept / 60,
    }


def _answer_document(wish: Wish, result: SearchResult, seconds: float) -> dict[str, Any]:
    document = search_document("", result)
    del document["query"]
    for hit, found in zip(document["hits"], result.hits, strict=True):
        hit["near_duplicate"] = found.near_duplicate
        # Where an image lies on the server's machine is no matter of the browser's.
        del hit["uri"]
    return {**document, "seconds": seconds}


async def _on_refusal(request: Request, refusal: Refusal) -> Response:
    return refused(refusal)


async def _on_failure(request: Request, error: CbirClientError) -> Response:
    return failure(error)


async def _on_gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)


async def _on_http(request: Request, error: HTTPException) -> Response:
    return refused(Refusal(error.status_code, "NOT_FOUND" if error.status_code == 404 else "BAD_REQUEST", error.detail))
