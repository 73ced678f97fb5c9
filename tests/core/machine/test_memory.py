"""What a process makes its allocator keep."""

from __future__ import annotations

import platform
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from cbir.core.machine.hardware import cores

#: Twenty threads for each core allocate at the same time; then glibc lists its arenas.
_THREADS = """
import ctypes, sys, threading
from cbir.core.machine import share_arenas
from cbir.core.machine.hardware import cores
libc = ctypes.CDLL(None)
if sys.argv[1] == "shared":
    share_arenas()
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
together = threading.Barrier(20 * cores())
def allocate():
    together.wait()
    for _ in range(100):
        libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(together.parties)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fflush.argtypes = [ctypes.c_void_p]
out = libc.fdopen(1, b"w")
libc.malloc_info(0, out)
libc.fflush(out)
"""


def arenas(how: str) -> int:
    """How many arenas twenty threads a core have."""
    told = subprocess.run([sys.executable, "-c", _THREADS, how], capture_output=True, text=True, check=True)
    return len(ElementTree.fromstring(told.stdout).findall("heap"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
def test_arenas_are_as_many_as_cores_and_not_as_threads() -> None:
    assert arenas("shared") <= max(2, cores()) < arenas("as it is")
