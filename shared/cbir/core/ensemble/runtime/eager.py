"""torch on the CPU, eager and in float32: the reference for every other runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cbir.core.ensemble.runtime.input_format import InputFormat
from cbir.core.machine import threads

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TorchEmbedder"]


class TorchEmbedder:
    """A torch module that maps normalised (B, 3, S, S) float images to (B, D) features."""

    runtime, precision = "torch-cpu", "f32"

    def __init__(self, module: nn.Module, form: InputFormat) -> None:
        import torch

        if count := threads().inference:
            torch.set_num_threads(count)
        self._torch, self.threads = torch, torch.get_num_threads()
        self._module = module.eval().to(memory_format=torch.channels_last)
        self._mean = torch.tensor(form.mean).mul_(255).view(1, 3, 1, 1)
        self._scale = torch.tensor(form.std).mul_(255).reciprocal_().view(1, 3, 1, 1)
        self.size, self.interpolation = form.size, form.interpolation
        self.dim = self.embed(np.zeros((1, self.size, self.size, 3), np.uint8)).shape[1]

    def embed(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :class:`cbir.core.ensemble.embedder.Embedder`."""
        torch = self._torch
        with torch.inference_mode():
            images = torch.from_numpy(batch).permute(0, 3, 1, 2)
            features = self._module((images.float() - self._mean) * self._scale)
            result: NDArray[np.float32] = torch.nn.functional.normalize(features.flatten(1).float(), dim=1).numpy()
        return result
