"""OpenVINO on the CPU: embedders, preprocessing inside the model, and how the package is imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.ensemble.runtime.input_format import InputFormat
from cbir.core.machine import threads

__all__ = ["OpenVinoEmbedder", "import_openvino", "openvino_core", "with_preprocessing"]


#: Most bytes of weights that are kept in memory twice.
_MAX_DOUBLED_BYTES = 256 * 2**20


def import_openvino() -> Any:
    """Import the module ``openvino`` without its telemetry.

    By default, importing it and converting with it reports to an analytics service over the network, from threads that
    fork.  Where the package ``openvino_telemetry`` cannot be imported, it uses a stub that reports nothing.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


@lru_cache(maxsize=1)
def openvino_core() -> Any:
    """The one OpenVINO core of this process.

    Its CPU plug-in sets an alternate signal stack for the thread, and restores the previous one when the core is
    deleted.  Where several cores are deleted in another order than they were created, the thread is left with a freed
    stack, and the next signal, even a plain SIGTERM, kills the process.  So there is one core, which is never deleted.
    """
    return import_openvino().Core()


class OpenVinoEmbedder:
    """An OpenVINO model that maps (B, S, S, 3) uint8 images to (B, D) features; preprocessing is in the graph.

    A small batch is computed by all cores together.  A batch of at least two images a core is divided among the cores:
    cores that work on the same images wait for each other after every layer, so that other work on one core (decoding,
    answering) would delay all of them.  This keeps the weights in memory twice, so it is not done for large models.

    Batches are not padded: a new batch size costs some milliseconds once, padding would cost more each time.

    Args:
        size: Side of the square input in pixels.
        interpolation: How images are resampled to that square.
        precision: ``f32``, ``bf16`` or ``f16``: what the CPU computes with; ``int8``: the model is quantised, and the
            rest of it is computed in float32.

    Attributes:
        threads: Threads of a forward pass.
    """

    runtime = "openvino"

    def __init__(self, model: Any, size: int, interpolation: str, precision: str = "f32") -> None:
        hint = "f32" if precision == "int8" else str(precision)
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        if count := threads().inference:
            settings["INFERENCE_NUM_THREADS"] = str(count)
        compiled = openvino_core().compile_model(model, "CPU", settings)
        self._request = compiled.create_infer_request()
        self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        self._single = model.input(0).partial_shape[0].is_static and model.input(0).shape[0] == 1
        self._alone: list[Any] = []
        if self.threads > 1 and not self._single and _weight_bytes(model) <= _MAX_DOUBLED_BYTES:
            apart = {"NUM_STREAMS": str(self.threads), "INFERENCE_NUM_THREADS": str(self.threads)}
            streams = openvino_core().compile_model(model, "CPU", {**apart, "INFERENCE_PRECISION_HINT": hint})
            self._alone = [streams.create_infer_request() for _ in range(self.threads)]
        self.size, self.interpolation, self.precision = size, interpolation, str(precision)
        self.dim = self.embed(np.zeros((1, size, size, 3), np.uint8)).shape[1]

    def embed(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :class:`cbir.core.ensemble.embedder.Embedder`."""
        if self._single and len(batch) != 1:
            return np.concatenate([self.embed(batch[i : i + 1]) for i in range(len(batch))])
        return self.begin(batch).result()

    def begin(self, batch: NDArray[np.uint8]) -> _Pending:
        """See :class:`cbir.core.ensemble.embedder.AsyncEmbedder`; a batch that is not divided is done on return."""
        if self._single and len(batch) != 1:
            return _Pending([], self.embed(batch))
        images = np.ascontiguousarray(batch)
        if not self._alone or len(images) < 2 * len(self._alone):
            _set_input(self._request, images)
            self._request.infer(share_outputs=True)
            return _Pending([self._request], images)
        for request, part in zip(self._alone, np.array_split(images, len(self._alone)), strict=True):
            # An earlier batch whose result was not taken may still be running.
            request.wait()
            _set_input(request, part)
            request.start_async()
        return _Pending(self._alone, images)


class _Pending:
    """A batch that was started or is done, and its images.  Valid until the next call of the embedder."""

    def __init__(self, requests: Sequence[Any], array: NDArray[Any]) -> None:
        self._requests, self._array = requests, array

    def result(self) -> NDArray[np.float32]:
        """Wait for its (B, D) float32 unit vectors."""
        if not self._requests:
            return self._array
        for request in self._requests:
            request.wait()
        parts = [request.get_output_tensor(0).data for request in self._requests]
        # A copy, because the requests will overwrite their outputs.
        features = np.concatenate([part.reshape(len(part), -1) for part in parts], dtype=np.float32)
        norms = np.sqrt(np.einsum("ij,ij->i", features, features))
        features /= np.maximum(norms, 1e-12)[:, None]
        return features


def _set_input(request: Any, images: NDArray[np.uint8]) -> None:
    """Set the input as a tensor, which is much faster than to let OpenVINO convert an array."""
    request.set_input_tensor(import_openvino().Tensor(images, shared_memory=True))


def _weight_bytes(model: Any) -> int:
    return sum(op.get_byte_size() for op in model.get_ops() if op.get_type_name() == "Constant")


def with_preprocessing(model: Any, form: InputFormat, layout: str) -> Any:
    """Give an OpenVINO model a uint8 (B, S, S, 3) RGB input in place of its normalised float input.

    Args:
        layout: The layout of the model's own input, ``NCHW`` or ``NHWC``.
    """
    ov = import_openvino()
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout(layout))
    chain = steps.input().preprocess().convert_element_type(ov.Type.f32)
    chain.mean([255 * m for m in form.mean]).scale([255 * s for s in form.std])
    return steps.build()
