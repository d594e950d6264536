"""Decides which edges of a graph go through INT8, with which scale, what stays float and why, and what of it is fp16.

Signed int8, symmetric, zero point 0: what TensorRT reads. The places follow its guide to explicit quantisation
(TensorRT developer guide, "Q/DQ placement recommendations"):

* What a weighted operator takes is quantised, and its weights per output channel. Its bias stays float.
* A residual ``Add`` is computed in the accumulator of the convolution in front of it. So that edge stays as it is, and
  only the other input, the skip, is quantised. Where both inputs come from such a convolution, the one on the longer
  path takes the sum (of equally long ones, the later): a block's body is longer than its shortcut.
* The tensors of a ``Concat`` share one scale, the largest of them. Otherwise each input would be requantised. The same
  holds through operators that only move values.
* A task's output stays float, also where it crosses to the server. Every other real tensor that crosses is INT8.
* Float operators with weights, and what is connected with them, run in fp16 (`calib.qdq.half`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper

from calib.qdq.half import LARGEST, half_positions, half_regions, too_large
from calib.ranges import RangeTable
from export.graph import Graph, members
from splitboard.contract.bundle import TensorSpec
from splitboard.contract.errors import SplitboardError, UserError

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that multiply with constant weights, their second input."""

_MOVES_VALUES = (
    "DepthToSpace", "Expand", "Flatten", "Identity", "MaxPool", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators whose output holds values of their first input and no others."""

_LAYOUTS = {2: "NC", 3: "NCL", 4: "NCHW", 5: "NCDHW"}


@dataclass(frozen=True)
class Edge:
    """A tensor on its way into one operator.

    Attributes:
        tensor: its name.
        consumer: the operator, by the name of its first output.
        position: among the operator's inputs.
    """

    tensor: str
    consumer: str
    position: int


@dataclass(frozen=True)
class Weight:
    """Weights that are quantised.

    Attributes:
        tensor: the initializer's name.
        axis: of the output channels, which have a scale each; ``None`` for one scale in all.
    """

    tensor: str
    axis: int | None


@dataclass(frozen=True)
class Plan:
    """What becomes INT8 or fp16. Operators go by the name of their first output.

    Attributes:
        outputs: what the graph is to give, in order; a model's own inputs, which no graph makes, left out.
        wires: those of them that leave as INT8.
        edges: that go through QuantizeLinear and DequantizeLinear.
        scales: of each tensor on those edges and each wire, a float32.
        weights: by operator.
        stays_float: by operator that could be INT8, why it is not.
        fp16: operators that run in half precision; what crosses the graph's ends is float32 all the same.
    """

    outputs: tuple[str, ...]
    wires: tuple[str, ...]
    edges: frozenset[Edge]
    scales: Mapping[str, float]
    weights: Mapping[str, Weight]
    stays_float: Mapping[str, str]
    fp16: frozenset[str]


def plan(graph: Graph, outputs: Sequence[str], table: RangeTable, keep_float: Collection[str] = ()) -> Plan:
    """Plans the INT8 form of the part of a model that some of its tensors need.

    Args:
        graph: the whole float32 model.
        outputs: the tensors that the part is to give: those that cross, and local tasks.
        table: ranges by tensor name.
        keep_float: tensors; the operators that make them stay float.

    Raises:
        UserError: a tensor to keep float does not exist, or a scale is zero or not finite.
        SplitboardError: the table lacks a tensor.
    """
    _check_known(graph, keep_float)
    made, half = _part(graph, outputs)
    weights: dict[str, Weight] = {}
    stays_float: dict[str, str] = {}
    for node in half:
        if node.op_type in WEIGHTED:
            found = "asked for" if node.output[0] in keep_float else _weight(graph, node)
            if isinstance(found, Weight):
                weights[node.output[0]] = found
            else:
                stays_float[node.output[0]] = found
    edges = {Edge(graph.nodes[graph.producer[name]].input[0], name, 0) for name in weights}
    edges |= _skips(graph, half, made, weights.keys(), keep_float)
    wires = tuple(name for name in made if name not in graph.outputs and graph.is_float(name))
    scales = _scales(graph, half, table, {*wires, *(edge.tensor for edge in edges)})
    int8 = weights.keys() | {edge.consumer for edge in edges}
    fp16 = half_regions(graph, half, int8, WEIGHTED, table)
    return Plan(made, wires, frozenset(edges), scales, weights, stays_float, fp16)


def plan_fp16(graph: Graph, outputs: Sequence[str], table: RangeTable, keep_float: Collection[str] = ()) -> Plan:
    """Plans the half-precision form; the arguments are those of `plan`, what is kept in float is float32.

    Raises:
        UserError: a tensor to keep float does not exist, or one does not fit fp16.
    """
    _check_known(graph, keep_float)
    made, half = _part(graph, outputs)
    chosen = [node for node in half if node.output[0] not in keep_float and half_positions(graph, node).outputs]
    beyond = {node.output[0]: found for node in chosen if (found := too_large(graph, node, table)) is not None}
    for tensor, magnitude in beyond.values():
        raise UserError(
            f'tensor "{tensor}" reaches "{magnitude:g}", and fp16 ends at {LARGEST:g}',
            [f"--keep-float {','.join(beyond)}", "--precision fp32"],
        )
    return Plan(made, (), frozenset(), {}, {}, {}, frozenset(node.output[0] for node in chosen))


def plan_fp32(graph: Graph, outputs: Sequence[str]) -> Plan:
    """Plans the float32 form: nothing changes."""
    return Plan(_part(graph, outputs)[0], (), frozenset(), {}, {}, {}, frozenset())


def _check_known(graph: Graph, keep_float: Collection[str]) -> None:
    for name in keep_float:
        if name not in graph.producer:
            raise UserError(
                f'no operator makes the tensor "{name}", which is to stay float',
                ["names of the model's tensors: splitboard splits MODEL"],
            )


def _part(graph: Graph, outputs: Sequence[str]) -> tuple[tuple[str, ...], list[NodeProto]]:
    """What of some tensors a graph makes, and the operators that it needs for that."""
    made = tuple(name for name in dict.fromkeys(outputs) if name not in graph.inputs)
    return made, [graph.nodes[i] for i in members(graph.needed(made))]


def wire_specs(graph: Graph, planned: Plan, crossing: Sequence[str]) -> tuple[TensorSpec, ...]:
    """How tensors cross to the server: INT8 where the plan says so, else as they are in the model.

    Args:
        graph: the whole model.
        planned: for the edge half.
        crossing: in the cut's order; a model's own inputs among them cross as they are.
    """
    return tuple(_spec(graph, planned, name) for name in crossing)


def _spec(graph: Graph, planned: Plan, name: str) -> TensorSpec:
    shape = graph.shapes[name]
    layout = _LAYOUTS.get(len(shape), "N")
    if name in planned.wires:
        return TensorSpec(name, shape, "int8", layout, planned.scales[name], 0)
    return TensorSpec(name, shape, graph.dtypes[name].name, layout)


def _weight(graph: Graph, node: NodeProto) -> Weight | str:
    """The weights of an operator, else why it cannot be INT8."""
    data, name = node.input[0], node.input[1]
    if data in graph.constants:
        return "its first input is constant"
    if name not in graph.constants:
        return "its weights are computed"
    values = graph.constants[name]
    if values.data_type != TensorProto.FLOAT:
        return "its weights are not float32"
    if len(values.dims) < 2:
        return "its weights are a vector, which has no output channels"
    return Weight(name, _output_channels(node, len(values.dims)))


def _output_channels(node: NodeProto, rank: int) -> int | None:
    """Axis of an operator's weights along which its outputs differ (ONNX, operators' specifications).

    ``None`` for ConvTranspose: its outputs lie along axis 1, and TensorRT's kernels have scales along axis 0
    (NVIDIA/TensorRT issue 2380), so that one scale is what both agree on.
    """
    if node.op_type == "ConvTranspose":
        return None
    if node.op_type == "Conv":
        return 0
    transposed = any(one.name == "transB" and helper.get_attribute_value(one) for one in node.attribute)
    return 0 if transposed else rank - 1


def _skips(
    graph: Graph, half: Sequence[NodeProto], outputs: Collection[str], int8: Collection[str], keep: Collection[str]
) -> set[Edge]:
    """The skip inputs of the residual additions."""
    found = set()
    for node in half:
        if node.op_type != "Add" or node.output[0] in keep or not _is_residual(graph, node):
            continue
        fused = [
            position
            for position, name in enumerate(node.input)
            if name in int8 and name not in outputs and len(graph.consumers[name]) == 1
        ]
        if fused:
            skip = 1 - max(fused, key=lambda position: _path_length(graph, node.input[position]))
            found.add(Edge(node.input[skip], node.output[0], skip))
    return found


def _is_residual(graph: Graph, node: NodeProto) -> bool:
    left, right = node.input
    computed = left not in graph.constants and right not in graph.constants
    return computed and left != right and graph.shapes[left] == graph.shapes[right]


def _path_length(graph: Graph, tensor: str) -> tuple[int, int]:
    """Operators on the longest way to a tensor, and the position of the last of them."""
    longest: dict[int, int] = {}
    last = graph.producer[tensor]
    for i in members(graph.ancestors[last]):
        before = (longest[graph.producer[name]] for name in graph.nodes[i].input if name in graph.producer)
        longest[i] = 1 + max(before, default=0)
    return longest[last], last


def _scales(graph: Graph, half: Sequence[NodeProto], table: RangeTable, tensors: Collection[str]) -> dict[str, float]:
    shared = {name: group for group in _concatenated(graph, half) for name in group}
    return {name: _scale(name, shared.get(name, {name}), table) for name in sorted(tensors)}


def _scale(tensor: str, group: Iterable[str], table: RangeTable) -> float:
    for name in group:
        if name not in table.ranges:
            raise SplitboardError(f'tensor "{name}" has no range')
    scale = float(np.float32(max(table.ranges[name].symmetric_scale for name in group)))
    if not 0 < scale < np.inf:
        raise UserError(
            f'tensor "{tensor}" has the scale "{scale:g}", which is no positive number',
            ["calibrate with images on which it is not constant", "keep what takes it in float"],
        )
    return scale


def _concatenated(graph: Graph, half: Sequence[NodeProto]) -> list[set[str]]:
    """Groups of tensors that reach one concatenation, or leave it, without being computed with."""
    groups: list[set[str]] = []
    concatenated: set[str] = set()
    for node in half:
        if node.op_type == "Concat":
            concatenated.update(node.output)
        elif node.op_type not in _MOVES_VALUES:
            continue
        taken = node.input if node.op_type == "Concat" else node.input[:1]
        joined = {name for name in (*taken, *node.output) if name in graph.shapes and graph.is_float(name)}
        for group in [group for group in groups if group & joined]:
            groups.remove(group)
            joined |= group
        groups.append(joined)
    return [group for group in groups if group & concatenated]
