"""Runtimes: the same network on torch (CPU or CUDA) or on OpenVINO, behind the embedder's interface."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.crop import Crop
from cbir.core.ensemble import MemberSpec, member_fingerprint
from cbir.core.errors import ConfigurationError, EnsembleError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "InputFormat",
    "OpenVinoEmbedder",
    "TorchEmbedder",
    "cache_folder",
    "cached_ir",
    "choose_runtime",
    "import_openvino",
    "openvino_core",
    "run",
]

_log = logging.getLogger(__name__)

#: Least cosine between a converted network and eager float32 on the probe images.
AGREEMENT = 0.999


@dataclass(frozen=True)
class InputFormat:
    """A fully resolved image input: square side in pixels, RGB mean and std on the 0..1 scale, resampling."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str


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


def cache_folder() -> Path:
    """Where converted networks are kept: ``$CBIR_CACHE``, else ``$XDG_CACHE_HOME/ensemble-cbir``."""
    if chosen := os.environ.get("CBIR_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ensemble-cbir"


def choose_runtime(device: str, runtime: str) -> str:
    """Resolve ``auto`` to ``torch-cuda``, ``openvino`` or ``torch-cpu``.

    Raises:
        ConfigurationError: ``cuda`` without a GPU, ``openvino`` without the package, or an unknown name.
    """
    if device not in ("auto", "cpu", "cuda") or runtime not in ("auto", "torch", "openvino"):
        raise ConfigurationError(
            f"device {device!r} with runtime {runtime!r}: devices are auto, cpu, cuda; runtimes auto, torch, openvino",
            reason="DEVICE_UNKNOWN",
        )
    has_openvino = importlib.util.find_spec("openvino") is not None
    if runtime == "openvino":
        if device == "cuda":
            raise ConfigurationError("OpenVINO runs on the CPU: drop --device cuda", reason="DEVICE_UNKNOWN")
        if not has_openvino:
            raise ConfigurationError(
                "OpenVINO is not installed: pip install 'ensemble-cbir[openvino]'", reason="RUNTIME_MISSING"
            )
        return "openvino"
    if device != "cpu" and _cuda_available():
        return "torch-cuda"
    if device == "cuda":
        raise ConfigurationError(
            "no CUDA GPU can be used here: drop --device cuda, or check the driver with nvidia-smi",
            reason="DEVICE_MISSING",
        )
    return "openvino" if has_openvino and runtime == "auto" else "torch-cpu"


def _cuda_available() -> bool:
    # Importing torch takes seconds; a machine without NVIDIA's device files need not pay for a "no".
    if os.name == "posix" and not any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")):
        return False
    import torch

    return bool(torch.cuda.is_available())


class TorchEmbedder:
    """A torch module that maps normalised (B, 3, S, S) float images to (B, D) features."""

    def __init__(self, module: nn.Module, form: InputFormat, runtime: str) -> None:
        import torch

        self._torch = torch
        self._device = torch.device("cuda" if runtime == "torch-cuda" else "cpu")
        self._half = torch.bfloat16 if runtime == "torch-cuda" else None
        self._module = module.eval().to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._mean = torch.tensor(form.mean, device=self._device).mul_(255).view(1, 3, 1, 1)
        self._scale = torch.tensor(form.std, device=self._device).mul_(255).reciprocal_().view(1, 3, 1, 1)
        self.size, self.interpolation, self.runtime = form.size, form.interpolation, runtime
        self.dim = self.embed(np.zeros((1, self.size, self.size, 3), np.uint8)).shape[1]

    def embed(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :class:`cbir.core.embedder.Embedder`."""
        torch = self._torch
        with torch.inference_mode(), torch.autocast(self._device.type, self._half, enabled=self._half is not None):
            images = torch.from_numpy(batch).to(self._device, non_blocking=True).permute(0, 3, 1, 2)
            features = self._module((images.float() - self._mean) * self._scale)
            unit = torch.nn.functional.normalize(features.flatten(1).float(), dim=1)
        result: NDArray[np.float32] = unit.cpu().numpy()
        return result


class OpenVinoEmbedder:
    """An OpenVINO model that maps (B, S, S, 3) uint8 images to (B, D) features; preprocessing is in the graph."""

    runtime = "openvino"

    def __init__(self, model: Any, size: int, interpolation: str) -> None:
        # LATENCY gives one stream over all cores: the callers batch by themselves.
        self._compiled = openvino_core().compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        self._request = self._compiled.create_infer_request()
        self._single = model.input(0).partial_shape[0].is_static and model.input(0).shape[0] == 1
        self.size, self.interpolation = size, interpolation
        self.dim = self.embed(np.zeros((1, size, size, 3), np.uint8)).shape[1]

    def embed(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :class:`cbir.core.embedder.Embedder`."""
        blocks = np.split(batch, len(batch)) if self._single else [batch]
        outputs = []
        for block in blocks:
            self._request.infer({0: np.ascontiguousarray(block)})
            outputs.append(self._request.get_output_tensor(0).data.reshape(len(block), -1).astype(np.float32))
        features = np.concatenate(outputs)
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        result: NDArray[np.float32] = features / np.maximum(norms, 1e-12)
        return result


def run(
    module: nn.Module, form: InputFormat, device: str, runtime: str, member: MemberSpec
) -> TorchEmbedder | OpenVinoEmbedder:
    """Put a torch module onto a runtime.

    Args:
        member: Whose network it is; its fingerprint names the converted network that is kept for the next start.

    Raises:
        EnsembleError: ``RUNTIME_DISAGREES``: OpenVINO was asked for by name, but its embeddings are not those of
            eager float32.  Where the runtime was chosen automatically, torch is used instead.
    """
    chosen = choose_runtime(device, runtime)
    if chosen != "openvino":
        return TorchEmbedder(module, form, chosen)
    eager = TorchEmbedder(module, form, "torch-cpu")
    probe = np.random.default_rng(0).integers(0, 256, (3, form.size, form.size, 3), dtype=np.uint8)
    try:
        converted = _convert(module, form)
        embedder = OpenVinoEmbedder(converted, form.size, form.interpolation)
        agreement = float((eager.embed(probe) * embedder.embed(probe)).sum(axis=1).min())
        problem = None if agreement >= AGREEMENT else f"cosine {agreement:.4f} to eager float32"
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:200]
    if problem is None:
        _keep_ir(converted, form, member)
        return embedder
    if runtime == "openvino":
        raise EnsembleError(
            f"OpenVINO cannot run this member faithfully ({problem}): use --runtime torch", reason="RUNTIME_DISAGREES"
        )
    _log.warning("OpenVINO is not used for a member (%s); torch runs it", problem)
    return eager


def _convert(module: nn.Module, form: InputFormat) -> Any:
    ov = import_openvino()
    import torch

    # With gradients, torch's attention takes another path each time it is traced, and tracing is refused.
    with warnings.catch_warnings(), torch.no_grad():
        # Tracing is what OpenVINO's converter does by itself; torch marks it as deprecated.
        warnings.simplefilter("ignore")
        model = ov.convert_model(module, example_input=torch.zeros(2, 3, form.size, form.size))
    model.reshape([-1, 3, form.size, form.size])
    return with_preprocessing(model, form, "NCHW")


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


def _ir_folder(member: MemberSpec) -> Path:
    # The version of a package is read from its metadata: importing it takes a second.
    version = importlib.metadata.version("openvino")
    return cache_folder() / "openvino" / version / member_fingerprint(member, Crop.NONE)


def cached_ir(member: MemberSpec, device: str, runtime: str) -> OpenVinoEmbedder | None:
    """The network converted at an earlier start, which needs neither torch nor conversion; None if there is none."""
    if member.backend == "openvino" or choose_runtime(device, runtime) != "openvino":
        return None
    folder = _ir_folder(member)
    try:
        form = json.loads((folder / "input.json").read_text())
        model = openvino_core().read_model(folder / "model.xml")
        return OpenVinoEmbedder(model, form["size"], form["interpolation"])
    except (OSError, ValueError, KeyError, RuntimeError):
        return None


def _keep_ir(model: Any, form: InputFormat, member: MemberSpec) -> None:
    ov = import_openvino()

    folder = _ir_folder(member)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        try:
            ov.save_model(model, partial / "model.xml", compress_to_fp16=False)
            (partial / "input.json").write_text(json.dumps(asdict(form)))
            if not folder.exists():
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        _log.info("the converted network is not kept (%s): the next start converts it again", error)
