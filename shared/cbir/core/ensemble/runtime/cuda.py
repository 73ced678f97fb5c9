"""torch on a CUDA GPU: half precision, a stream for each member, pinned buffers, a CUDA graph for each batch size.

Only :meth:`_Pending.result` waits for the GPU, so all members of an ensemble can be started before the first one is
waited for.
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

#: Largest batch size with its own buffers and graph; larger batches are split.
_LARGEST = 64
#: Passes before a graph is captured, in which libraries choose algorithms and allocate workspaces.
_WARM_UP_PASSES = 2


def bucket(count: int) -> int:
    """The batch size that ``count`` images are padded to: the next power of two, at most 64."""
    return min(_LARGEST, 1 << max(0, count - 1).bit_length())


@dataclass
class _Slot:
    """What belongs to one batch size.

    Attributes:
        sent: Images in pinned memory of the host.
        images: The same images on the GPU.
        graph: The captured forward pass from ``images`` to ``unit``, or None.
        unit: The unit vectors on the GPU that the graph writes.
        received: Unit vectors in pinned memory of the host.
        done: The event that the pass is finished.
    """

    sent: Tensor
    images: Tensor
    graph: Any | None
    unit: Tensor | None
    received: Tensor
    done: Any | None


class CudaEmbedder:
    """A torch module that maps normalised (B, 3, S, S) images to (B, D) features, on a GPU.

    Args:
        module: Not changed: a copy goes to the GPU.
        autocast: Keep the weights in float32 and let torch choose for each operation whether it is computed in half
            precision; for modules whose weights cannot simply be converted.
        place: torch's name of the device.  On ``cpu``, for tests, everything runs without streams and graphs.
    """

    runtime, threads = "torch-cuda", 0

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
        # The weights are copied on the default stream; the member's own stream must wait for them.
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
        """See :class:`cbir.core.ensemble.embedder.AsyncEmbedder`."""
        if len(batch) > _LARGEST:
            return _Pending(self.embed(batch), None)
        torch, count = self._torch, len(batch)
        slot = self._slot(bucket(count))
        # The rest of the buffer holds images of an earlier batch, whose embeddings are dropped.
        slot.sent.numpy()[:count] = batch
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            slot.images.copy_(slot.sent, non_blocking=True)
            slot.received.copy_(self._run(slot), non_blocking=True)
            if slot.done is not None:
                slot.done.record()
        return _Pending(slot.received.numpy()[:count], slot.done)

    def replay(self, count: int) -> None:
        """Start the forward pass of ``count`` images without copying images or embeddings, for benchmarks."""
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
        # torch has no annotation for it.
        return self._torch.cuda.Stream(self._device) if self._has_gpu else None  # type: ignore[no-untyped-call]

    def _forward(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 to (B, D) float32 unit vectors, on the device."""
        torch = self._torch
        # NHWC data viewed as NCHW is what torch calls channels last, and operations keep that order.
        normalised = (images.permute(0, 3, 1, 2).float() - self._mean) * self._scale
        # With benchmark, cuDNN times its algorithms on the first pass of each shape and keeps the fastest.
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=True),
            torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None),
        ):
            features = self._module(normalised.to(self._dtype))
        unit: Tensor = torch.nn.functional.normalize(features.flatten(1).float(), dim=1)
        return unit

    def _open(self, count: int) -> _Slot:
        """Allocate the buffers of a batch size and capture its graph."""
        torch = self._torch
        shape = (count, self.size, self.size, 3)
        sent = torch.zeros(shape, dtype=torch.uint8, pin_memory=self._has_gpu)
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            images = torch.zeros(shape, dtype=torch.uint8, device=self._device)
            for _ in range(_WARM_UP_PASSES):
                unit = self._forward(images)
            received = torch.zeros(unit.shape, dtype=torch.float32, pin_memory=self._has_gpu)
        graph, output = self._capture(images) if self.graphs else (None, None)
        done = torch.cuda.Event() if self._has_gpu else None
        return _Slot(sent, images, graph, output, received, done)

    def _capture(self, images: Tensor) -> tuple[Any | None, Tensor | None]:
        """Capture the kernels of one pass in a graph, which is launched at once instead of hundreds of kernels."""
        torch = self._torch
        try:
            if self._stream is not None:
                self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            if self._pool is None:
                # Graphs of one member never run at the same time, so they can share the memory of intermediate results.
                self._pool = torch.cuda.graph_pool_handle()
            # thread_local: during a reload the previous engine may allocate memory on its own thread meanwhile.
            with (
                torch.inference_mode(),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                unit = self._forward(images)
        except RuntimeError as error:
            detail = " ".join(str(error).split())[:160]
            _log.warning("no CUDA graphs for a member (%s): its kernels are launched one by one", detail)
            self.graphs = False
            # After a failed capture the stream cannot be used.
            self._stream = self._new_stream()
            return None, None
        return graph, unit


class _Pending:
    """A batch that was started.  Valid until the next call of the embedder."""

    def __init__(self, embeddings: NDArray[np.float32], done: Any | None) -> None:
        self._embeddings, self._done = embeddings, done

    def result(self) -> NDArray[np.float32]:
        """Wait for its (B, D) float32 unit vectors."""
        if self._done is not None:
            self._done.synchronize()
        return self._embeddings.copy()
