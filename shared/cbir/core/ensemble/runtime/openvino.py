"""OpenVINO on the CPU."""

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


#: Most bytes of weights that are held a second time.
_TWICE_BYTES = 256 * 2**20


def import_openvino() -> Any:
    """The module ``openvino``, imported without its telemetry.

    Left alone, importing it and converting with it reports to an analytics service over the network, from threads
    that fork; without the package ``openvino_telemetry`` it uses a stub of its own that reports nothing.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


@lru_cache(maxsize=1)
def openvino_core() -> Any:
    """The one OpenVINO core of this process.

    Its CPU plug-in gives the thread an alternate signal stack and takes it back when the core goes. Of several cores
    that go in another order than they came, the last leaves a stack that is freed already, and the next signal (a
    plain SIGTERM) kills the process: so there is one, and it stays.
    """
    return import_openvino().Core()


class OpenVinoEmbedder:
    """An OpenVINO model that maps (B, S, S, 3) uint8 images to (B, D) features; preprocessing is in the graph.

    Few images are computed by all cores together.  A batch of at least two a core is shared out, each core with images
    of its own: cores that work together wait for each other after every layer, so whatever else takes a core for a
    while (decoding, answering) would hold up all of them.  That needs the weights twice, so large models do without.

    Batches keep their own sizes: the first of a size costs some milliseconds, once, and padding would cost more each
    time.

    Args:
        precision: ``f32``, ``bf16`` or ``f16``: what the CPU is to compute with; ``int8``: the model is quantised, and
            what is left of it computes in float32.

    Attributes:
        threads: Of a forward pass.
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
        if self.threads > 1 and not self._single and _weight_bytes(model) <= _TWICE_BYTES:
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
        """See :class:`cbir.core.ensemble.Starts`.  A batch that is not shared out is done when this returns."""
        if self._single and len(batch) != 1:
            return _Pending([], self.embed(batch))
        images = np.ascontiguousarray(batch)
        if not self._alone or len(images) < 2 * len(self._alone):
            _hand(self._request, images)
            self._request.infer(share_outputs=True)
            return _Pending([self._request], images)
        for request, part in zip(self._alone, np.array_split(images, len(self._alone)), strict=True):
            # A batch whose result nobody took must not stop this one.
            request.wait()
            _hand(request, part)
            request.start_async()
        return _Pending(self._alone, images)


class _Pending:
    """A batch on its way, or done.  Valid until the embedder is asked again; keeps the images that are worked on."""

    def __init__(self, requests: Sequence[Any], array: NDArray[Any]) -> None:
        self._requests, self._array = requests, array

    def result(self) -> NDArray[np.float32]:
        """Wait, and give (B, D) float32 unit vectors."""
        if not self._requests:
            return self._array
        for request in self._requests:
            request.wait()
        parts = [request.get_output_tensor(0).data for request in self._requests]
        # The outputs belong to the requests, which will write over them.
        features = np.concatenate([part.reshape(len(part), -1) for part in parts], dtype=np.float32)
        norms = np.sqrt(np.einsum("ij,ij->i", features, features))
        features /= np.maximum(norms, 1e-12)[:, None]
        return features


def _hand(request: Any, images: NDArray[np.uint8]) -> None:
    """Set the input by hand, which takes a fraction of what it takes OpenVINO to find out what it was given."""
    request.set_input_tensor(import_openvino().Tensor(images, shared_memory=True))


def _weight_bytes(model: Any) -> int:
    return sum(op.get_byte_size() for op in model.get_ops() if op.get_type_name() == "Constant")


def with_preprocessing(model: Any, form: InputFormat, layout: str) -> Any:
    """Give an OpenVINO model a uint8 (B, S, S, 3) RGB input in place of its normalised float input."""
    ov = import_openvino()
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout(layout))
    chain = steps.input().preprocess().convert_element_type(ov.Type.f32)
    chain.mean([255 * m for m in form.mean]).scale([255 * s for s in form.std])
    return steps.build()
