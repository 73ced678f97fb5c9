"""Decoding in worker processes, which hold nothing of value and may crash: untrusted bytes are decoded only there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from cbir.core.errors import ImageError
from cbir.core.images.decode import DecodedImage, DecodeLimits
from cbir.core.images.decoding_process import LostWorkerError, Nursery, Worker
from cbir.core.images.image_header import ImageHeader, read_header

__all__ = ["DecodingPool", "is_slow"]

#: Images that take longer than this (seconds of one core, by their header) are decoded by workers of lower priority, so
#: that those that take a millisecond do not wait behind those that take seconds.
_SLOW_SECONDS = 0.1
_SLOW_NICENESS = 15
#: Part of the processor time at which a worker that ends is said to have run out of it.
_NEARLY = 0.9
#: Beyond this a worker is replaced after its image, so that the memory it used goes back at once.
_KEPT_BYTES = 256 * 2**20
#: Memory that a worker may take: the interpreter's own needs, and for each pixel that an image may have.
_WORKER_BYTES, _PIXEL_BYTES = 256 * 2**20, 16


def is_slow(data: bytes, limits: DecodeLimits | None = None) -> bool:
    """Whether an image is to be decoded apart from those that are quick.  Takes microseconds, and never raises."""
    return read_header(data, (limits or DecodeLimits()).draft_side, brief=True).seconds > _SLOW_SECONDS


class DecodingPool:
    """Decodes images in worker processes.  Safe for many threads; each of them waits for its image.

    A worker can open no file and no connection, and is killed where it takes too long or too much memory.  That costs
    the image that it was at, and no other: it is replaced.

    Args:
        workers: Most workers for quick images, and as many for slow ones (:func:`is_slow`); 0: one a core.
        seconds: Processor time that one image may take.
        in_flight_bytes: Memory that images may take that are decoded at the same time; one alone may take more.
        max_pixels: Most pixels that will ever be asked for; it sizes the workers' memory.
        niceness: By how much the priority of workers for slow images is lower.

    Attributes:
        lost: Workers that were lost so far.
    """

    def __init__(
        self,
        workers: int = 0,
        *,
        seconds: float = 10.0,
        in_flight_bytes: int = 2 * 2**30,
        max_pixels: int = DecodeLimits.max_pixels,
        niceness: int = _SLOW_NICENESS,
    ) -> None:
        self._most = workers or os.cpu_count() or 1
        self._seconds, self._in_flight_bytes = seconds, in_flight_bytes
        self._nursery = Nursery.of(_WORKER_BYTES + _PIXEL_BYTES * max_pixels)
        self._niceness = niceness
        self._changed = threading.Condition()
        self._idle: dict[bool, list[Worker]] = {False: [], True: []}
        self._busy = {False: 0, True: 0}
        self._used_bytes = 0
        self._closed = False
        self.lost = 0

    def __enter__(self) -> DecodingPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def decode(self, data: bytes, limits: DecodeLimits, go_on: Callable[[], bool] | None = None) -> DecodedImage:
        """See :class:`~cbir.core.images.Decoder`.

        Raises:
            ImageError: As :func:`~cbir.core.images.decode_image`, and ``IMAGE_TOO_COSTLY`` where it takes too long or
                too much memory, ``IMAGE_CORRUPT`` where the decoder died of it, ``IMAGE_ABANDONED`` where nobody waits.
            ConfigurationError: ``NO_DECODING_WORKERS``.
        """
        header = read_header(data, limits.draft_side)
        slow = header.seconds > _SLOW_SECONDS
        memory = header.memory + len(data)
        worker = self._take(slow, memory)
        keep = False
        try:
            image = worker.decode(data, limits, self._seconds, go_on)
            keep = header.memory <= _KEPT_BYTES
            return image
        except ImageError:
            keep = header.memory <= _KEPT_BYTES
            raise
        except LostWorkerError as error:
            self.lost += 1
            raise self._explanation(error, header, go_on) from error
        finally:
            self._give_back(slow, worker if keep else None, memory)
            if not keep:
                worker.end()

    def start(self) -> tuple[str, ...]:
        """Start a worker now, so that the first image need not wait for it.

        Returns:
            What workers give up, of ``limits``, ``landlock`` and ``seccomp``.

        Raises:
            ConfigurationError: ``NO_DECODING_WORKERS``.
        """
        worker = self._take(False, 0)
        self._give_back(False, worker, 0)
        return worker.held

    def close(self) -> None:
        """End the workers, those at work after the image that they are at; who waits for one fails."""
        with self._changed:
            self._closed = True
            idle = self._idle[False] + self._idle[True]
            self._idle = {False: [], True: []}
            self._changed.notify_all()
        for worker in idle:
            worker.end()

    def _take(self, slow: bool, memory: int) -> Worker:
        with self._changed:
            while not self._closed and not self._has_room(slow, memory):
                self._changed.wait()
            if self._closed:
                raise ImageError("decoding has ended: start again", reason="IMAGE_ABANDONED")
            self._busy[slow] += 1
            self._used_bytes += memory
            if self._idle[slow]:
                return self._idle[slow].pop()
        try:
            return self._nursery.fork(self._niceness if slow else 0)
        except BaseException:
            self._give_back(slow, None, memory)
            raise

    def _has_room(self, slow: bool, memory: int) -> bool:
        if self._busy[slow] >= self._most:
            return False
        return not self._used_bytes or self._used_bytes + memory <= self._in_flight_bytes

    def _give_back(self, slow: bool, worker: Worker | None, memory: int) -> None:
        with self._changed:
            self._busy[slow] -= 1
            self._used_bytes -= memory
            if worker is not None and not self._closed:
                self._idle[slow].append(worker)
                worker = None
            self._changed.notify_all()
        if worker is not None:
            worker.end()

    def _explanation(self, error: LostWorkerError, header: ImageHeader, go_on: Callable[[], bool] | None) -> ImageError:
        kind = header.format or "image"
        if go_on is not None and not go_on():
            return ImageError("decoding was stopped, as nobody waits for it", reason="IMAGE_ABANDONED")
        if error.seconds >= _NEARLY * self._seconds:
            return ImageError(
                f"decoding the {kind} file takes longer than the {self._seconds:g} seconds that one image is given: "
                "shrink it, or export it in another format",
                reason="IMAGE_TOO_COSTLY",
                format=kind,
            )
        return ImageError(
            f"the {kind} file is damaged (the decoder ended on it): export it again",
            reason="IMAGE_CORRUPT",
            format=kind,
        )
