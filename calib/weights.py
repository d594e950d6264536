"""The layers of a graph that have constant weights, in one form: output channel, input channel, position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from calib.ranges import SYMMETRIC_STEPS
from export.graph import Graph


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product with constant weights.

    Attributes:
        output: name of the tensor that it makes.
        source: name of the tensor that it takes.
        weight: ``[out, in of its group, positions]``, float64.
        weight_name: of the initializer.
        weight_users: how many nodes take that initializer.
        bias: ``[out]``, or ``None``.
        bias_users: how many nodes take the bias's initializer.
        groups: of a convolution.
        transposed: whether the initializer has the input channels first (a Gemm without ``transB``).
    """

    output: str
    source: str
    weight: NDArray[np.float64]
    weight_name: str
    weight_users: int
    bias: NDArray[np.float32] | None
    bias_users: int
    groups: int
    transposed: bool

    def stored(self, weight: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Weights in the initializer's own form."""
        flat = weight.reshape(weight.shape[0], -1)
        return np.ascontiguousarray((flat.T if self.transposed else flat).reshape(shape), dtype=np.float32)


def layers(graph: Graph) -> Iterator[Layer]:
    """All of them, in topological order."""
    users: dict[str, int] = {}
    for node in graph.nodes:
        for name in node.input:
            users[name] = users.get(name, 0) + 1
    for node in graph.nodes:
        if node.op_type in ("Conv", "Gemm") and node.input[1] in graph.constants:
            yield _layer(graph, node, users)


def _layer(graph: Graph, node: NodeProto, users: dict[str, int]) -> Layer:
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    stored = np.asarray(graph.constant(node.input[1]), dtype=np.float64)
    transposed = node.op_type == "Gemm" and not attributes.get("transB", 0)
    weight = stored.T if transposed else stored
    has_bias = len(node.input) > 2 and node.input[2] in graph.constants
    return Layer(
        output=node.output[0],
        source=node.input[0],
        weight=weight.reshape(weight.shape[0], weight.shape[1], -1),
        weight_name=node.input[1],
        weight_users=users[node.input[1]],
        bias=np.asarray(graph.constant(node.input[2]), dtype=np.float32) if has_bias else None,
        bias_users=users[node.input[2]] if has_bias else 0,
        groups=int(attributes.get("group", 1)),
        transposed=transposed,
    )


def rounded(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights after symmetric INT8 per output channel, as real numbers."""
    limit = np.abs(weight).max(axis=(1, 2), keepdims=True)
    scale = np.where(limit > 0, limit, 1.0) / SYMMETRIC_STEPS
    return np.asarray(np.rint(weight / scale) * scale)
