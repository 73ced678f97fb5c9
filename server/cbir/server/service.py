"""The RPCs of ``cbir.v1``: messages in, the pipeline, messages out."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import grpc

from cbir.server import conversion, status
from cbir.server.admission import Admission, NotReadyError
from cbir.server.deployment import Deployment
from cbir.server.limits import Limits
from cbir.server.picture import read_picture
from cbir.server.pipeline import Pipeline
from cbir.v1 import admin_pb2, admin_pb2_grpc, search_pb2, search_pb2_grpc

__all__ = ["AdminService", "SearchService"]

# Methods have the names of the protocol.
# ruff: noqa: N802

_CHUNK = 64 * 2**10
#: Guess of what reading one picture takes, in seconds; it only times retries.
_PICTURE_SECONDS = 0.05


class SearchService(search_pb2_grpc.SearchServiceServicer):
    """Answers queries.

    Args:
        stopping: Once set, streams read no further queries.
    """

    def __init__(self, deployment: Deployment, pipeline: Pipeline, limits: Limits, stopping: asyncio.Event) -> None:
        self._deployment, self._pipeline, self._limits, self._stopping = deployment, pipeline, limits, stopping
        self._downloads = Admission(limits.downloads, limits.downloads * 2**40, "downloads")
        # Apart from the decoders, so that thumbnails do not hold up queries.
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="cbir-picture")

    def close(self) -> None:
        """End the threads."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def Search(
        self, request: search_pb2.SearchRequest, context: grpc.aio.ServicerContext
    ) -> search_pb2.SearchResponse:
        """See the API."""
        try:
            return await self._search(request, _deadline(context))
        except Exception as error:  # noqa: BLE001 - every failure becomes a status
            await status.abort(context, error)

    async def SearchStream(self, requests: object, context: grpc.aio.ServicerContext) -> None:
        """See the API.  At most ``window`` queries are under way; answers that are not yet sent count among them."""
        window = asyncio.Semaphore(self._limits.window)
        writing = asyncio.Lock()
        deadline = _deadline(context)

        async def answer(request: search_pb2.SearchStreamRequest) -> None:
            response = search_pb2.SearchStreamResponse(request_id=request.request_id)
            try:
                response.response.CopyFrom(await self._search(request.request, deadline))
            except Exception as error:  # noqa: BLE001 - every failure becomes a status, in band
                response.error.CopyFrom(status.to_status(error))
            async with writing:
                await context.write(response)
            window.release()

        async with asyncio.TaskGroup() as answers:

            async def read() -> None:
                while True:
                    await window.acquire()
                    request = await context.read()
                    if request is grpc.aio.EOF:
                        return
                    answers.create_task(answer(request))

            reading = asyncio.create_task(read())
            stopping = asyncio.create_task(self._stopping.wait())
            try:
                await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    reading.result()
            finally:
                reading.cancel()
                stopping.cancel()
        if self._stopping.is_set():
            await status.abort(context, NotReadyError("the server is stopping: connect again", reason="STOPPING"))

    async def GetIndexInfo(
        self, request: search_pb2.GetIndexInfoRequest, context: grpc.aio.ServicerContext
    ) -> search_pb2.GetIndexInfoResponse:
        """See the API."""
        try:
            return conversion.index_info(self._deployment.engine.info, self._limits)
        except Exception as error:  # noqa: BLE001 - every failure becomes a status
            await status.abort(context, error)

    async def GetImage(self, request: search_pb2.GetImageRequest, context: grpc.aio.ServicerContext) -> None:
        """See the API."""
        try:
            with self._downloads.admit(0, _PICTURE_SECONDS):
                gallery = self._deployment.engine.gallery
                side = request.thumbnail if request.HasField("thumbnail") else None
                picture = await asyncio.get_running_loop().run_in_executor(
                    self._readers, read_picture, gallery, request.image_id, side, self._limits
                )
                first = search_pb2.GetImageResponse(
                    chunk=picture.data[:_CHUNK], media_type=picture.media_type, total_bytes=len(picture.data)
                )
                await context.write(first)
                for start in range(_CHUNK, len(picture.data), _CHUNK):
                    await context.write(search_pb2.GetImageResponse(chunk=picture.data[start : start + _CHUNK]))
        except Exception as error:  # noqa: BLE001 - every failure becomes a status
            await status.abort(context, error)

    async def _search(self, request: search_pb2.SearchRequest, deadline: float | None) -> search_pb2.SearchResponse:
        query = conversion.query_from_request(request)
        result = await self._pipeline.search(self._deployment.engine, query, deadline)
        return conversion.response_from_result(result)


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """Serves operators."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    async def ReloadIndex(
        self, request: admin_pb2.ReloadIndexRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.ReloadIndexResponse:
        """See the API."""
        try:
            done = await self._deployment.reload(request.version or None)
        except Exception as error:  # noqa: BLE001 - every failure becomes a status
            await status.abort(context, error)
        return admin_pb2.ReloadIndexResponse(previous_version=done.previous, version=done.version, changed=done.changed)


def _deadline(context: grpc.aio.ServicerContext) -> float | None:
    """The call's deadline on the clock of :func:`time.monotonic`, None without one."""
    remaining = context.time_remaining()
    return None if remaining is None else monotonic() + remaining
