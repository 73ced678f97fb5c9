"""The sandbox of a process that decodes untrusted bytes: no files, network or privileges, little memory."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

try:
    # Here and not where it is used: it looks for the system's libseccomp, which a confined process cannot.
    import pyseccomp
except (ImportError, OSError, RuntimeError, AttributeError):
    # It is installed on Linux only, and there are systems without the library.
    pyseccomp = None

__all__ = ["confine"]

_PARENT_DEATH_SIGNAL, _DUMPABLE, _NO_NEW_PRIVILEGES = 1, 4, 38
_KILL = 9
_OPEN_FILES = 32
#: The flag of a new thread among those of a new process.
_THREAD = 0x10000

# These system calls have the same numbers on every processor.
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
_ASK_VERSION = 1
# How many actions on files a version of Landlock knows, and since when it knows TCP ports (bind, connect) and what
# reaches out of the sandbox (abstract Unix sockets, signals).
_FILE_ACTIONS = {1: 13, 2: 14, 3: 15, 5: 16}
_PORTS_SINCE, _REACH_SINCE = 4, 6

# All that decoding, its answer and its end need.  Anything else fails with EPERM.
_SYSTEM_CALLS = (
    "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "close", "exit", "exit_group", "fcntl", "fstat",
    "futex", "getitimer", "getpid", "getrandom", "getrlimit", "getrusage", "gettid", "gettimeofday", "lseek",
    "madvise", "membarrier", "mmap", "mprotect", "mremap", "munmap", "nanosleep", "newfstatat", "poll", "ppoll",
    "pselect6", "read", "readv", "recvfrom", "recvmsg", "restart_syscall", "rseq", "rt_sigaction", "rt_sigprocmask",
    "rt_sigreturn", "sched_getaffinity", "sched_yield", "select", "sendmsg", "sendto", "set_robust_list",
    "setitimer", "sigaltstack", "tgkill", "write", "writev",
)  # fmt: skip


def confine(memory_bytes: int, *, threads: bool = False) -> tuple[str, ...]:
    """Give up what decoding does not need, for good.  What this system cannot do is left out.

    Args:
        memory_bytes: Address space that may be added to what the process has.
        threads: Whether threads may be started, without which HEIC cannot be decoded; processes may not, where there is
            seccomp to tell the two apart.

    Returns:
        What holds, of ``limits``, ``landlock`` and ``seccomp``.
    """
    _limit(memory_bytes, threads)
    if sys.platform != "linux":
        return ("limits",)
    libc = ctypes.CDLL(None, use_errno=True)
    # It ends with the one who started it, in the middle of a long decode too.
    libc.prctl(_PARENT_DEATH_SIGNAL, _KILL, 0, 0, 0)
    libc.prctl(_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    return ("limits", *["landlock"] * _landlock(libc), *["seccomp"] * _seccomp(threads))


def _limit(memory_bytes: int, threads: bool) -> None:
    bounds = {
        "CORE": 0, "FSIZE": 0, "MEMLOCK": 0, "NOFILE": _OPEN_FILES, "AS": _address_space() + memory_bytes,
    }  # fmt: skip
    if not threads:
        # The system counts threads as processes, of all programs of this user.
        bounds["NPROC"] = 0
    for name, most in bounds.items():
        # Some systems lack one of them, or know it and refuse to set it.
        with suppress(AttributeError, OSError, ValueError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


def _address_space() -> int:
    """Bytes of address space that the process has; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("ports", ctypes.c_uint64), ("reach", ctypes.c_uint64))


def _landlock(libc: ctypes.CDLL) -> bool:
    """A set of rules without a rule: no file, no port, no signal to others.  What is open stays open."""
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < 1:
        return False
    actions = max(count for since, count in _FILE_ACTIONS.items() if since <= version)
    ports, reach = version >= _PORTS_SINCE, version >= _REACH_SINCE
    ruleset = _Ruleset((1 << actions) - 1, 0b11 * ports, 0b11 * reach)
    descriptor = libc.syscall(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(8 * (1 + ports + reach)), 0)
    if descriptor < 0:
        return False
    try:
        return bool(libc.syscall(_RESTRICT_SELF, descriptor, 0) == 0)
    finally:
        os.close(descriptor)


def _seccomp(threads: bool) -> bool:
    if pyseccomp is None:
        return False
    allowed = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    # No rule looks at arguments: the kernel remembers what is always allowed, and a look would cost as much as the rest
    # of the hop to the worker.
    for name in _SYSTEM_CALLS:
        # This processor may lack one of them, or the library not know it.
        with suppress(OSError, ValueError):
            allowed.add_rule(pyseccomp.ALLOW, name)
    if threads:
        thread = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _THREAD, _THREAD)
        with suppress(OSError, ValueError):
            allowed.add_rule(pyseccomp.ALLOW, "clone", thread)
            # What it is asked for lies in memory, where no rule can look; without it, the call above is used.
            allowed.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    try:
        allowed.load()
    except OSError:
        return False
    return True
