"""Decoding in worker processes: the same pixels, and whatever happens to a worker costs one image."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hostile_images
import numpy as np
import pytest
from icc_profiles import profile
from images import encode, pattern
from PIL import Image

from cbir.core.errors import ImageError
from cbir.core.images import DecodeLimits, DecodingPool, decode_image, decoding_pool, is_slow
from cbir.core.images.decoding_process import LostWorkerError, Worker
from cbir.core.images.decoding_worker import ARENA, FAILED, REPLY, WANTS_ROOM
from cbir.core.images.formats import enable_extra_format

LIMITS = DecodeLimits()
GOOD = hostile_images.jpeg()
#: Takes some tenths of a second.
SLOW = hostile_images.deep_png(3000, 3000, colour=2)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodingPool]:
    with DecodingPool(2) as pool:
        yield pool


def refusal(pool: DecodingPool, data: bytes, limits: DecodeLimits = LIMITS, **options: object) -> ImageError:
    with pytest.raises(ImageError) as caught:
        pool.decode(data, limits, **options)
    return caught.value


def file(size: tuple[int, int], name: str) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, name)
    return out.getvalue()


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_workers_give_the_same_pixels(pool: DecodingPool, name: str) -> None:
    data = file((70, 50), name)
    here, there = decode_image(data), pool.decode(data, LIMITS)
    assert np.array_equal(here.pixels, there.pixels)
    assert (here.format, here.width, here.height) == (there.format, there.width, there.height)
    assert not there.pixels.flags.writeable


def test_files_and_pictures_larger_than_the_shared_memory(pool: DecodingPool) -> None:
    data = file((1800, 1600), "BMP")
    assert len(data) > ARENA
    whole = replace(LIMITS, draft_side=None)
    first, second = pool.decode(data, whole), pool.decode(file((1600, 1800), "BMP"), whole)
    assert first.pixels.nbytes > ARENA
    # The first is not written over by the second.
    assert np.array_equal(first.pixels, decode_image(data, whole).pixels)
    assert second.pixels.shape == (1800, 1600, 3)


@pytest.mark.parametrize("data", [b"", b"no picture", GOOD[: len(GOOD) // 2], GOOD[:300]])
def test_refusals_are_the_same_too(pool: DecodingPool, data: bytes) -> None:
    with pytest.raises(ImageError) as here:
        decode_image(data)
    there = refusal(pool, data)
    assert (there.reason, str(there), there.metadata) == (here.value.reason, str(here.value), here.value.metadata)


def test_limits_travel_along(pool: DecodingPool) -> None:
    assert refusal(pool, GOOD, DecodeLimits(max_pixels=100)).reason == "IMAGE_TOO_MANY_PIXELS"
    assert refusal(pool, GOOD, DecodeLimits(max_bytes=100)).reason == "IMAGE_TOO_LARGE"
    # A photo may have more pixels than the limit where it is decoded at a reduced scale.
    large = hostile_images.jpeg(900, 600)
    assert pool.decode(large, DecodeLimits(max_pixels=250_000, draft_side=100)).width == 900
    assert pool.decode(large, DecodeLimits(draft_side=100)).pixels.shape < (600, 900, 3)


def test_what_prints_megabytes_prints_nothing(pool: DecodingPool, capfd: pytest.CaptureFixture[str]) -> None:
    fax = hostile_images.garbled_fax()
    decode_image(fax)
    assert "Bad code word" in capfd.readouterr().err
    pool.decode(fax, LIMITS)
    assert capfd.readouterr() == ("", "")


def test_a_worker_that_is_killed_costs_its_own_image_only(pool: DecodingPool) -> None:
    lost = pool.lost
    at_work: list[int] = []

    def kill() -> bool:
        """Asked on the thread that waits: the worker is in the middle of it."""
        if not at_work:
            at_work.append(1)
            os.kill(victim[0], signal.SIGKILL)
        return True

    victim: list[int] = []
    take = pool._take

    def watch(slow: bool, memory: int) -> Worker:
        worker = take(slow, memory)
        victim.append(worker._pid)
        return worker

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "_take", watch)
        error = refusal(pool, SLOW, go_on=kill)
    assert (error.reason, error.metadata) == ("IMAGE_CORRUPT", {"format": "PNG"})
    assert pool.lost == lost + 1
    assert (decoded := pool.decode(SLOW, LIMITS)).width == 3000
    assert decoded.pixels.shape == (750, 750, 3)
    assert pool.decode(GOOD, LIMITS).format == "JPEG"


def test_an_image_for_which_nobody_waits_is_stopped(pool: DecodingPool) -> None:
    begun = time.monotonic()
    assert refusal(pool, hostile_images.skipping_bmp(1_000_000, 100), go_on=lambda: False).reason == "IMAGE_ABANDONED"
    assert time.monotonic() - begun < 5
    assert pool.decode(GOOD, LIMITS).format == "JPEG"


def test_an_image_that_takes_too_long_is_refused_and_others_are_served_meanwhile() -> None:
    with DecodingPool(1, seconds=0.5, niceness=0) as pool:
        pool.decode(GOOD, LIMITS)
        refused: list[ImageError] = []
        bomb = hostile_images.skipping_bmp(1_000_000, 100)
        assert is_slow(bomb)
        thread = threading.Thread(target=lambda: refused.append(refusal(pool, bomb)))
        thread.start()
        served = 0
        while thread.is_alive():
            assert pool.decode(GOOD, LIMITS).format == "JPEG"
            served += 1
        thread.join()
    assert refused[0].reason == "IMAGE_TOO_COSTLY"
    assert "0.5 seconds" in str(refused[0])
    assert served > 10


def test_an_image_that_takes_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_pool, "_WORKER_BYTES", 2**20)
    with DecodingPool(1, max_pixels=1_000_000) as pool:
        error = refusal(pool, hostile_images.deep_png(3000, 3000, depth=8))
        assert error.reason == "IMAGE_TOO_COSTLY"
        assert "memory" in str(error)
        assert pool.decode(GOOD, LIMITS).format == "JPEG"


def test_memory_in_flight_is_bounded() -> None:
    """Two large images wait for each other; a small one waits for neither."""
    image = hostile_images.deep_png(1500, 1500, depth=8)
    with DecodingPool(2, in_flight_bytes=50_000_000) as pool:
        busy: list[int] = []
        give_back = pool._give_back

        def watch(slow: bool, worker: Worker | None, memory: int) -> None:
            busy.append(pool._busy[slow])
            give_back(slow, worker, memory)

        pool._give_back = watch  # type: ignore[method-assign]
        threads = [threading.Thread(target=pool.decode, args=(image, LIMITS)) for _ in range(4)]
        for thread in threads:
            thread.start()
        pool.decode(GOOD, LIMITS)
        for thread in threads:
            thread.join()
    assert busy == [1] * 5


def test_a_worker_gives_up_files_network_and_other_processes() -> None:
    script = """
import errno, json, os, socket, sys
from cbir.core.images.sandbox import confine
import resource
held = confine(2**28)
def attempt(act):
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno]
    except MemoryError:
        return "MemoryError"
    return "done"
print(json.dumps({"held": held, "tried": {
    "read": attempt(lambda: open("/etc/hostname")),
    "write": attempt(lambda: open("/tmp/cbir-written", "w")),
    "list": attempt(lambda: os.listdir("/")),
    "connect": attempt(lambda: socket.create_connection(("127.0.0.1", 9), 1)),
    "run": attempt(lambda: os.execv(sys.executable, [sys.executable])),
    "fork": attempt(lambda: os.fork() or os._exit(0)),
    "kill": attempt(lambda: os.kill(os.getppid(), 0)),
    "memory": attempt(lambda: bytearray(2**29)),
}}))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    told = json.loads(run.stdout)
    assert told["held"][0] == "limits"
    assert told["tried"]["memory"] == "MemoryError"
    if "landlock" in told["held"]:
        assert {told["tried"][name] for name in ("read", "write", "list", "run")} <= {"EACCES", "EPERM"}
        assert told["tried"]["connect"] != "done"
    if "seccomp" in told["held"]:
        assert {told["tried"][name] for name in ("read", "connect", "run", "fork", "kill")} == {"EPERM"}
    if sys.platform == "linux":
        assert "seccomp" in told["held"] or "landlock" in told["held"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_end_with_a_program_that_is_killed() -> None:
    script = """
import sys, time
from cbir.core.images import DecodingPool
pool = DecodingPool(1)
pool.start()
print(pool._nursery._process.pid, pool._idle[False][0]._pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        pids = [int(word) for word in program.stdout.readline().split()]
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        program.kill()
    ends = time.monotonic() + 20
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < ends
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "reply",
    [
        b"x",
        bytes((FAILED,)) + b"no json",
        bytes((FAILED,)) + json.dumps({"reason": "__class__", "text": "", "metadata": {}}).encode(),
        bytes((FAILED,)) + json.dumps({"reason": "IMAGE_X", "text": "", "metadata": 3}).encode(),
        REPLY.pack(0, 10, 10, 2**31, 2**31),
        REPLY.pack(0, 2**31, 1, 10, 10),
        REPLY.pack(0, 10, 10, 0, 10),
        REPLY.pack(200, 10, 10, 10, 10),
        REPLY.pack(0, 10, 10, 3000, 3000),
        REPLY.pack(WANTS_ROOM, 10, 10, 2**31, 2**31),
    ],
)  # fmt: skip
def test_a_worker_that_was_taken_over_is_not_believed(reply: bytes) -> None:
    mine, theirs = socket.socketpair()
    arena = os.memfd_create("arena") if hasattr(os, "memfd_create") else pytest.skip("no shared memory to hand")
    os.ftruncate(arena, ARENA)
    theirs.sendall(b"limits")
    worker = Worker(mine, arena, -1, None)
    os.close(arena)
    theirs.sendall(reply)
    with theirs, mine, pytest.raises(LostWorkerError):
        worker.decode(GOOD, DecodeLimits(max_pixels=10_000_000), 1.0)


def test_words_of_a_worker_hold_nothing_but_text() -> None:
    from cbir.core.images.decoding_process import _refusal

    told = {"reason": "IMAGE_CORRUPT", "text": "bad \x1b[31m\nfile", "metadata": {"format": "PNG", "not a name": 1}}
    error = _refusal(bytes((FAILED,)) + json.dumps(told).encode())
    assert str(error) == "bad ?[31m?file"
    assert error.metadata == {"format": "PNG"}


def test_workers_read_every_format_and_colour(pool: DecodingPool) -> None:
    """Whatever decoding needs was loaded before the workers were confined."""
    photo = pattern(2, 0, 96)
    files = {name: encode(photo, name) for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")}
    for name in ("HEIF", "JXL"):
        enable_extra_format(name)
        files[name] = encode(photo, name)
    files["wide colours"] = encode(photo, "PNG", icc_profile=profile("Display P3"))
    files["Lab"] = encode(photo.convert("LAB"), "TIFF")
    files["deep greys"] = encode(photo.convert("F"), "TIFF")
    files["cut JPEG"] = files["JPEG"][:-2]
    for name, data in files.items():
        here, there = decode_image(data), pool.decode(data, DecodeLimits())
        assert (here.format, here.width, here.height) == (there.format, there.width, there.height), name
        assert np.array_equal(here.pixels, there.pixels), name
