"""What the halves of a cut cost: multiply-accumulates, parameters, and the memory of the edge half's activations."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from onnx import NodeProto, TensorProto

from export.graph import Graph, NodeSet, members

_SAME_MEMORY = frozenset({"Clip", "Flatten", "Identity", "Relu", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators whose result takes their input's place: fused into the operator before, or only another shape."""

_WINDOWED = frozenset({"AveragePool", "Conv", "MaxPool"})


class Costs:
    """Costs of any part of a graph, from tables that are made once."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._macs = [node_macs(graph, node) for node in graph.nodes]
        self._weights = [_weights(graph, node) for node in graph.nodes]
        self._roots = _roots(graph)
        self._sizes = {name: graph.size(name) for name in self._roots}
        self._steps = [self._steps_of(i, node) for i, node in enumerate(graph.nodes)]

    def macs(self, nodes: NodeSet) -> int:
        """Multiply-accumulates."""
        return sum(self._macs[i] for i in members(nodes))

    def parameters(self, nodes: NodeSet) -> int:
        """Values in the float constants; scalars such as clip limits left out. Each half stores what both use."""
        used: dict[str, int] = {}
        for i in members(nodes):
            used.update(self._weights[i])
        return sum(used.values())

    def activation_peak_bytes(self, edge: NodeSet, crossing: Iterable[str]) -> int:
        """An estimate of the arena of an INT8 edge half: the most activation bytes that are alive at once.

        Operators run in topological order; a tensor lives from the operator that makes it to the last that takes it,
        what crosses and the model's inputs to the end, as an interpreter keeps both. No planner can do with less;
        TensorFlow Lite's (greedy by size, arXiv 2001.03288) comes near it. Weights and what kernels and accelerators
        need for themselves (im2col, packed weights) are not in it.
        """
        steps = [step for i in members(edge) for step in self._steps[i]]
        end = len(steps)
        born: dict[str, int] = dict.fromkeys((self._roots[name] for name in self._graph.inputs), 0)
        dies: dict[str, int] = dict.fromkeys(born, end)
        for number, step in enumerate(steps):
            for root in step:
                born.setdefault(root, number)
                dies[root] = max(dies.get(root, number), number)
        for name in crossing:
            dies[self._roots[name]] = end
        change = np.zeros(end + 2, np.int64)
        for root, number in born.items():
            change[number] += self._sizes[root]
            change[dies[root] + 1] -= self._sizes[root]
        return int(np.cumsum(change).max()) if steps else 0

    def _steps_of(self, i: int, node: NodeProto) -> tuple[tuple[str, ...], ...]:
        """The memory that an operator reads and writes, step by step: a padding of its own is a step and a tensor."""
        taken = [self._roots[name] for name in node.input if name in self._roots]
        made = [self._roots[name] for name in node.output if name]
        padded = _padded_size(self._graph, node)
        if padded is None:
            return (tuple(dict.fromkeys((*taken, *made))),)
        copy = f"{i}/padded"
        self._sizes[copy] = padded
        return ((*taken, copy), (copy, *made))


def _padded_size(graph: Graph, node: NodeProto) -> int | None:
    """Values of the padded copy of a window operator's input; ``None`` where TFLite's kernels pad by themselves.

    They know no padding (VALID) and the least that keeps the size, more of it at the end (SAME); other padding becomes
    a PAD operator of its own.
    """
    if node.op_type not in _WINDOWED:
        return None
    attributes = {attribute.name: list(attribute.ints) for attribute in node.attribute if attribute.ints}
    _, channels, *sizes = graph.shapes[node.input[0]]
    kernel = attributes.get("kernel_shape", [])
    pads = attributes.get("pads", [0] * 2 * len(sizes))
    if len(kernel) != len(sizes) or not any(pads):
        return None
    ones = [1] * len(sizes)
    windows = zip(sizes, kernel, attributes.get("strides", ones), attributes.get("dilations", ones), strict=True)
    totals = [max((math.ceil(n / step) - 1) * step + (k - 1) * gap + 1 - n, 0) for n, k, step, gap in windows]
    same = [total // 2 for total in totals] + [total - total // 2 for total in totals]
    if pads == same:
        return None
    grown = [n + before + after for n, before, after in zip(sizes, pads, pads[len(sizes) :], strict=False)]
    return int(channels * math.prod(grown))


def node_macs(graph: Graph, node: NodeProto) -> int:
    """Multiply-accumulates of one node; only convolutions and matrix products count, as is usual."""
    if node.op_type == "Conv":
        weight = _dims(graph, node.input[1])
        return graph.size(node.output[0]) * int(np.prod(weight[1:], dtype=np.int64))
    if node.op_type == "ConvTranspose":
        weight = _dims(graph, node.input[1])
        return graph.size(node.input[0]) * int(np.prod(weight[1:], dtype=np.int64))
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return graph.size(node.output[0]) * _dims(graph, node.input[0])[0 if transposed else 1]
    if node.op_type == "MatMul":
        return graph.size(node.output[0]) * _dims(graph, node.input[0])[-1]
    return 0


def _dims(graph: Graph, name: str) -> tuple[int, ...]:
    return tuple(graph.constants[name].dims) if name in graph.constants else graph.shapes[name]


def _weights(graph: Graph, node: NodeProto) -> dict[str, int]:
    found = {}
    for name in node.input:
        tensor = graph.constants.get(name)
        if tensor is not None and tensor.data_type == TensorProto.FLOAT and tensor.dims:
            found[name] = int(np.prod(tensor.dims, dtype=np.int64))
    return found


def _roots(graph: Graph) -> dict[str, str]:
    """By tensor, the one whose memory it lies in."""
    roots = {name: name for name in graph.inputs}
    for node in graph.nodes:
        for name in node.output:
            if name:
                roots[name] = name
        source = node.input[0] if node.input else ""
        if node.op_type in _SAME_MEMORY and len(graph.consumers.get(source, [])) == 1 and source in roots:
            roots[node.output[0]] = roots[source]
    return roots
