"""What is known of how a version is searched on this machine, without measuring anything."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from cbir.core.artifacts import IndexVersion
from cbir.core.search.kernels.choice import MIN_MEASURED, key_of, suffices_alone
from cbir.core.search.kernels.kept_choices import KERNELS, Choice, gallery_digest, read
from cbir.core.search.kernels.timing import BATCH
from cbir.core.search.matrices.cpu_matrix import stored_as
from cbir.core.search.matrices.gallery_matrix import keeps_float32
from cbir.core.vote import normalised_weights

__all__ = ["kernel_facts"]


def kernel_facts(version: IndexVersion) -> dict[str, Any]:
    """How exact search of a version runs on this machine's CPU.

    Returns:
        ``state``: ``product`` for a gallery so small that nothing is measured, ``unknown`` until it was loaded here
        once, else ``measured``; ``candidates``: what is measured; and where it was measured, ``one`` and ``batch``: the
        kernels chosen, ``batch_size``, the ``threads`` for which, and ``milliseconds`` a query of either by kernel.

    Raises:
        ArtifactError: A file of the version is damaged.
    """
    members = [member.name for member in version.manifest.ensemble.members]
    embeddings = [version.embeddings(name) for name in members]
    count, stops = len(embeddings[0]), [0, *itertools.accumulate(int(part.shape[1]) for part in embeddings)]
    if count * stops[-1] < MIN_MEASURED:
        return {"state": "product", "candidates": ["product"]}
    in_float32 = keeps_float32(count, stops[-1])
    candidates = [name for name in KERNELS if not (in_float32 and name == "f16")]
    weights = normalised_weights(np.array([version.vote.weights[name] for name in members], np.float32))
    stored = "float32" if in_float32 else stored_as(embeddings)
    digest = gallery_digest(
        lambda rows: np.concatenate([part[rows].astype(np.float32) for part in embeddings], axis=1), count, weights
    )

    def known(threads: int) -> Choice | None:
        kept = read(key_of(count, stops, stored, threads))
        return kept.galleries.get(digest) if kept else None

    threads, choice = 1, known(1)
    if choice is None or not suffices_alone(choice):
        threads, choice = torch.get_num_threads(), known(torch.get_num_threads())
    if choice is None:
        return {"state": "unknown", "candidates": candidates}
    return {
        "state": "measured", "candidates": candidates, "one": choice.one, "batch": choice.batch, "batch_size": BATCH,
        "threads": threads,
        "milliseconds": {name: {"one": one, "batch": batch} for name, (one, batch) in choice.costs.items()},
    }  # fmt: skip
