"""Linear layers of tokens as 1 x 1 convolutions, which are the same sums.

OpenVINO's 8-bit convolutions are twice as fast as its 8-bit fully connected layers on processors without instructions
for such products (VNNI), where the latter are no faster than float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.ensemble.runtime.openvino import import_openvino

__all__ = ["as_convolutions", "other_products"]

#: Operations on each number by itself, and of their attributes those that creating them anew needs.
_ELEMENTWISE = {
    "Clamp": ("clamp", ("min", "max")),
    "Gelu": ("gelu", ("approximation_mode",)),
    "HSwish": ("hswish", ()),
    "Relu": ("relu", ()),
    "Sigmoid": ("sigmoid", ()),
    "Swish": ("swish", ()),
    "Tanh": ("tanh", ()),
}


def as_convolutions(model: Any) -> int:
    """Replace the products of tokens with constant matrices in an OpenVINO model, in place.

    Tokens are (B, T, C) or (B, H, W, C).  What lies between two such products and looks at each number by itself moves
    along, so that nothing is rearranged there.  The heads of networks, products of (B, C), stay.

    Returns:
        How many were replaced.
    """
    rewriter = _Rewriter()
    for node in model.get_ordered_ops():
        rewriter.visit(node)
    if rewriter.replaced:
        model.validate_nodes_and_infer_types()
    return rewriter.replaced


def other_products(model: Any) -> list[str]:
    """Names of the products in a model that are no linear layers of tokens: those of attention, and heads."""
    products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    return [node.get_friendly_name() for node in products if _matrix(node) is None]


class _Rewriter:
    """Goes through a model's nodes in order; remembers, for outputs that it made, the same with channels first."""

    def __init__(self) -> None:
        import_openvino()
        from openvino import opset13

        self._ops: Any = opset13
        self._channels_first: dict[tuple[str, int], Any] = {}
        self.replaced = 0

    def visit(self, node: Any) -> None:
        kind = node.get_type_name()
        if kind == "Transpose":
            order = _constant(node.input_value(1))
            if order is not None and order.tolist() == [0, 3, 1, 2]:
                # Somebody wants channels first, and they are there.
                _take_over(node, self._lifted(node.input_value(0)))
        elif kind == "MatMul":
            self._replace(node)

    def _replace(self, product: Any) -> None:
        ops, tokens, weights = self._ops, product.input_value(0), _matrix(product)
        if weights is None:
            return
        rank = tokens.get_partial_shape().rank.get_length()
        given = self._lifted(tokens)
        if given is None:
            apart = ops.unsqueeze(tokens, _numbers(ops, 2)) if rank == 3 else tokens
            given = ops.transpose(apart, _numbers(ops, 0, 3, 1, 2)).output(0)
        kernel = ops.constant(np.ascontiguousarray(weights[:, :, None, None], np.float32))
        made = ops.convolution(given, kernel, [1, 1], [0, 0], [0, 0], [1, 1]).output(0)
        last = product
        if (bias := _bias(product, len(weights))) is not None:
            last, values = bias
            made = ops.add(made, ops.constant(values.reshape(1, -1, 1, 1))).output(0)
        back = ops.transpose(made, _numbers(ops, 0, 2, 3, 1))
        result = (ops.squeeze(back, _numbers(ops, 2)) if rank == 3 else back).output(0)
        self._channels_first[_key(result)] = made
        _take_over(last, result)
        self.replaced += 1

    def _lifted(self, output: Any) -> Any | None:
        """The same numbers as (B, C, T, 1) or (B, C, H, W), where they need no rearranging for it; else None."""
        if (key := _key(output)) in self._channels_first:
            return self._channels_first[key]
        node = output.get_node()
        kind = node.get_type_name()
        made = None
        if kind in _ELEMENTWISE and (inner := self._lifted(node.input_value(0))) is not None:
            name, wanted = _ELEMENTWISE[kind]
            attributes = node.get_attributes()
            more = [node.input_value(i) for i in range(1, len(node.inputs()))]
            made = getattr(self._ops, name)(inner, *more, *(attributes[a] for a in wanted)).output(0)
        elif kind in ("Add", "Multiply") and len(_ranks(node)) == 1:
            sides = [self._side(node.input_value(i)) for i in range(2)]
            if all(side is not None for side in sides):
                made = getattr(self._ops, kind.lower())(*sides).output(0)
        self._channels_first[key] = made
        return made

    def _side(self, output: Any) -> Any | None:
        """One side of a sum or product: a constant for all numbers or for each channel, or something lifted."""
        values = _constant(output)
        if values is None:
            return self._lifted(output)
        if values.size > 1 and values.shape[-1] != values.size:
            return None
        return self._ops.constant(values.reshape(1, -1, 1, 1)).output(0)


def _matrix(product: Any) -> NDArray[np.float32] | None:
    """The (C', C) constant matrix that tokens are multiplied with; None where it is another kind of product."""
    weights, rank = _constant(product.input_value(1)), product.input_value(0).get_partial_shape().rank
    attributes = product.get_attributes()
    if weights is None or weights.ndim != 2 or attributes["transpose_a"] or rank.is_dynamic:
        return None
    if rank.get_length() not in (3, 4):
        return None
    return weights if attributes["transpose_b"] else weights.T


def _ranks(node: Any) -> set[str]:
    """The numbers of dimensions of a node's output and of its inputs that are no constants."""
    inputs = [i.get_source_output() for i in node.inputs()]
    variable = [source for source in inputs if _constant(source) is None]
    return {str(tensor.get_partial_shape().rank) for tensor in (node.output(0), *variable)}


def _bias(product: Any, width: int) -> tuple[Any, NDArray[np.float32]] | None:
    """The sum with one number a channel that alone uses a product, and those numbers."""
    users = list(product.output(0).get_target_inputs())
    if len(users) != 1 or users[0].get_node().get_type_name() != "Add":
        return None
    total = users[0].get_node()
    values = _constant(total.input_value(1 - users[0].get_index()))
    if values is None or values.shape[-1:] != (width,) or values.size != width:
        return None
    return total, values


def _constant(output: Any) -> NDArray[Any] | None:
    """The numbers of a constant, also of one that is kept in another type; floats as float32."""
    node = output.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    values = node.get_data()
    return np.asarray(values, np.float32) if np.issubdtype(values.dtype, np.floating) else np.asarray(values)


def _take_over(node: Any, output: Any | None) -> None:
    """Let all who use the output of a node use another."""
    if output is not None:
        for user in list(node.output(0).get_target_inputs()):
            user.replace_source_output(output)


def _numbers(ops: Any, *values: int) -> Any:
    return ops.constant(np.array(values, np.int64))


def _key(output: Any) -> tuple[str, int]:
    return output.get_node().get_name(), output.get_index()
