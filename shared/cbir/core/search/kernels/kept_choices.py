"""What was measured and chosen on this machine, kept for the next start in the folder of the cache.

There is a file for each key: processor and features, limits on its instructions, versions of libraries, threads, and
shapes.  It holds the times of the ways to search, and the choice for each gallery that was loaded, by a
digest of some of its rows.  A file that is not as expected is not believed: then all is measured again.  A choice
changes how long a search takes and never what it finds.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.machine import cache_folder, processor
from cbir.core.search.kernels.timing import Times

__all__ = ["BLOCKS", "KERNELS", "SCANS", "Choice", "Kept", "gallery_digest", "keep", "machine_key", "read"]

_log = logging.getLogger(__name__)

#: Version of the files; others are not read.
_LAYOUT = 3
_MOST_BYTES = 2**17
#: Galleries that a file remembers; the oldest is forgotten first.
_MOST_GALLERIES = 32
KERNELS = ("product", "scan", "bf16", "f16")
#: Components to a code of a scan.  Longer codes take time for every row; shorter ones leave more rows to score.
SCANS = (8, 4, 2)
#: Rows in a block of the codes' layout: FAISS has loops of their own for the first, and longer ones for all others.
BLOCKS = (32, 96)
_LIBRARIES = ("ensemble-cbir", "faiss-cpu", "faiss-gpu", "numba", "numpy", "torch")
#: Environment variables by which libraries are kept from using what a processor has.
_LIMITS = (
    "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "FAISS_OPT_LEVEL", "FAISS_SIMD_LEVEL", "MKL_ENABLE_INSTRUCTIONS",
    "NUMBA_CPU_FEATURES", "NUMBA_CPU_NAME", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE",
)  # fmt: skip
#: Bounds of times, in seconds a row and in milliseconds a query; beyond them nothing was measured.
_LEAST, _MOST = 1e-15, 1e9
#: What this process has measured, also where it could not be kept: it is not measured twice.
_measured: dict[str, Kept] = {}
_DIGEST_ROWS = 64


@dataclass(frozen=True)
class Choice:
    """How a gallery is searched.

    Attributes:
        one: The kernel for one query: ``product``, ``scan``, ``bf16`` or ``f16``.
        batch: The kernel for a full batch.
        components: Components to a code of the scan, 0 without a scan.
        depth: Rows that a scan lists at first.
        costs: Milliseconds that a query was expected to take, alone and in a batch, by kernel.
    """

    one: str
    batch: str
    components: int
    depth: int
    costs: Mapping[str, tuple[float, float]]

    def __post_init__(self) -> None:
        whole = all(type(number) is int for number in (self.components, self.depth))
        if not whole or self.components not in (0, *SCANS) or not 1 <= self.depth <= 2**31:
            raise ValueError("no such scan")
        if self.one not in KERNELS or self.batch not in KERNELS or not set(self.costs) <= set(KERNELS):
            raise ValueError("no such kernel")
        if ("scan" in (self.one, self.batch)) != bool(self.components):
            raise ValueError("a scan without its length of codes, or a length without a scan")
        _check_pairs(self.costs)


@dataclass(frozen=True)
class Kept:
    """What a file holds.

    Attributes:
        by_tiles: Whether float16 rows are converted by tiles for one query, too.
        galleries: The choice for each gallery, by digest.
        lasting: Whether other processes may use it; not in the file, as a file only holds what they may.
        block: Rows in a block of the layout of a scan's codes.
    """

    times: Times
    by_tiles: bool
    galleries: Mapping[str, Choice]
    lasting: bool = True
    block: int = BLOCKS[0]


def machine_key(rows: int, stops: Sequence[int], stored: str, threads: int) -> dict[str, Any]:
    """What the times depend on, plain data.

    Args:
        rows: That are measured at most.
        stops: Where the members' parts begin and end.
        stored: The type of the rows, and whether they are gathered.
    """
    versions = {}
    for name in _LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "layout": _LAYOUT, **processor(), "limits": {name: os.environ[name] for name in _LIMITS if name in os.environ},
        "libraries": versions, "threads": threads,
        # A gallery that grows by some images takes the same times.
        "rows": 1 << max(0, rows - 1).bit_length(), "stops": list(stops), "stored": stored,
    }  # fmt: skip


def gallery_digest(
    vectors_of: Callable[[NDArray[np.int64]], NDArray[np.float32]], rows: int, weights: NDArray[np.float32]
) -> str:
    """Names a gallery, by its size, the usual weights, and some of its rows."""
    some = np.linspace(0, rows - 1, min(rows, _DIGEST_ROWS)).astype(np.int64)
    digest = hashlib.blake2b(f"{rows} {weights.tolist()}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(vectors_of(some), np.float32).tobytes())
    return digest.hexdigest()


def read(key: Mapping[str, Any]) -> Kept | None:
    """What is kept for a key; None where there is nothing, or nothing that can be believed."""
    if (name := _name(key)) in _measured:
        return _measured[name]
    try:
        with _file(key).open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise ValueError("too long")
        document = json.loads(raw)
        if document["key"] != key:
            raise ValueError("of another machine")
        one, batch = ({str(k): v for k, v in document["times"][way].items()} for way in ("one", "batch"))
        if set(one) != set(batch) or not {"product"} <= set(one) <= set(KERNELS):
            raise ValueError("no such kernels")
        first, second = document["times"]["rescored"]
        times = Times(one, batch, (first, second), document["times"]["listed"])
        if type(times.listed) not in (int, float) or not 0 <= times.listed <= min(times.rescored):
            raise ValueError("rows that take longer to list than to list and score")
        _check_pairs({"rescored": times.rescored, **{name: (one[name], batch[name]) for name in one}})
        galleries = {
            str(name): Choice(**{**choice, "costs": {k: (a, b) for k, (a, b) in choice["costs"].items()}})
            for name, choice in document["galleries"].items()
        }
        if (block := document["block"]) not in BLOCKS or type(block) is not int:
            raise ValueError("no such layout of codes")
        return Kept(times, document["by_tiles"] is True, galleries, block=block)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _log.info("kept measurements of search are not used (%s): measuring again", error)
        return None


def keep(key: Mapping[str, Any], kept: Kept, digest: str, choice: Choice | None) -> None:
    """Keep times, and the choice for a gallery beside those of others, on disk if they are to last.

    Failing is no error.

    Args:
        choice: None: the gallery has none by these times.
    """
    galleries = {name: known for name, known in kept.galleries.items() if name != digest}
    if choice is not None:
        galleries = dict([*galleries.items(), (digest, choice)][-_MOST_GALLERIES:])
    kept = _measured[_name(key)] = replace(kept, galleries=galleries)
    if not kept.lasting:
        return
    document = {"key": dict(key), **asdict(kept)}
    del document["lasting"]
    file = _file(key)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        number, partial = tempfile.mkstemp(prefix=".partial-", dir=file.parent)
        try:
            with os.fdopen(number, "w", encoding="utf-8") as open_file:
                json.dump(document, open_file, indent=1)
            Path(partial).replace(file)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as error:
        _log.info("measurements of search are not kept (%s): the next start measures again", error)


def _name(key: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()


def _file(key: Mapping[str, Any]) -> Path:
    return cache_folder() / "search" / f"{_name(key)}.json"


def _check_pairs(pairs: Mapping[str, tuple[float, float]]) -> None:
    for pair in pairs.values():
        for number in pair:
            if type(number) not in (int, float) or not _LEAST <= number <= _MOST:
                raise ValueError("a time that is none")
