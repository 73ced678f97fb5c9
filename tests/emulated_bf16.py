"""bfloat16 where the processor has none: every factor of a product is rounded to eight bits, and added up in float32.

That is what hardware for it does, so the embeddings are off by as much; only the speed is not shown.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cbir.core.ensemble.runtime.choice import Precision
from cbir.core.ensemble.runtime.openvino import OpenVinoEmbedder, import_openvino

__all__ = ["emulate", "rounded"]

_PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")
#: 2^16 + 1 keeps the upper 8 of float32's 24 bits (Dekker, "A floating-point technique for extending the available
#: precision", 1971).
_SPLITTER = np.float32(65537)


def rounded(model: Any) -> Any:
    """A copy of an OpenVINO model whose products take factors of eight bits."""
    openvino = import_openvino()
    ops = openvino.opset13
    copy = model.clone()
    for node in copy.get_ordered_ops():
        if node.get_type_name() not in _PRODUCTS:
            continue
        for place in range(2):
            source = node.input(place).get_source_output()
            if source.get_element_type() != openvino.Type.f32:
                continue
            large = ops.multiply(source, ops.constant(_SPLITTER))
            upper = ops.subtract(large, ops.subtract(large, source))
            node.input(place).replace_source_output(upper.output(0))
    copy.validate_nodes_and_infer_types()
    return copy


def emulate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have OpenVINO offer bf16 in this process; in processes that it starts it does not."""
    start = OpenVinoEmbedder.__init__

    def init(self: OpenVinoEmbedder, model: Any, size: int, interpolation: str, precision: str = "f32") -> None:
        if precision != Precision.BF16:
            start(self, model, size, interpolation, precision)
            return
        start(self, rounded(model), size, interpolation, "f32")
        self.precision = "bf16"

    monkeypatch.setattr(OpenVinoEmbedder, "__init__", init)
    choice = "cbir.core.ensemble.runtime.choice._half_precisions"
    monkeypatch.setattr(choice, lambda runtime: (Precision.BF16,) if runtime == "openvino" else ())
