"""A read-only view of an ONNX graph: who makes a tensor, who takes it, its shape, and what depends on what.

Sets of nodes are whole numbers whose bit *i* stands for node *i*: comparing and joining them takes a fraction of a
microsecond, so that all cuts of a 500-node graph are found in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from splitboard.contract.errors import UserError

_LAYERS = frozenset({"Add", "Conv", "ConvTranspose", "Gemm", "MatMul"})
_ACTIVATIONS = frozenset({"Clip", "Relu"})

NodeSet = int
"""Bit *i* is node *i*."""


def members(nodes: NodeSet) -> Iterator[int]:
    """Node numbers of a set, in topological order."""
    while nodes:
        lowest = nodes & -nodes
        yield lowest.bit_length() - 1
        nodes ^= lowest


class Graph:
    """Indexes over a model whose shapes are all fixed.

    Args:
        model: checked ONNX, nodes in topological order (as the format requires).

    Raises:
        UserError: a tensor has a dynamic dimension or none at all.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        self.nodes: list[NodeProto] = list(self.model.graph.node)
        self.constants: dict[str, TensorProto] = {t.name: t for t in self.model.graph.initializer}
        self.inputs = [value.name for value in self.model.graph.input if value.name not in self.constants]
        self.outputs = [value.name for value in self.model.graph.output]
        values = {value.name: value for value in self._values() if value.name not in self.constants}
        self.shapes = {name: _shape(value) for name, value in values.items()}
        self.dtypes = {name: _dtype(value) for name, value in values.items()}
        for node in self.nodes:
            for name in node.output:
                if name and name not in self.shapes:
                    raise UserError(
                        f'the shape of tensor "{name}" (operator "{node.op_type}") depends on the data',
                        ["a board runs fixed shapes: rewrite that part of the model"],
                    )

    def _values(self) -> Iterable[onnx.ValueInfoProto]:
        graph = self.model.graph
        yield from graph.input
        yield from graph.value_info
        yield from graph.output

    @property
    def everything(self) -> NodeSet:
        """All nodes."""
        return (1 << len(self.nodes)) - 1

    @cached_property
    def producer(self) -> dict[str, int]:
        """Index of the node that makes each tensor."""
        return {name: i for i, node in enumerate(self.nodes) for name in node.output if name}

    @cached_property
    def consumers(self) -> dict[str, list[int]]:
        """Indices of the nodes that take each tensor, constants left out."""
        found: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in dict.fromkeys(node.input):
                if name and name not in self.constants:
                    found.setdefault(name, []).append(i)
        return found

    @cached_property
    def consumer_set(self) -> dict[str, NodeSet]:
        """The same as sets."""
        return {name: sum(1 << i for i in users) for name, users in self.consumers.items()}

    @cached_property
    def ancestors(self) -> list[NodeSet]:
        """Per node, the nodes that it needs, itself included."""
        needed: list[NodeSet] = []
        for i, node in enumerate(self.nodes):
            bits = 1 << i
            for name in node.input:
                if name in self.producer:
                    bits |= needed[self.producer[name]]
            needed.append(bits)
        return needed

    def needed(self, tensors: Iterable[str]) -> NodeSet:
        """The nodes that some tensors depend on."""
        found: NodeSet = 0
        for name in tensors:
            if name in self.producer:
                found |= self.ancestors[self.producer[name]]
        return found

    def constant(self, name: str) -> NDArray[np.generic]:
        """Value of an initializer."""
        return numpy_helper.to_array(self.constants[name])

    def size(self, name: str) -> int:
        """Number of values of a tensor."""
        return math.prod(self.shapes[name])

    def n_bytes(self, name: str) -> int:
        """Bytes of a tensor as it is."""
        return self.size(name) * self.dtypes[name].itemsize

    def is_fused(self, name: str) -> bool:
        """Whether a tensor exists only inside of an operator on a board: a layer's output before its activation."""
        if name not in self.producer or name in self.outputs:
            return False
        takers = [self.nodes[i].op_type for i in self.consumers.get(name, [])]
        is_layer = self.nodes[self.producer[name]].op_type in _LAYERS
        return is_layer and len(takers) == 1 and takers[0] in _ACTIVATIONS

    def is_float(self, name: str) -> bool:
        """Whether a tensor holds real numbers, which can be quantised."""
        return self.dtypes[name].kind == "f"


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    shape: list[int] = []
    for dimension in value.type.tensor_type.shape.dim:
        if not dimension.HasField("dim_value"):
            raise UserError(
                f'tensor "{value.name}" has the dynamic dimension "{dimension.dim_param or "?"}"',
                ["fix every dimension with --input, e.g. --input 1x3x224x224"],
            )
        shape.append(dimension.dim_value)
    return tuple(shape)


def _dtype(value: onnx.ValueInfoProto) -> np.dtype[np.generic]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
