"""Linear layers on tokens, rewritten as 1 x 1 convolutions, which compute the same.

On processors without instructions for 8-bit products (VNNI), OpenVINO's 8-bit fully connected layers are no faster than
float32, while its 8-bit convolutions are twice as fast.

B images; T tokens or H x W positions; C input and C' output channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir.core.ensemble.runtime.openvino import import_openvino

__all__ = ["as_convolutions", "other_products"]

#: Elementwise operations: type -> function that creates one, and the attributes that it needs.
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
    """Replace products of tokens and constant matrices in an OpenVINO model by convolutions, in place.

    Tokens are (B, T, C) or (B, H, W, C).  Elementwise operations between two such products are moved to the channels-
    first layout too, so that nothing is transposed there.  Products of (B, C), the heads of networks, are kept.

    Returns:
        How many products were replaced.
    """
    rewriter = _Rewriter()
    for node in model.get_ordered_ops():
        rewriter.visit(node)
    if rewriter.replaced:
        model.validate_nodes_and_infer_types()
    return rewriter.replaced


def other_products(model: Any) -> list[str]:
    """Names of the products in a model that are not linear layers on tokens: those in attention, and heads."""
    products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    return [node.get_friendly_name() for node in products if _matrix(node) is None]


class _Rewriter:
    """Visits a model's nodes in order; keeps, for outputs that it has made, the same values with channels first."""

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
                # The model transposes to channels first, and these values exist already.
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
        """The same values as (B, C, T, 1) or (B, C, H, W), where no transposition is needed for it; else None."""
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
        """An operand of a sum or product, channels first: a scalar, a constant for each channel, or a lifted output."""
        values = _constant(output)
        if values is None:
            return self._lifted(output)
        if values.size > 1 and values.shape[-1] != values.size:
            return None
        return self._ops.constant(values.reshape(1, -1, 1, 1)).output(0)


def _matrix(product: Any) -> NDArray[np.float32] | None:
    """The (C', C) constant matrix of a linear layer on tokens; None where the product is of another kind."""
    weights, rank = _constant(product.input_value(1)), product.input_value(0).get_partial_shape().rank
    attributes = product.get_attributes()
    if weights is None or weights.ndim != 2 or attributes["transpose_a"] or rank.is_dynamic:
        return None
    if rank.get_length() not in (3, 4):
        return None
    return weights if attributes["transpose_b"] else weights.T


def _ranks(node: Any) -> set[str]:
    """The ranks of a node's output and of its inputs that are not constant."""
    inputs = [i.get_source_output() for i in node.inputs()]
    variable = [source for source in inputs if _constant(source) is None]
    return {str(tensor.get_partial_shape().rank) for tensor in (node.output(0), *variable)}


def _bias(product: Any, width: int) -> tuple[Any, NDArray[np.float32]] | None:
    """The addition of a bias that is the only user of a product, and the bias: one value a channel."""
    users = list(product.output(0).get_target_inputs())
    if len(users) != 1 or users[0].get_node().get_type_name() != "Add":
        return None
    total = users[0].get_node()
    values = _constant(total.input_value(1 - users[0].get_index()))
    if values is None or values.shape[-1:] != (width,) or values.size != width:
        return None
    return total, values


def _constant(output: Any) -> NDArray[Any] | None:
    """The values of a constant, also where it is converted from another type; floats as float32."""
    node = output.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    values = node.get_data()
    return np.asarray(values, np.float32) if np.issubdtype(values.dtype, np.floating) else np.asarray(values)


def _take_over(node: Any, output: Any | None) -> None:
    """Let all users of a node's output use ``output`` instead."""
    if output is not None:
        for user in list(node.output(0).get_target_inputs()):
            user.replace_source_output(output)


def _numbers(ops: Any, *values: int) -> Any:
    return ops.constant(np.array(values, np.int64))


def _key(output: Any) -> tuple[str, int]:
    return output.get_node().get_name(), output.get_index()
