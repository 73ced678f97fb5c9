"""Runtimes: the same network on torch (CPU or CUDA) or on OpenVINO, behind the embedder's interface."""

from __future__ import annotations

from cbir.core.runtime.agreement import AGREEMENT, probe
from cbir.core.runtime.choice import Precision, choose_precisions, choose_runtime
from cbir.core.runtime.conversion import cache_folder, cached_ir, faithful
from cbir.core.runtime.cuda import CudaEmbedder, bucket
from cbir.core.runtime.eager import TorchEmbedder
from cbir.core.runtime.input_format import InputFormat
from cbir.core.runtime.openvino import OpenVinoEmbedder, import_openvino, openvino_core, with_preprocessing
from cbir.core.runtime.quantisation import Pictures, in_eight_bits
from cbir.core.runtime.run import run, run_on_gpu

__all__ = [
    "AGREEMENT",
    "CudaEmbedder",
    "InputFormat",
    "OpenVinoEmbedder",
    "Pictures",
    "Precision",
    "TorchEmbedder",
    "bucket",
    "cache_folder",
    "cached_ir",
    "choose_precisions",
    "choose_runtime",
    "faithful",
    "import_openvino",
    "in_eight_bits",
    "openvino_core",
    "probe",
    "run",
    "run_on_gpu",
    "with_preprocessing",
]
