"""The processes in which images are decoded: one that forks workers, and the workers.

They hold the interpreter, NumPy, OpenCV and Pillow: no models, no connections but those to their owner, no files.  What
a worker sends back is a fixed record, and pixels in memory that it shares with the owner: never a pickled object, so
that a decoder that an image has taken over can tell wrong pixels, and no more.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image

from cbir.core.errors import ImageError
from cbir.core.images.colour import load_colours
from cbir.core.images.decode import DecodeLimits, decode_image
from cbir.core.images.formats import ALL_FORMATS, EXTRA_FORMATS, enable_extra_format, readable_formats
from cbir.core.images.sandbox import confine

__all__ = ["ARENA", "FAILED", "JOB", "LONGEST_REPLY", "REPLY", "WANTS_ROOM", "main"]

#: Bytes of memory that a worker shares with its owner all the time.  Larger files and pictures get memory of their own.
ARENA = 8 * 2**20
#: Length of the file, max_bytes, max_pixels, draft_side (0: none), seconds of processor time.
JOB = struct.Struct("<QQQQd")
#: Place in ALL_FORMATS, or one of the two below; width and height of the original; width and height of the pixels.
REPLY = struct.Struct("<BIIII")
WANTS_ROOM, FAILED = 254, 255
LONGEST_REPLY = 4096


def main(arguments: Sequence[str]) -> None:
    """Fork a worker whenever it is asked for, until the one who asks is gone.

    A request is one byte, by how much the worker's priority is lower, with two descriptors: the worker's socket and its
    arena.  The answer is the worker's process id, with a descriptor of the process where the system has such.

    Args:
        arguments: The descriptor of the socket for requests, and the bytes of memory that a worker may take.
    """
    control, memory_bytes = socket.socket(fileno=int(arguments[0])), int(arguments[1])
    # Nobody waits for workers, and Ctrl-C is for their owner, who ends them once it is done with them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _load_decoders()
    control.sendall(b"\0")
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not request:
            return
        child = os.fork()
        if not child:
            try:
                control.close()
                os.nice(request[0])
                _work(socket.socket(fileno=descriptors[0]), descriptors[1], memory_bytes)
            finally:
                os._exit(0)
        handles = []
        with suppress(AttributeError, OSError):
            handles.append(os.pidfd_open(child))
        socket.send_fds(control, [struct.pack("<i", child)], handles)
        for descriptor in (*descriptors, *handles):
            os.close(descriptor)


def _load_decoders() -> None:
    """Use each decoder once: confined workers can load nothing."""
    # Nor can they start threads, and the other cores have other workers.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    cv2.setNumThreads(1)
    Image.init()
    picture = Image.new("RGB", (16, 16), (200, 100, 50))
    load_colours()
    for name in readable_formats():
        if name in EXTRA_FORMATS:
            with suppress(ImageError):
                enable_extra_format(name)
        out = io.BytesIO()
        # Some can be read and not written.
        with suppress(OSError, KeyError, ValueError, ImageError):
            picture.save(out, name)
            decode_image(out.getvalue())
            decode_image(out.getvalue(), DecodeLimits(draft_side=4))


def _work(owner: socket.socket, shared: int, memory_bytes: int) -> None:
    """Decode one image after the other, until the owner is gone."""
    arena = mmap.mmap(shared, ARENA)
    os.close(shared)
    owner.sendall(" ".join(confine(memory_bytes, threads="HEIF" in readable_formats())).encode())
    while True:
        job, descriptors, _, _ = socket.recv_fds(owner, JOB.size, 1)
        if len(job) < JOB.size:
            return
        length, max_bytes, max_pixels, draft_side, seconds = JOB.unpack(job)
        data = _taken(descriptors[0], length) if descriptors else arena[:length]
        # It ends the process: what runs in C cannot be interrupted in another way.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        reply = _decode(owner, arena, data, DecodeLimits(max_bytes, max_pixels, draft_side or None))
        signal.setitimer(signal.ITIMER_PROF, 0)
        owner.sendall(reply)
        del data


def _taken(descriptor: int, length: int) -> bytes:
    with mmap.mmap(descriptor, length, prot=mmap.PROT_READ) as view:
        os.close(descriptor)
        return view[:]


def _decode(owner: socket.socket, arena: mmap.mmap, data: bytes, limits: DecodeLimits) -> bytes:
    """Decode, put the pixels where the owner finds them, and return the reply."""
    try:
        image = decode_image(data, limits)
    except ImageError as error:
        short = isinstance(error.__cause__, MemoryError)
        return _refusal("IMAGE_TOO_COSTLY" if short else error.reason, _SHORT if short else str(error), error.metadata)
    except (MemoryError, cv2.error):
        # OpenCV has no other word for it, and nothing else can go wrong with pixels that are there.
        return _refusal("IMAGE_TOO_COSTLY", _SHORT, {})
    height, width = image.pixels.shape[:2]
    sizes = image.width, image.height, width, height
    if image.pixels.nbytes <= ARENA:
        _put(image.pixels, arena)
    else:
        owner.sendall(REPLY.pack(WANTS_ROOM, *sizes))
        _, descriptors, _, _ = socket.recv_fds(owner, 1, 1)
        try:
            with mmap.mmap(descriptors[0], image.pixels.nbytes) as room:
                _put(image.pixels, room)
        except OSError:
            return _refusal("IMAGE_TOO_COSTLY", _SHORT, {})
    return REPLY.pack(ALL_FORMATS.index(image.format), *sizes)


def _put(pixels: NDArray[np.uint8], room: mmap.mmap) -> None:
    np.frombuffer(room, np.uint8, pixels.nbytes).reshape(pixels.shape)[:] = pixels


_SHORT = "decoding the image takes more memory than one image is given: shrink it first"


def _refusal(reason: str, text: str, metadata: dict[str, str]) -> bytes:
    told = {"reason": reason, "text": text[:1000], "metadata": {name: value[:200] for name, value in metadata.items()}}
    return bytes((FAILED,)) + json.dumps(told).encode()[: LONGEST_REPLY - 1]


if __name__ == "__main__":
    main(sys.argv[1:])
