"""Networks with random weights and an index of random vectors: the cost of a query does not depend on their values.

Weights are drawn once and saved as .safetensors, so that all contenders load the same ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import safetensors.torch
import timm
import torch

from cbir.core.artifacts import Gallery, GalleryImage, IndexStore
from cbir.core.ensemble import EnsembleSpec, load_ensemble, member_fingerprint
from cbir.core.images import Box
from cbir.core.metric import normalise
from cbir.core.vote import VoteSettings
from cbir.indexer.build import VersionContent, write_version
from cbir.indexer.samples.sample_split import write_samples


@dataclass(frozen=True)
class Network:
    """A network whose weights are drawn at random.

    Attributes:
        width: Length of its embedding.
    """

    name: str
    backend: str
    model: str
    width: int
    options: dict[str, Any] = field(default_factory=dict)

    def create(self) -> torch.nn.Module:
        """The network, always with the same weights; for a CLIP model, both towers."""
        torch.manual_seed(0)
        if self.backend == "open_clip":
            return open_clip.create_model(self.model, **self.options)
        return timm.create_model(self.model, pretrained=False, num_classes=0, **self.options)


#: The sets of networks by name: ``gpu.py`` and ``user_loop.py`` take any of them.
SETS = {
    "three": (
        Network("clip", "open_clip", "ViT-B-32", 512),
        Network("resnetv2", "timm", "resnetv2_50", 2048),
        Network("convnext", "timm", "convnext_tiny", 768),
    ),
    "standard": (
        Network("clip", "open_clip", "ViT-B-32-256", 512),
        Network("vit-clip", "open_clip", "ViT-L-14", 768),
        Network("convnext", "timm", "convnext_base.clip_laion2b_augreg_ft_in12k", 1024),
        Network("resnetv2", "timm", "resnetv2_50x1_bit.goog_in21k", 2048),
        Network("glrtml", "timm", "resnet50", 2048),
    ),
    "vit": (Network("vit", "timm", "vit_base_patch32_224", 768),),
    "tiny": (
        Network("resnet", "timm", "test_resnet", 96),
        Network("vit", "timm", "test_vit", 64),
    ),
}


def write_ensemble(folder: Path, name: str, crop: str) -> Path:
    """Save the weights of a set and an ensemble file that refers to them; existing weights are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["[ensemble]", f'name = "{name}"', f'crop = "{crop}"']
    for network in SETS[name]:
        file = folder / f"{network.model}.safetensors"
        if not file.exists():
            partial = file.with_suffix(".partial")
            safetensors.torch.save_file(network.create().state_dict(), partial)
            partial.rename(file)
        options = ", ".join(f"{key} = {json.dumps(value)}" for key, value in network.options.items())
        lines += [
            "[[members]]", f'name = "{network.name}"', f'backend = "{network.backend}"', f'model = "{network.model}"',
            f'weights = "{file.name}"', f"options = {{ {options} }}", "dim = 128", 'metric = "pca"', "text = false",
        ]  # fmt: skip
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def raw_vectors(network: Network, images: int) -> np.ndarray:
    """(N, width) float32 unit vectors."""
    rng = np.random.default_rng(network.width)
    return normalise(rng.standard_normal((images, network.width), dtype=np.float32))


def publish(out: Path, ensemble: EnsembleSpec, images: int) -> None:
    """Publish an index of so many images; they share 64 drawn files, on which int8 quantisation is calibrated."""
    box = Box(0, 0, 256, 256)
    files = write_samples(out.with_name("pictures").absolute(), per_class=4)

    def image(number: int) -> GalleryImage:
        digest = hashlib.sha256(number.to_bytes(8, "little"))
        phash = int.from_bytes(digest.digest()[:8], "little")
        file = str(files[number % len(files)])
        return GalleryImage(
            f"{number:09}", file, f"class {number % 50}", 256, 256, digest.hexdigest(), phash, box
        )  # fmt: skip

    networks = {network.name: network for network in SETS[ensemble.name]}
    content = VersionContent(
        Gallery.from_images([image(number) for number in range(images)]),
        ensemble,
        lambda member: raw_vectors(networks[member], images),
        {member.name: member_fingerprint(member, ensemble.crop) for member in ensemble.members},
        VoteSettings({member.name: 1.0 for member in ensemble.members}),
        device="cpu",
    )
    store = IndexStore(out)
    with store.lock():
        write_version(store.begin(), content, lambda progress: None)


def prepared_index(folder: Path, name: str, images: int, crop: str = "none") -> tuple[EnsembleSpec, Path]:
    """The ensemble of a set and an index made with it, reused if an earlier run left them."""
    ensemble = load_ensemble(str(write_ensemble(folder / "weights", name, crop)))
    index = folder / f"index-{name}-{images}-{crop}"
    if not IndexStore(index).has_current():
        publish(index, ensemble, images)
    return ensemble, index


def main() -> None:
    """Write the index of a set, and pictures to ask with beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder for weights, pictures and the index")
    parser.add_argument("--set", choices=tuple(SETS), default="vit", help="networks (%(default)s)")
    parser.add_argument("--images", type=int, default=2000, help="of the gallery (%(default)s)")
    args = parser.parse_args()
    print(prepared_index(args.out, args.set, args.images)[1])


if __name__ == "__main__":
    main()
