"""Backend openvino: model files in ONNX, TensorFlow Lite or OpenVINO's own format (IR)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cbir.core.ensemble.embedder import Embedder
from cbir.core.ensemble.package_files import read_checked
from cbir.core.ensemble.runtime.choice import choose_precisions, choose_runtime
from cbir.core.ensemble.runtime.conversion import compile_checked
from cbir.core.ensemble.runtime.input_format import InputFormat
from cbir.core.ensemble.runtime.openvino import import_openvino, openvino_core, with_preprocessing
from cbir.core.ensemble.spec import MemberSpec
from cbir.core.errors import EnsembleError

__all__ = ["load"]


def load(member: MemberSpec, device: str, runtime: str, precision: str = "auto") -> Embedder:
    """Read ``member.weights`` (``.onnx``, ``.tflite`` or ``.xml``); ``member.model`` is only a name.

    Without ``input.mean`` and ``input.std`` the model gets RGB values on the 0..1 scale.  ``options.output`` names the
    output to use where there are several.  A spatial output is not pooled.

    Raises:
        EnsembleError: The file is no model, its input is no image, or its half-precision embeddings differ too much.
        ConfigurationError: The precision is not available.
    """
    file = member.weights_file
    if file is None or file.suffix == ".safetensors":
        raise EnsembleError(
            f'member {member.name!r}: backend openvino needs weights = "model.onnx", ".tflite" or ".xml"',
            reason="WEIGHTS_MISMATCH",
        )
    # These files run on the CPU even where the torch members run on a GPU.
    choose_runtime("cpu", "openvino")
    unknown = set(member.options) - {"output"}
    if unknown:
        raise EnsembleError(
            f"member {member.name!r}: unknown option {sorted(unknown)[0]!r} for backend openvino; known is output",
            reason="ENSEMBLE_INVALID",
        )
    model = _read(member, file)
    shape = model.input(0).partial_shape
    if len(model.inputs) != 1 or len(shape) != 4:
        raise EnsembleError(
            f"{file.name} (member {member.name!r}) does not take one image: its input is {shape}",
            reason="MODEL_UNUSABLE",
        )
    channels_first = shape[1].is_static and shape[1].get_length() == 3
    side = shape[2]
    size = member.input.size or (side.get_length() if side.is_static else 224)
    layout = "NCHW" if channels_first else "NHWC"
    try:
        model.reshape([-1, 3, size, size] if channels_first else [-1, size, size, 3])
    except RuntimeError:
        # Some converters fix the batch size inside the graph: such models take one image at a time.
        model = _read(member, file)
    form = InputFormat(
        size, member.input.mean or (0.0, 0.0, 0.0), member.input.std or (1.0, 1.0, 1.0),
        member.input.interpolation or "bilinear",
    )  # fmt: skip
    precisions = choose_precisions("openvino", precision)
    return compile_checked(with_preprocessing(model, form, layout), size, form.interpolation, precisions)


def _read(member: MemberSpec, file: Path) -> Any:
    """Read a model file, and keep only the output that the options name, so that nothing else is computed."""
    ov = import_openvino()
    if member.sha256:
        read_checked(file, member.sha256, member.name)
    model = openvino_core().read_model(file)
    if "output" in member.options:
        port = model.output(member.options["output"])
        model = ov.Model([port], model.get_parameters(), member.name)
    return model
