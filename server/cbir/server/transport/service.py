"""The RPCs of ``cbir.v1``: messages in, the pipeline, messages out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import monotonic, perf_counter
from typing import TypeVar

import grpc

from cbir.core.errors import CbirError
from cbir.core.images import Decoder
from cbir.server.access import audit, caller_lane, identity_of
from cbir.server.deployment import Deployment
from cbir.server.engine import Picture, facets, list_page, read_picture
from cbir.server.limits import Limits
from cbir.server.queue import Admission, Lane, NotReadyError, Pipeline
from cbir.server.transport import conversion, status
from cbir.server.transport.acceptance import Acceptance
from cbir.server.transport.bounded_parsing import aside, parse
from cbir.server.transport.intake import Intake
from cbir.server.transport.query_watch import QueryWatch
from cbir.server.transport.search_call import answer_search
from cbir.server.transport.streaming import Conversation
from cbir.v1 import admin_pb2, admin_pb2_grpc, search_pb2

_log = logging.getLogger(__name__)

__all__ = ["AdminService", "SearchService"]

T = TypeVar("T")

# Methods have the names of the protocol.
# ruff: noqa: N802

_CHUNK = 64 * 2**10
#: Bytes a second below which one who reads a picture only holds up others.
_SLOWEST_READER = 256 * 2**10
#: Images of a listing, and values of a facet, where a request does not say how many.
_PAGE = 100
#: Guess of what reading one picture takes, in seconds; it only times retries.
_PICTURE_SECONDS = 0.05


class SearchService:
    """Answers queries.

    Args:
        stopping: Once set, streams read no further queries.
        decoder: Where images of the gallery are decoded; None: on the threads that read them.
        watch: Told of every unary query; None: nobody is.
    """

    def __init__(
        self,
        deployment: Deployment,
        pipeline: Pipeline,
        limits: Limits,
        stopping: asyncio.Event,
        decoder: Decoder | None = None,
        watch: QueryWatch | None = None,
    ) -> None:
        self._deployment, self._pipeline, self._limits, self._stopping = deployment, pipeline, limits, stopping
        self.acceptance = Acceptance()
        self._decoder, self._watch, self._intake = decoder, watch or QueryWatch(), Intake(limits)
        #: Searches that have come and are not answered.
        self.under_way = 0
        self._downloads = Admission(limits.downloads, limits.downloads * 2**40, "downloads")
        # Apart from the decoders, so that thumbnails do not hold up queries.
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="cbir-picture")

    def _check_running(self) -> None:
        if self._stopping.is_set():
            raise NotReadyError("the server is stopping: connect again", reason="STOPPING")

    def close(self) -> None:
        """End the threads."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """How each method is called.  Queries come and answers go as bytes: see :mod:`cbir.server.transport.wire`."""
        return {
            # One request on the wire; as a stream of one here, so that it is read when it is wanted, and not before.
            "Search": grpc.stream_unary_rpc_method_handler(self.Search),
            "SearchStream": grpc.stream_stream_rpc_method_handler(self.SearchStream),
            "GetIndexInfo": grpc.unary_unary_rpc_method_handler(
                self.GetIndexInfo,
                search_pb2.GetIndexInfoRequest.FromString,
                search_pb2.GetIndexInfoResponse.SerializeToString,
            ),
            "ListImages": grpc.stream_unary_rpc_method_handler(self.ListImages),
            "GetFacets": grpc.unary_unary_rpc_method_handler(
                self.GetFacets,
                search_pb2.GetFacetsRequest.FromString,
                search_pb2.GetFacetsResponse.SerializeToString,
            ),
            "GetImage": grpc.unary_stream_rpc_method_handler(
                self.GetImage,
                search_pb2.GetImageRequest.FromString,
                search_pb2.GetImageResponse.SerializeToString,
            ),
        }

    async def Search(self, requests: object, context: grpc.aio.ServicerContext) -> bytes:
        """See the API, and :mod:`cbir.server.transport.search_call`."""
        pipeline, begun, size = self._pipeline, perf_counter(), 0
        self.under_way += 1

        async def read() -> bytes:
            nonlocal size
            data = await self._intake.read_one(context, caller)
            size = len(data)
            return data

        try:
            self._check_running()
            caller = caller_lane(context)
            answer = await answer_search(read, caller, _deadline(context), self._deployment, pipeline)
        except asyncio.CancelledError:
            if (context.time_remaining() or 0.0) > 0:
                self._intake.wasted.left(context.peer(), size)
            raise
        except Exception as error:  # noqa: BLE001 - every failure becomes a status
            self._intake.wasted.refused(context.peer(), size, error)
            pipeline.tally.outcome(error)
            self.acceptance.ended(error)
            self._watch.failed(context, error, begun)
            return status.fail(context, error)
        finally:
            self.under_way -= 1
        pipeline.tally.outcome(answer)
        self.acceptance.ended()
        self._watch.answered(context, answer, begun)
        return answer

    async def SearchStream(self, requests: object, context: grpc.aio.ServicerContext) -> None:
        """See the API."""
        conversation = Conversation(
            self._deployment,
            self._pipeline,
            context,
            caller_lane(context),
            self._limits.window,
            _deadline(context),
            self._intake,
        )
        try:
            await conversation.run(self._stopping)
        except Exception as error:  # noqa: BLE001 - every failure becomes a status
            await status.abort(context, error)
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
            wait = self._downloads.used * _PICTURE_SECONDS
            with self._downloads.admit(caller_lane(context), 1, 0, wait):
                gallery = self._deployment.engine.gallery
                side = request.thumbnail if request.HasField("thumbnail") else None
                picture = await asyncio.get_running_loop().run_in_executor(
                    self._readers, read_picture, gallery, request.image_id, side, self._limits, self._decoder
                )
                await self._send_picture(picture, context)
        except Exception as error:  # noqa: BLE001 - every failure becomes a status
            await status.abort(context, error)

    async def ListImages(self, requests: object, context: grpc.aio.ServicerContext) -> bytes:
        """See the API."""
        try:
            self._check_running()
            caller = caller_lane(context)
            data = await self._intake.read_one(context, caller)
            request, _ = await aside(partial(parse, search_pb2.ListImagesRequest), data)
            engine = self._deployment.engine
            size, condition = request.page_size or _PAGE, conversion.filter_from(request.filter)
            page = await self._look_up(
                caller, list_page, engine.gallery, condition, request.id_prefix, size, request.page_token
            )
            return conversion.page_response(page, engine.version).SerializeToString()
        except Exception as error:  # noqa: BLE001 - every failure becomes a status
            return status.fail(context, error)

    async def GetFacets(
        self, request: search_pb2.GetFacetsRequest, context: grpc.aio.ServicerContext
    ) -> search_pb2.GetFacetsResponse:
        """See the API."""
        try:
            engine = self._deployment.engine
            found = await self._look_up(caller_lane(context), facets, engine.gallery)
            return conversion.facets_response(found, request.limit or _PAGE, engine.version)
        except Exception as error:  # noqa: BLE001 - every failure becomes a status
            await status.abort(context, error)

    async def _look_up(self, caller: Lane, read: Callable[..., T], *arguments: object) -> T:
        """Read in the gallery on a thread, when it is the caller's turn."""
        with self._downloads.admit(caller, 1, 0, self._downloads.used * _PICTURE_SECONDS):
            return await asyncio.get_running_loop().run_in_executor(self._readers, read, *arguments)

    async def _send_picture(self, picture: Picture, context: grpc.aio.ServicerContext) -> None:
        """Send a picture, in chunks, to one who reads it."""
        size = len(picture.data)
        seconds = self._limits.write_seconds + size / _SLOWEST_READER
        try:
            async with asyncio.timeout(seconds):
                first = search_pb2.GetImageResponse(
                    chunk=picture.data[:_CHUNK], media_type=picture.media_type, total_bytes=size
                )
                await context.write(first)
                for start in range(_CHUNK, size, _CHUNK):
                    await context.write(search_pb2.GetImageResponse(chunk=picture.data[start : start + _CHUNK]))
        except TimeoutError:
            # What waits to be read stands before any status, so the call is broken off without one.
            _log.info("a picture of %d bytes was not read within %.0f seconds", size, seconds)
            raise asyncio.CancelledError from None


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """Serves operators."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    async def ReloadIndex(
        self, request: admin_pb2.ReloadIndexRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.ReloadIndexResponse:
        """See the API."""
        who, begun = identity_of(context), monotonic()
        facts = {"peer": str(context.peer()), "asked": request.version}
        try:
            done = await self._deployment.reload(request.version or None)
        except BaseException as error:
            reason = error.reason if isinstance(error, CbirError) else type(error).__name__
            audit("ReloadIndex", who, reason, **facts, seconds=round(monotonic() - begun, 3))
            if isinstance(error, Exception):
                await status.abort(context, error)
            raise
        outcome = "done" if done.changed else "unchanged"
        facts |= {"previous": done.previous, "version": done.version}
        audit("ReloadIndex", who, outcome, **facts, seconds=round(monotonic() - begun, 3))
        return admin_pb2.ReloadIndexResponse(previous_version=done.previous, version=done.version, changed=done.changed)


def _deadline(context: grpc.aio.ServicerContext) -> float | None:
    """The call's deadline on the clock of :func:`time.monotonic`, None without one."""
    remaining = context.time_remaining()
    return None if remaining is None else monotonic() + remaining
