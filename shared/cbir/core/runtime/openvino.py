"""OpenVINO on the CPU."""

from __future__ import annotations

import importlib
import sys
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.runtime.input_format import InputFormat
from cbir.core.threads import threads

__all__ = ["OpenVinoEmbedder", "import_openvino", "openvino_core", "with_preprocessing"]


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

    Batches keep their own sizes: the first of a size costs some milliseconds, once, and padding would cost more each
    time.  The members of an ensemble run one after the other, each on all cores: started together they are in each
    other's way, and took a seventh longer.

    Args:
        precision: ``f32``, ``bf16`` or ``f16``: what the CPU is to compute with; ``int8``: the model is quantised, and
            what is left of it computes in float32.

    Attributes:
        threads: Of a forward pass.
    """

    runtime = "openvino"

    def __init__(self, model: Any, size: int, interpolation: str, precision: str = "f32") -> None:
        # LATENCY gives one stream over all cores: the callers batch by themselves.
        hint = "f32" if precision == "int8" else str(precision)
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        if count := threads().inference:
            settings["INFERENCE_NUM_THREADS"] = str(count)
        compiled = openvino_core().compile_model(model, "CPU", settings)
        self._request = compiled.create_infer_request()
        self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        self._single = model.input(0).partial_shape[0].is_static and model.input(0).shape[0] == 1
        self.size, self.interpolation, self.precision = size, interpolation, str(precision)
        self.dim = self.embed(np.zeros((1, size, size, 3), np.uint8)).shape[1]

    def embed(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :class:`cbir.core.embedder.Embedder`."""
        if self._single and len(batch) != 1:
            return np.concatenate([self.embed(batch[i : i + 1]) for i in range(len(batch))])
        images = np.ascontiguousarray(batch)
        # Set by hand, which takes a fraction of what it takes OpenVINO to find out what it was given; not copied.
        self._request.set_input_tensor(import_openvino().Tensor(images, shared_memory=True))
        self._request.infer(share_outputs=True)
        features = self._request.get_output_tensor(0).data.reshape(len(images), -1)
        norms = np.sqrt(np.einsum("ij,ij->i", features, features, dtype=np.float32))
        # The output belongs to the request, which will write over it: dividing makes the copy.
        unit: NDArray[np.float32] = np.divide(features, np.maximum(norms, 1e-12)[:, None], dtype=np.float32)
        return unit


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
