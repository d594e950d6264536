"""Writes a planned graph as ONNX.

A tensor keeps its name in float; its INT8 form is called ``<tensor>/quantized`` and what comes back of it
``<tensor>/dequantized``. A wire leaves the graph as INT8 under its own name; in float it is ``<tensor>/real`` then.
Weights are stored as float in front of their QuantizeLinear: TensorRT 8 takes no INT8 weights, later ones take both.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from calib.qdq.inspect import check_legal
from calib.qdq.plan import Edge, Plan, Weight
from calib.ranges import SYMMETRIC_STEPS
from export.graph import Graph, members
from export.opset import opset_of
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
    nodes = [one for weight in weights for one in _weight_nodes(weight)]
    nodes += [one for name in inputs for one in _pair(name, planned)]
    for node in half:
        nodes.append(_rewired(node, planned))
        nodes += [one for name in node.output for one in _pair(name, planned)]
    constants = [one for weight, scales in weights.items() for one in _constants(_stem(weight), scales)]
    constants += [one for name, scale in planned.scales.items() for one in _constants(name, np.float32(scale))]
    made = helper.make_graph(
        nodes,
        graph.model.graph.name,
        [_value(graph, name) for name in inputs],
        [_value(graph, name, is_wire=name in planned.wires) for name in planned.outputs],
        [*(tensor for name, tensor in graph.constants.items() if name in taken), *constants],
    )
    model = helper.make_model(made, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)
    onnx.checker.check_model(model, full_check=True)
    check_legal(model)
    return model


def weight_scales(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """One scale per channel: the largest magnitude is stored as 127.

    Args:
        values: float weights.
        axis: of the channels.

    Returns:
        float32, ``[channels]``; positive where the weights are finite.
    """
    others = tuple(i for i in range(values.ndim) if i != axis)
    limits = np.abs(values.astype(np.float64)).max(axis=others)
    scales: NDArray[np.float32] = np.maximum(limits / SYMMETRIC_STEPS, _SMALLEST_SCALE).astype(np.float32)
    return scales


def _weight_scales(graph: Graph, weight: Weight) -> NDArray[np.float32]:
    values = np.asarray(graph.constant(weight.tensor), np.float32)
    if not np.isfinite(values).all():
        raise UserError(f'the weights "{weight.tensor}" are not finite', ["check the checkpoint for NaN"])
    return weight_scales(values, weight.axis)


def _stem(weight: Weight) -> str:
    # With the axis, since two operators may share weights and not the axis.
    return f"{weight.tensor}/axis{weight.axis}"


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
    is_wire = tensor in planned.wires
    stored = tensor if is_wire else f"{tensor}/quantized"
    nodes = [_quantize(f"{tensor}/real" if is_wire else tensor, tensor, stored)]
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


def _rewired(node: NodeProto, planned: Plan) -> NodeProto:
    """A copy of an operator that takes what is planned through INT8."""
    copy, name = NodeProto(), node.output[0]
    copy.CopyFrom(node)
    for position, tensor in enumerate(node.input):
        if Edge(tensor, name, position) in planned.edges:
            copy.input[position] = f"{tensor}/dequantized"
        elif tensor in planned.wires:
            copy.input[position] = f"{tensor}/real"
    if name in planned.weights:
        copy.input[1] = f"{_stem(planned.weights[name])}/dequantized"
    copy.output[:] = [f"{tensor}/real" if tensor in planned.wires else tensor for tensor in node.output]
    return copy


def _value(graph: Graph, name: str, *, is_wire: bool = False) -> onnx.ValueInfoProto:
    dtype = np.dtype(np.int8) if is_wire else graph.dtypes[name]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), graph.shapes[name])
