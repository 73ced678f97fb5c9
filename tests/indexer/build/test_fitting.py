"""What is learnt from a gallery without labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import timm
import torch
from precision import f32
from safetensors.torch import save_file

from cbir.core.ensemble import MemberSpec, classifier_directions
from cbir.core.metric import Projection, class_affinity, neighbour_metrics, normalise
from cbir.indexer.build import fit_members


def gallery(width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(9, width))
    return normalise((centres[np.arange(180) % 9] + 0.8 * rng.normal(size=(180, width))).astype(np.float32))


def test_members_with_a_classifier_are_asked_who_is_near(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = timm.create_model("test_resnet")
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    taught = MemberSpec("taught", "timm", "test_resnet", str(tmp_path / "m.safetensors"), dim=12)
    untaught = MemberSpec("untaught", "timm", "test_resnet", dim=8, weight=0.5)
    raw = {"taught": gallery(model.num_features, 0), "untaught": gallery(24, 1)}
    fitted = fit_members(raw.__getitem__, [taught, untaught], None)
    assert [source for _, source in fitted.values()] == ["neighbours", "neighbours"]

    plain = [Projection(p.mean, p.basis, None).apply(raw[name]) for name, (p, _) in fitted.items()]
    classifier = classifier_directions(taught, model.num_features)
    assert classifier is not None
    affinities = [class_affinity(raw["taught"], classifier)]
    expected = neighbour_metrics(plain, weights=[1.0, 0.5], affinities=affinities)
    for (projection, _), metric in zip(fitted.values(), expected, strict=True):
        assert projection.metric is not None
        np.testing.assert_allclose(projection.metric, metric, atol=f32(2048) * np.abs(metric).max())
    without = neighbour_metrics(plain, weights=[1.0, 0.5])
    assert np.abs(without[0] - expected[0]).max() > 0.01 * np.abs(expected[0]).max()


def test_labels_need_no_classifier(tmp_path: Path) -> None:
    # Its weights file is gone since the embeddings were made: labels are all that is asked.
    member = MemberSpec("m", "timm", "test_resnet", str(tmp_path / "gone.safetensors"), dim=8)
    raw = gallery(24, 3)
    assert fit_members(lambda _: raw, [member], np.arange(180) % 9)["m"][1] == "labels"
