"""torch on a CUDA GPU: half precision, a stream for each member, pinned buffers, one graph a batch size.

Nothing here waits for the GPU but :meth:`_Pending.result`, so that the members of an ensemble can all be started before
the first is waited for.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.ensemble.runtime.choice import Precision
from cbir.core.ensemble.runtime.input_format import InputFormat

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["CudaEmbedder", "bucket"]

_log = logging.getLogger(__name__)

#: Largest batch that gets buffers and a graph of its own; longer ones go through in pieces of this length.
_LARGEST = 64
#: Passes before a graph is captured: libraries choose their algorithms and take their workspaces in them.
_REHEARSALS = 2


def bucket(count: int) -> int:
    """The batch size that ``count`` images are padded to: the next power of two, at most 64."""
    return min(_LARGEST, 1 << max(0, count - 1).bit_length())


@dataclass
class _Slot:
    """What one batch size owns: its buffers on both sides, and the graph that leads from images to unit vectors."""

    sent: Tensor
    images: Tensor
    graph: Any | None
    unit: Tensor | None
    received: Tensor
    done: Any | None


class CudaEmbedder:
    """A torch module that maps normalised (B, 3, S, S) images to (B, D) features, on a GPU.

    Args:
        module: Left as it is: the GPU gets a copy.
        autocast: Keep the weights in float32 and let torch choose, operation by operation, what is computed in half
            precision: for modules that mix the two badly.
        place: torch's name of the device.  On ``cpu`` everything runs as on a GPU, but without streams and graphs.
    """

    runtime = "torch-cuda"

    def __init__(
        self, module: nn.Module, form: InputFormat, precision: Precision, *, autocast: bool = False, place: str = "cuda"
    ) -> None:
        import torch

        self._torch = torch
        self._device = torch.device(place)
        self._has_gpu = self._device.type == "cuda"
        half = {Precision.BF16: torch.bfloat16, Precision.F16: torch.float16}.get(precision)
        self._autocast = half if autocast else None
        self._dtype = torch.float32 if half is None or autocast else half
        self._module = (
            copy.deepcopy(module)
            .eval()
            .requires_grad_(False)
            .to(self._device, self._dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        )
        self._mean = torch.tensor(form.mean, device=self._device).mul_(255).view(1, 3, 1, 1)
        self._scale = torch.tensor(form.std, device=self._device).mul_(255).reciprocal_().view(1, 3, 1, 1)
        # The weights above come by the default stream; a stream of its own knows nothing of it.
        self._stream = self._new_stream()
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._pool: Any = None
        self._slots: dict[int, _Slot] = {}
        self.graphs = True
        self.size, self.interpolation, self.precision = form.size, form.interpolation, str(precision)
        self.dim = self.embed(np.zeros((1, self.size, self.size, 3), np.uint8)).shape[1]

    def embed(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :class:`cbir.core.ensemble.embedder.Embedder`."""
        if len(batch) > _LARGEST:
            return np.concatenate([self.embed(batch[i : i + _LARGEST]) for i in range(0, len(batch), _LARGEST)])
        return self.begin(batch).result()

    def begin(self, batch: NDArray[np.uint8]) -> _Pending:
        """See :class:`cbir.core.ensemble.embedder.Starts`."""
        if len(batch) > _LARGEST:
            return _Pending(self.embed(batch), None)
        torch, count = self._torch, len(batch)
        slot = self._slot(bucket(count))
        # What pads the batch is the rest of an earlier one; its embeddings are dropped.
        slot.sent.numpy()[:count] = batch
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            slot.images.copy_(slot.sent, non_blocking=True)
            slot.received.copy_(self._run(slot), non_blocking=True)
            if slot.done is not None:
                slot.done.record()
        return _Pending(slot.received.numpy()[:count], slot.done)

    def replay(self, count: int) -> None:
        """Start the forward pass of ``count`` images that are on the GPU already, and leave the result there.

        It is the bare cost that benchmarks compare with.
        """
        slot = self._slot(bucket(count))
        with self._torch.inference_mode(), self._torch.cuda.stream(self._stream):
            self._run(slot)

    def _slot(self, count: int) -> _Slot:
        if count not in self._slots:
            self._slots[count] = self._open(count)
        return self._slots[count]

    def _run(self, slot: _Slot) -> Tensor:
        if slot.graph is None or slot.unit is None:
            return self._forward(slot.images)
        slot.graph.replay()
        return slot.unit

    def _new_stream(self) -> Any:
        # torch does not annotate it.
        return self._torch.cuda.Stream(self._device) if self._has_gpu else None  # type: ignore[no-untyped-call]

    def _forward(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 to (B, D) float32 unit vectors, on the device."""
        torch = self._torch
        # NHWC bytes seen as NCHW are what torch calls channels last; arithmetic keeps that order.
        normalised = (images.permute(0, 3, 1, 2).float() - self._mean) * self._scale
        # cuDNN times its algorithms on the first pass of each shape and keeps to the winners.
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=True),
            torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None),
        ):
            features = self._module(normalised.to(self._dtype))
        unit: Tensor = torch.nn.functional.normalize(features.flatten(1).float(), dim=1)
        return unit

    def _open(self, count: int) -> _Slot:
        """Make the buffers of a batch size, and capture its graph."""
        torch = self._torch
        shape = (count, self.size, self.size, 3)
        sent = torch.zeros(shape, dtype=torch.uint8, pin_memory=self._has_gpu)
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            images = torch.zeros(shape, dtype=torch.uint8, device=self._device)
            for _ in range(_REHEARSALS):
                unit = self._forward(images)
            received = torch.zeros(unit.shape, dtype=torch.float32, pin_memory=self._has_gpu)
        graph, output = self._capture(images) if self.graphs else (None, None)
        done = torch.cuda.Event() if self._has_gpu else None
        return _Slot(sent, images, graph, output, received, done)

    def _capture(self, images: Tensor) -> tuple[Any | None, Tensor | None]:
        """Record the kernels of one pass: replaying them costs one launch in place of hundreds."""
        torch = self._torch
        try:
            if self._stream is not None:
                self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            if self._pool is None:
                # Graphs of one member never run at once, so they share what lies between input and output.
                self._pool = torch.cuda.graph_pool_handle()
            # The engine before this one may be answering on its own thread meanwhile, and may allocate as it likes.
            with (
                torch.inference_mode(),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                unit = self._forward(images)
        except RuntimeError as error:
            detail = " ".join(str(error).split())[:160]
            _log.warning("no CUDA graphs for a member (%s): its kernels are launched one by one", detail)
            self.graphs = False
            # A capture that failed leaves its stream unusable.
            self._stream = self._new_stream()
            return None, None
        return graph, unit


class _Pending:
    """A batch on its way.  Valid until the embedder is asked again."""

    def __init__(self, embeddings: NDArray[np.float32], done: Any | None) -> None:
        self._embeddings, self._done = embeddings, done

    def result(self) -> NDArray[np.float32]:
        """Wait, and give (B, D) float32 unit vectors."""
        if self._done is not None:
            self._done.synchronize()
        return self._embeddings.copy()
