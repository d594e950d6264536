"""A read-only view of an ONNX graph: who makes a tensor, who takes it, its shape, and what depends on what."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from splitboard.contract.errors import UserError


class Graph:
    """Indexes over a model whose shapes are all fixed.

    Args:
        model: checked ONNX, nodes in topological order (as the format requires).

    Raises:
        UserError: a tensor has a dynamic dimension.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        self.nodes: list[NodeProto] = list(self.model.graph.node)
        self.constants: dict[str, onnx.TensorProto] = {t.name: t for t in self.model.graph.initializer}
        self.inputs = [value.name for value in self.model.graph.input if value.name not in self.constants]
        self.outputs = [value.name for value in self.model.graph.output]
        self.shapes = {value.name: _shape(value) for value in self._values() if value.name not in self.constants}

    def _values(self) -> Iterable[onnx.ValueInfoProto]:
        graph = self.model.graph
        yield from graph.input
        yield from graph.value_info
        yield from graph.output

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
    def ancestors(self) -> list[int]:
        """Per node, the set of nodes that it needs, itself included, as the bits of one whole number.

        Whole numbers as sets make all comparisons of a 500-node graph a matter of milliseconds.
        """
        needed: list[int] = []
        for i, node in enumerate(self.nodes):
            bits = 1 << i
            for name in node.input:
                if name in self.producer:
                    bits |= needed[self.producer[name]]
            needed.append(bits)
        return needed

    def constant(self, name: str) -> NDArray[np.generic]:
        """Value of an initializer."""
        return numpy_helper.to_array(self.constants[name])

    def size(self, name: str) -> int:
        """Number of values of a tensor."""
        return int(np.prod(self.shapes[name], dtype=np.int64))


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
