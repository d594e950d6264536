"""Cuts a model in two, and gives each half the ends that it needs on the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.cuts import Cut
from export.graph import Graph, NodeSet, members
from export.packed import unpack
from splitboard.contract.bundle import TensorSpec
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import Preprocessing

_TO_NCHW = (0, 3, 1, 2)


def cut(graph: Graph, where: Cut) -> tuple[ModelProto, ModelProto]:
    """Cuts a model.

    Args:
        graph: the whole model.
        where: the division of its nodes.

    Returns:
        The edge graph (model inputs to the crossing tensors, then the local tasks) and the server graph (crossing
        tensors to the other tasks); names, types and the order of the outputs kept.
    """
    return _checked(edge_graph(graph, where)), _checked(server_graph(graph, where))


def edge_graph(graph: Graph, where: Cut) -> ModelProto:
    """The edge half: the model's inputs to what crosses, then to the local tasks; the inputs themselves left out."""
    made = [name for name in where.crossing if name not in graph.inputs]
    taken = {name for i in members(where.edge) for name in graph.nodes[i].input}
    inputs = [_value(graph, name) for name in graph.inputs if name in taken]
    outputs = [_value(graph, name) for name in (*made, *(task for task in where.local if task not in made))]
    return _model(graph, _nodes(graph, where.edge), inputs, outputs)


def server_graph(graph: Graph, where: Cut) -> ModelProto:
    """The server half: what crosses to the tasks that are not local, as float32."""
    inputs = [_value(graph, name) for name in where.crossing]
    return _model(graph, _server_nodes(graph, where), inputs, _remote_outputs(graph, where))


def wire_server_graph(graph: Graph, where: Cut, wires: Sequence[TensorSpec]) -> ModelProto:
    """The server half as it is served: its inputs are the wire tensors, which its first operators dequantise.

    TensorRT takes no ``DequantizeLinear`` with a zero point other than 0. So the zero point is subtracted afterwards,
    as a real number: ``scale * stored - scale * zero_point``.

    Args:
        graph: the whole model.
        where: the division of its nodes.
        wires: the crossing tensors as the edge sends them: INT8 with scale and zero point, in the edge's layout; what
            is no real number as it is.

    Raises:
        UserError: a task's output crosses and would have to come back under its own name.
    """
    through = [name for name in where.crossing if name in graph.outputs and name not in where.local]
    if through:
        raise UserError(
            f'task "{through[0]}" is computed on the edge at this split', [f"answer it there: --local {through[0]}"]
        )
    first: list[NodeProto] = []
    constants: list[TensorProto] = []
    renamed: dict[str, str] = {}
    for wire in wires:
        nodes, made, renamed[wire.name] = _real(wire)
        first, constants = first + nodes, constants + made
    inputs = [
        helper.make_tensor_value_info(wire.name, helper.np_dtype_to_tensor_dtype(np.dtype(wire.dtype)), wire.shape)
        for wire in wires
    ]
    nodes = [*first, *_renamed(_server_nodes(graph, where), renamed)]
    return _checked(_model(graph, nodes, inputs, _remote_outputs(graph, where), constants))


def _real(wire: TensorSpec) -> tuple[list[NodeProto], list[TensorProto], str]:
    """Nodes and constants from a wire tensor to the real one in the model's layout, and the latter's name."""
    name, at = wire.name, wire.name
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []

    def then(operator: str, suffix: str, *operands: str, **attributes: Any) -> None:
        nonlocal at
        nodes.append(helper.make_node(operator, [at, *operands], [f"{name}/{suffix}"], **attributes))
        at = f"{name}/{suffix}"

    def constant(suffix: str, value: np.generic) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), f"{name}/{suffix}"))
        return f"{name}/{suffix}"

    if wire.scale is not None:
        scale, zero_point = np.float32(wire.scale), np.float32(wire.zero_point or 0)
        if wire.dtype == "int8":
            then("DequantizeLinear", "scaled", constant("scale", scale), constant("zero", np.int8(0)))
        else:  # DequantizeLinear takes other integers from opset 21 on
            then("Cast", "cast", to=TensorProto.FLOAT)
            then("Mul", "scaled", constant("scale", scale))
        if zero_point:
            then("Sub", "shifted", constant("zero_point", scale * zero_point))
    if wire.layout == "NHWC":
        then("Transpose", "nchw", perm=_TO_NCHW)
    return nodes, constants, at


def remote_graph(graph: Graph, preprocessing: Preprocessing) -> ModelProto:
    """The whole model behind its preprocessing: takes the resized image as uint8 NHWC in its source channels.

    Normalisation is a look-up of the same table that the board uses, so the float input has the same bits.
    """
    image = graph.inputs[0]
    table = preprocessing.normalisation()  # [256, channels]
    offsets = (np.arange(preprocessing.channels, dtype=np.int32) * 256).reshape(1, 1, 1, -1)
    # One channel broadcasts over all of the model's; several are taken in the model's order.
    order = np.array(preprocessing.source_channel_of if preprocessing.source_channels > 1 else (0,), np.int64)
    nodes = [
        helper.make_node("Gather", [image, f"{image}/order"], [f"{image}/ordered"], axis=3),
        helper.make_node("Cast", [f"{image}/ordered"], [f"{image}/index"], to=TensorProto.INT32),
        helper.make_node("Add", [f"{image}/index", f"{image}/offsets"], [f"{image}/entry"]),
        helper.make_node("Gather", [f"{image}/table", f"{image}/entry"], [f"{image}/nhwc"]),
        helper.make_node("Transpose", [f"{image}/nhwc"], [f"{image}/real"], perm=_TO_NCHW),
        *_renamed(graph.nodes, {image: f"{image}/real"}),
    ]
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(table.T).reshape(-1), f"{image}/table"),
        numpy_helper.from_array(offsets, f"{image}/offsets"),
        numpy_helper.from_array(order, f"{image}/order"),
    ]
    shape = [1, preprocessing.height, preprocessing.width, preprocessing.source_channels]
    inputs = [helper.make_tensor_value_info(image, TensorProto.UINT8, shape)]
    return _checked(_model(graph, nodes, inputs, [_value(graph, name) for name in graph.outputs], constants))


def whole_graph(remote: ModelProto) -> Graph:
    """The model behind its preprocessing: takes `remote_graph` back.

    Args:
        remote: as a bundle has it, of any operator set.

    Returns:
        The float model with its own names; nodes and weights are the same, bit for bit, where the operator set is (the
        zeros of a packed weight lose their sign).

    Raises:
        UserError: the graph has no preprocessing in front.
    """
    behind = Graph(unpack(remote))
    image = behind.inputs[0]
    real = f"{image}/real"
    if real not in behind.producer:
        raise UserError(f'a graph that takes "{image}" has no preprocessing to take off', ["give a remote graph"])
    front = behind.needed([real])
    nodes = _renamed(_nodes(behind, behind.everything & ~front), {real: image})
    inputs = [helper.make_tensor_value_info(image, TensorProto.FLOAT, behind.shapes[real])]
    return Graph(_checked(_model(behind, nodes, inputs, [_value(behind, name) for name in behind.outputs])))


def _model(
    graph: Graph,
    nodes: Sequence[NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[TensorProto] = (),
) -> ModelProto:
    used = {name for node in nodes for name in node.input}
    kept = [graph.constants[name] for name in graph.constants if name in used]
    made = helper.make_graph(list(nodes), graph.model.graph.name, inputs, outputs, [*kept, *constants])
    return helper.make_model(made, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)


def _checked(model: ModelProto) -> ModelProto:
    onnx.checker.check_model(model)
    return model


def _nodes(graph: Graph, which: NodeSet) -> list[NodeProto]:
    return [graph.nodes[i] for i in members(which)]


def _server_nodes(graph: Graph, where: Cut) -> list[NodeProto]:
    return _nodes(graph, graph.everything & ~where.edge)


def _remote_outputs(graph: Graph, where: Cut) -> list[onnx.ValueInfoProto]:
    return [_value(graph, name) for name in graph.outputs if name not in where.local]


def _value(graph: Graph, name: str) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(graph.dtypes[name])
    return helper.make_tensor_value_info(name, dtype, graph.shapes[name])


def _renamed(nodes: Sequence[NodeProto], new_names: Mapping[str, str]) -> list[NodeProto]:
    """Copies of nodes that take some tensors under other names."""
    renamed = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [new_names.get(name, name) for name in node.input]
        renamed.append(copy)
    return renamed
