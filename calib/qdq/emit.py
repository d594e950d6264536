"""Writes a planned graph as ONNX.

A tensor keeps its name in float; its INT8 form is called ``<tensor>/quantized`` and what comes back of it
``<tensor>/dequantized``. A wire leaves the graph as INT8 under its own name; in float it is ``<tensor>/real`` then. In
half precision a tensor is called ``<tensor>/fp16``; a Cast makes it from the float one or the other way round.
Weights are stored as float in front of their QuantizeLinear: TensorRT 8 takes no INT8 weights, later ones take both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from calib.qdq.half import FP16, half_positions
from calib.qdq.legal import check_legal
from calib.qdq.plan import Edge, Plan, Weight
from calib.ranges import SYMMETRIC_STEPS
from export.graph import Graph, members
from export.opset import NEWEST_IR_VERSION, opset_of
from splitboard.contract.errors import UserError

_OLDEST_OPSET = 13
"""In which QuantizeLinear can have one scale per channel."""

_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Of weights: a channel of zeros is exact with any scale."""


def emit(graph: Graph, planned: Plan) -> ModelProto:
    """Writes the graph: the model's inputs in float to the plan's outputs, wires in INT8 and tasks in float.

    Args:
        graph: the whole float model.
        planned: for this graph.

    Raises:
        UserError: the model's opset is too old, or weights are not finite.
    """
    if opset_of(graph.model) < _OLDEST_OPSET:
        raise UserError(
            f'opset "{opset_of(graph.model)}" has no scale per channel', [f"export with {_OLDEST_OPSET} or newer"]
        )
    half = [graph.nodes[i] for i in members(graph.needed(planned.outputs))]
    taken = {name for node in half for name in node.input}
    inputs = [name for name in graph.inputs if name in taken]
    weights = {weight: _weight_scales(graph, weight) for weight in planned.weights.values()}
    types = _Types(graph, half, planned)
    nodes = [one for weight in weights for one in _weight_nodes(weight)]
    for name in inputs:
        nodes += [*_pair(name, planned), *types.to_fp16(name)]
    for node in half:
        nodes.append(_rewired(node, planned, types))
        for name in node.output:
            nodes += [*types.to_float(name), *_pair(name, planned), *types.to_fp16(name)]
    constants = [one for weight, scales in weights.items() for one in _constants(_stem(weight), scales)]
    constants += [one for name, scale in planned.scales.items() for one in _constants(name, np.float32(scale))]
    made = helper.make_graph(
        nodes,
        graph.model.graph.name,
        [_value(graph, name) for name in inputs],
        [_value(graph, name, is_wire=name in planned.wires) for name in planned.outputs],
        [*types.constants(), *constants],
    )
    ir_version = min(graph.model.ir_version, NEWEST_IR_VERSION)
    model = helper.make_model(made, opset_imports=graph.model.opset_import, ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    check_legal(model)
    return model


class _Types:
    """Where float32 becomes fp16 and comes back.

    Args:
        graph: the whole float model.
        half: operators of the edge half.
        planned: what of them is fp16.
    """

    def __init__(self, graph: Graph, half: Sequence[NodeProto], planned: Plan) -> None:
        self._graph, self._planned = graph, planned
        self.positions = {
            node.output[0]: half_positions(graph, node) for node in half if node.output[0] in planned.fp16
        }
        self._made: set[str] = set()
        self._taken: set[str] = set()
        self._needed = {*planned.outputs, *planned.scales}  # in float32
        for node in half:
            inputs, outputs = self.positions.get(node.output[0], ((), ()))
            self._made |= {node.output[i] for i in outputs}
            self._taken |= {node.input[i] for i in inputs}
            self._needed |= {name for i, name in enumerate(node.input) if i not in inputs}

    def to_fp16(self, name: str) -> list[NodeProto]:
        """Behind a tensor that is float32: the Cast for those that take it in fp16."""
        if name not in self._taken or name in self._made:
            return []
        return [_cast(_real(name, self._planned), _fp16(name), TensorProto.FLOAT16)]

    def to_float(self, name: str) -> list[NodeProto]:
        """Behind a tensor that is fp16: the Cast for those that take it in float32."""
        if name not in self._made or name not in self._needed:
            return []
        return [_cast(_fp16(name), _real(name, self._planned), TensorProto.FLOAT)]

    def constants(self) -> list[TensorProto]:
        """The model's own constants, each in the types that it is taken in."""
        stored = self._graph.constants
        halves = [
            numpy_helper.from_array(self._graph.constant(name).astype(np.float16), _fp16(name))
            for name in stored
            if name in self._taken
        ]
        return [*(tensor for name, tensor in stored.items() if name in self._needed), *halves]


def _cast(source: str, target: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=to)


def _fp16(tensor: str) -> str:
    return f"{tensor}{FP16}"


def _real(tensor: str, planned: Plan) -> str:
    """A tensor's name as float32."""
    return f"{tensor}/real" if tensor in planned.wires else tensor


def weight_scales(values: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    """One scale per channel, or one in all: the largest magnitude is stored as 127.

    Args:
        values: float weights.
        axis: of the channels; ``None`` for one scale.

    Returns:
        float32, ``[channels]`` or ``[]``; positive where the weights are finite.
    """
    others = tuple(i for i in range(values.ndim) if i != axis)
    limits = np.asarray(np.abs(values).max(axis=others), np.float64)
    return np.asarray(np.maximum(limits / SYMMETRIC_STEPS, _SMALLEST_SCALE), np.float32)


def _weight_scales(graph: Graph, weight: Weight) -> NDArray[np.float32]:
    values = np.asarray(graph.constant(weight.tensor), np.float32)
    if not np.isfinite(values).all():
        raise UserError(f'the weights "{weight.tensor}" are not finite', ["check the checkpoint for NaN"])
    return weight_scales(values, weight.axis)


def _stem(weight: Weight) -> str:
    # With the axis, since two operators may share weights and not the axis.
    return f"{weight.tensor}/whole" if weight.axis is None else f"{weight.tensor}/axis{weight.axis}"


def _weight_nodes(weight: Weight) -> list[NodeProto]:
    stem = _stem(weight)
    return [
        _quantize(weight.tensor, stem, f"{stem}/quantized", weight.axis),
        _dequantize(f"{stem}/quantized", stem, weight.axis),
    ]


def _pair(tensor: str, planned: Plan) -> list[NodeProto]:
    """QuantizeLinear behind a tensor, and DequantizeLinear where somebody in the graph takes it from there."""
    if tensor not in planned.scales:
        return []
    stored = tensor if tensor in planned.wires else f"{tensor}/quantized"
    nodes = [_quantize(_real(tensor, planned), tensor, stored)]
    if any(edge.tensor == tensor for edge in planned.edges):
        nodes.append(_dequantize(stored, tensor))
    return nodes


def _quantize(source: str, stem: str, target: str, axis: int | None = None) -> NodeProto:
    inputs = [source, f"{stem}/scale", f"{stem}/zero"]
    return helper.make_node("QuantizeLinear", inputs, [target], name=f"{stem}/quantize", axis=axis)


def _dequantize(source: str, stem: str, axis: int | None = None) -> NodeProto:
    inputs = [source, f"{stem}/scale", f"{stem}/zero"]
    return helper.make_node("DequantizeLinear", inputs, [f"{stem}/dequantized"], name=f"{stem}/dequantize", axis=axis)


def _constants(stem: str, scales: NDArray[np.float32] | np.float32) -> list[TensorProto]:
    return [
        numpy_helper.from_array(np.asarray(scales), f"{stem}/scale"),
        numpy_helper.from_array(np.zeros(np.shape(scales), np.int8), f"{stem}/zero"),
    ]


def _rewired(node: NodeProto, planned: Plan, types: _Types) -> NodeProto:
    """A copy of an operator that takes what is planned through INT8 or in fp16."""
    copy, name = NodeProto(), node.output[0]
    copy.CopyFrom(node)
    half_inputs, half_outputs = types.positions.get(name, ((), ()))
    for position, tensor in enumerate(node.input):
        if Edge(tensor, name, position) in planned.edges:
            copy.input[position] = f"{tensor}/dequantized"
        else:
            copy.input[position] = _fp16(tensor) if position in half_inputs else _real(tensor, planned)
    if name in planned.weights:
        copy.input[1] = f"{_stem(planned.weights[name])}/dequantized"
    for position, tensor in enumerate(node.output):
        copy.output[position] = _fp16(tensor) if position in half_outputs else _real(tensor, planned)
    return copy


def _value(graph: Graph, name: str, *, is_wire: bool = False) -> onnx.ValueInfoProto:
    dtype = np.dtype(np.int8) if is_wire else graph.dtypes[name]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), graph.shapes[name])
