"""The owner's side of a decoding worker: start it, give it an image, take the pixels, end it.

Neither multiprocessing nor its pools, because those import the caller's main module again in each worker, unpickle what
a worker sends, and give up all workers when one dies.
"""

from __future__ import annotations

import atexit
import json
import mmap
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import ClassVar

import numpy as np

from cbir.core.errors import ConfigurationError, ImageError
from cbir.core.images.decode import DecodedImage, DecodeLimits
from cbir.core.images.decoding_worker import ARENA, FAILED, JOB, LONGEST_REPLY, REPLY, WANTS_ROOM
from cbir.core.images.formats import ALL_FORMATS

__all__ = ["LostWorkerError", "Nursery", "Worker"]

_START_SECONDS = 60.0
_LARGEST_ORIGINAL = 4
#: How often it is looked whether anybody still waits for the image.
_GLANCE_SECONDS = 0.05
# The worker may have been taken over: nothing of what it says is believed that does not look like this.
_REASON = re.compile(r"IMAGE_[A-Z_]{1,40}")

# Only this module and what it needs: not the program's main module, and no folder that happens to be the current one.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from cbir.core.images.decoding_worker import main; main(sys.argv[2:])"
)


class LostWorkerError(Exception):
    """The worker is gone, or talks nonsense; its image will not be decoded.

    Attributes:
        seconds: How long it was at it.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"a decoding worker was lost after {seconds:.3f} seconds")
        self.seconds = seconds


class Nursery:
    """The process that forks workers, so that a new one is there in milliseconds.  Safe for many threads.

    It is started when it is first needed, and ends with the program.

    Args:
        memory_bytes: Address space that a worker may take for an image.
    """

    _all: ClassVar[dict[tuple[int, int], Nursery]] = {}

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def of(cls, memory_bytes: int) -> Nursery:
        """The one of this process whose workers may take so much, shared by all who ask."""
        # Not that of a process which this one was forked from: the two would read each other's answers.
        key = (os.getpid(), memory_bytes)
        if not cls._all:
            atexit.register(cls._close_all)
        return cls._all.setdefault(key, cls(memory_bytes))

    @classmethod
    def _close_all(cls) -> None:
        for (owner, _), nursery in cls._all.items():
            if owner == os.getpid():
                nursery.close()

    def fork(self, niceness: int) -> Worker:
        """Start a worker whose priority is lower by ``niceness``.

        Raises:
            ConfigurationError: ``NO_DECODING_WORKERS``: processes cannot be started.
        """
        with self._lock:
            for _ in range(2):
                try:
                    return self._fork(niceness)
                except OSError as error:
                    # It was killed: a new one is tried once.
                    failure = error
                    self._end()
        raise ConfigurationError(
            f"no process for decoding images can be started ({failure}): allow more processes or memory",
            reason="NO_DECODING_WORKERS",
        ) from failure

    def close(self) -> None:
        """End the process; its workers end with it."""
        with self._lock:
            self._end()

    def _fork(self, niceness: int) -> Worker:
        if self._control is None:
            self._start()
        assert self._control is not None
        mine, theirs = socket.socketpair()
        arena = _shared_memory(ARENA)
        try:
            with theirs:
                socket.send_fds(self._control, [bytes((niceness,))], [theirs.fileno(), arena])
            answer, handles, _, _ = socket.recv_fds(self._control, 4, 1)
            if len(answer) < 4:
                raise OSError("the process that starts them ended")
            return Worker(mine, arena, struct.unpack("<i", answer)[0], handles[0] if handles else None)
        except BaseException:
            mine.close()
            raise
        finally:
            os.close(arena)

    def _start(self) -> None:
        mine, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-P", "-c", _PROGRAM, json.dumps(sys.path), str(theirs.fileno()),
                    str(self._memory_bytes),
                ],
                pass_fds=[theirs.fileno()],
                # What decoders print, such as libtiff's warnings, an image's author may choose at any length.
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                # A process with threads cannot fork safely.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )  # fmt: skip
        mine.settimeout(_START_SECONDS)
        if not mine.recv(1):
            mine.close()
            raise OSError(f"it ended with status {self._process.wait()}")
        self._control = mine

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Worker:
    """One worker.  For one thread at a time.

    Attributes:
        held: What it has given up, as :func:`cbir.core.images.sandbox.confine` tells.
    """

    def __init__(self, connection: socket.socket, arena: int, pid: int, handle: int | None) -> None:
        self._connection, self._pid, self._handle = connection, pid, handle
        self._arena = mmap.mmap(arena, ARENA)
        self._view = np.frombuffer(self._arena, np.uint8)
        connection.settimeout(_START_SECONDS)
        held = connection.recv(LONGEST_REPLY)
        if not held:
            raise OSError("it ended at once")
        self.held = tuple(held.decode().split())

    def decode(
        self, data: bytes, limits: DecodeLimits, seconds: float, go_on: Callable[[], bool] | None = None
    ) -> DecodedImage:
        """Decode an image.  After anything but an ImageError the worker is of no more use.

        Args:
            seconds: Processor time after which the worker ends.
            go_on: Asked now and then: whether anybody still waits.

        Raises:
            ImageError: As :func:`~cbir.core.images.decode_image`, and ``IMAGE_TOO_COSTLY``.
            LostWorkerError: It died, or was killed because nobody waits any more.
        """
        begun = monotonic()
        job = JOB.pack(len(data), limits.max_bytes, limits.max_pixels, limits.draft_side or 0, seconds)
        kept: mmap.mmap | None = None
        try:
            if len(data) <= ARENA:
                self._arena[: len(data)] = data
                self._connection.sendall(job)
            else:
                self._send_with(job, len(data), data).close()
            reply = self._wait(go_on)
            if reply[0] == WANTS_ROOM:
                width, height = _size(reply, limits)
                kept = self._send_with(b"\0", 3 * width * height)
                reply = self._wait(go_on)
            if reply[0] == FAILED:
                raise _refusal(reply)
            return self._picture(reply, limits, kept)
        except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
            raise LostWorkerError(monotonic() - begun) from error

    def end(self) -> None:
        """Kill it and free what it held."""
        with suppress(OSError):
            if self._handle is not None:
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
                os.close(self._handle)
            else:
                os.kill(self._pid, signal.SIGKILL)
        self._connection.close()

    def _wait(self, go_on: Callable[[], bool] | None) -> bytes:
        self._connection.settimeout(None if go_on is None else _GLANCE_SECONDS)
        while True:
            try:
                reply = self._connection.recv(LONGEST_REPLY)
            except TimeoutError:
                if go_on is not None and go_on():
                    continue
                raise
            if not reply:
                raise EOFError
            return reply

    def _send_with(self, message: bytes, size: int, content: bytes = b"") -> mmap.mmap:
        """Send a message and new shared memory with it."""
        descriptor = _shared_memory(size)
        try:
            memory = mmap.mmap(descriptor, size)
            memory.write(content)
            socket.send_fds(self._connection, [message], [descriptor])
        finally:
            os.close(descriptor)
        return memory

    def _picture(self, reply: bytes, limits: DecodeLimits, kept: mmap.mmap | None) -> DecodedImage:
        place, original_width, original_height, *_ = REPLY.unpack(reply)
        width, height = _size(reply, limits)
        count = 3 * width * height
        flat = self._view[:count].copy() if kept is None else np.frombuffer(kept, np.uint8, count)
        pixels = flat.reshape(height, width, 3)
        pixels.flags.writeable = False
        return DecodedImage(pixels, ALL_FORMATS[place], original_width, original_height)


def _size(reply: bytes, limits: DecodeLimits) -> tuple[int, int]:
    _, original_width, original_height, width, height = REPLY.unpack(reply)
    # The original of a JPEG that is decoded at a reduced scale may be larger than what may be decoded.
    largest = _LARGEST_ORIGINAL * limits.max_pixels
    if not 0 < width * height <= limits.max_pixels or not 0 < original_width * original_height <= largest:
        raise ValueError("a picture of impossible size")
    return width, height


def _refusal(reply: bytes) -> ImageError:
    told = json.loads(reply[1:])
    reason, text = str(told["reason"]), str(told["text"])
    if not _REASON.fullmatch(reason):
        raise ValueError("a refusal of unknown kind")
    metadata = {str(name): str(value) for name, value in told["metadata"].items() if str(name).isidentifier()}
    return ImageError("".join(c if c.isprintable() else "?" for c in text), reason=reason, **metadata)


def _shared_memory(size: int) -> int:
    """The descriptor of memory that two processes can share, and neither shrink under the other's hands."""
    if sys.platform == "linux":
        import fcntl

        descriptor = os.memfd_create("cbir-image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return os.dup(file.fileno())
