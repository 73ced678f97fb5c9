"""Indexes are built from mapped files, whatever other libraries have made of FAISS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

#: In a process of its own, because what faiss.contrib.torch_utils puts in place of FAISS's methods stays.
_BUILD = """
import sys
from pathlib import Path
import numpy as np
import faiss.contrib.torch_utils
from cbir.core.vector_index import build_index, load_index
vectors = np.load(sys.argv[1], mmap_mode="r")
path = Path(sys.argv[3])
build_index(sys.argv[2], vectors, path)
rows, _ = load_index(sys.argv[2], path, vectors, "cpu").search(np.asarray(vectors[:3], np.float32), 1)
print(rows[:, 0].tolist())
"""


@pytest.mark.parametrize("kind", ["faiss:Flat", "faiss:IVF4,Flat"])
def test_mapped_vectors_are_indexed(tmp_path: Path, kind: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(400, 8))
    np.save(tmp_path / "vectors.npy", (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16))
    told = subprocess.run(
        [sys.executable, "-c", _BUILD, str(tmp_path / "vectors.npy"), kind, str(tmp_path / "index.faiss")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout == "[0, 1, 2]\n"
