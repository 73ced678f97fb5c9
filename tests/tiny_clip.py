"""Two very small open_clip models with (fixed) random weights, and an ensemble in which they and a ResNet vote."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
from small_index import reseal
from tiny_members import RESNET

from cbir.core.artifacts import IndexStore
from cbir.core.ensemble import MemberSpec

__all__ = ["ENSEMBLE", "claim_accuracy", "member", "register"]

#: ``clip`` and ``wide`` understand words, ``resnet`` does not.
ENSEMBLE = f"""
[ensemble]
name = "worded"
crop = "none"
[[members]]
name = "clip"
backend = "open_clip"
model = "tiny-clip"
dim = 16
metric = "pca"
{RESNET}metric = "pca"
weight = 3.0
[[members]]
name = "wide"
backend = "open_clip"
model = "tiny-clip-wide"
dim = 16
metric = "pca"
weight = 2.0
"""


@cache
def register() -> None:
    """Make the models known to open_clip, once a process."""
    with tempfile.TemporaryDirectory() as folder:
        for name, width in (("tiny-clip", 32), ("tiny-clip-wide", 48)):
            config = {
                "embed_dim": width,
                "vision_cfg": {"image_size": 32, "layers": 1, "width": width, "head_width": 16, "patch_size": 8},
                "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": width, "heads": 2, "layers": 1},
            }
            file = Path(folder) / f"{name}.json"
            file.write_text(json.dumps(config))
            open_clip.add_model_config(file)
            # The registry is read again whenever a model is added, from files that must then be there.
            open_clip.factory._MODEL_CONFIG_PATHS.pop()


def member(name: str = "clip", **changes: object) -> MemberSpec:
    """A member with one of the models."""
    register()
    model = {"clip": "tiny-clip", "wide": "tiny-clip-wide"}[name]
    return MemberSpec(name, "open_clip", model, **changes)  # type: ignore[arg-type]


def claim_accuracy(index: Path, accuracy: float) -> None:
    """Have an index say that its members know so many of its images by the names of their classes.

    Random weights know none, and so have no say.
    """

    def claim(manifest: dict[str, Any]) -> dict[str, Any]:
        for facts in manifest["members"].values():
            if facts["text"]:
                facts["zero_shot_accuracy"] = accuracy
        return manifest

    reseal(IndexStore(index), claim)
