"""Cuts a model in two, and gives each half the ends that it needs on the wire."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.graph import Graph
from splitboard.contract.bundle import TensorSpec
from splitboard.contract.preprocess import Preprocessing


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
    model = helper.make_model(made, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)
    onnx.checker.check_model(model)
    return model


def _float_value(graph: Graph, name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, graph.shapes[name])


def cut(graph: Graph, tensor: str) -> tuple[ModelProto, ModelProto]:
    """Cuts at one tensor.

    Args:
        graph: the whole model.
        tensor: a single-tensor split point of it.

    Returns:
        The edge graph (model inputs to ``tensor``) and the server graph (``tensor`` to the model's outputs, names and
        order kept), both float32.
    """
    bits = graph.ancestors[graph.producer[tensor]]
    edge = [node for i, node in enumerate(graph.nodes) if bits >> i & 1]
    server = [node for i, node in enumerate(graph.nodes) if not bits >> i & 1]
    crossing = [_float_value(graph, tensor)]
    return (
        _model(graph, edge, [_float_value(graph, name) for name in graph.inputs], crossing),
        _model(graph, server, crossing, [_float_value(graph, name) for name in graph.outputs]),
    )


def _rename_input(nodes: Sequence[NodeProto], old: str, new: str) -> list[NodeProto]:
    renamed = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [new if name == old else name for name in node.input]
        renamed.append(copy)
    return renamed


def wire_server_graph(graph: Graph, tensor: str, wire: TensorSpec) -> ModelProto:
    """The server graph whose input is the wire tensor: INT8 in the edge's layout, dequantised by the first operator.

    Args:
        graph: the whole model.
        tensor: the split point.
        wire: the INT8 tensor of the same name that the edge sends, with scale and zero point.
    """
    bits = graph.ancestors[graph.producer[tensor]]
    real, back = f"{tensor}/real", f"{tensor}/nchw"
    nodes = [helper.make_node("DequantizeLinear", [tensor, f"{tensor}/scale", f"{tensor}/zero_point"], [real])]
    if wire.layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [real], [back], perm=[0, 3, 1, 2]))
        real = back
    nodes += _rename_input([n for i, n in enumerate(graph.nodes) if not bits >> i & 1], tensor, real)
    constants = [
        numpy_helper.from_array(np.asarray(wire.scale, np.float32), f"{tensor}/scale"),
        numpy_helper.from_array(np.asarray(wire.zero_point, np.int8), f"{tensor}/zero_point"),
    ]
    inputs = [helper.make_tensor_value_info(tensor, TensorProto.INT8, wire.shape)]
    return _model(graph, nodes, inputs, [_float_value(graph, name) for name in graph.outputs], constants)


def remote_graph(graph: Graph, preprocessing: Preprocessing) -> ModelProto:
    """The whole model behind its preprocessing: takes the resized image as uint8 NHWC in its source channels.

    Normalisation is a look-up of the same table that the board uses, so the float input has the same bits.
    """
    image = graph.inputs[0]
    table = preprocessing.normalisation()  # [256, channels]
    offsets = (np.arange(preprocessing.channels, dtype=np.int32) * 256).reshape(1, 1, 1, -1)
    nodes = [
        helper.make_node("Cast", [image], [f"{image}/index"], to=TensorProto.INT32),
        helper.make_node("Add", [f"{image}/index", f"{image}/offsets"], [f"{image}/entry"]),
        helper.make_node("Gather", [f"{image}/table", f"{image}/entry"], [f"{image}/nhwc"]),
        helper.make_node("Transpose", [f"{image}/nhwc"], [f"{image}/real"], perm=[0, 3, 1, 2]),
        *_rename_input(graph.nodes, image, f"{image}/real"),
    ]
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(table.T).reshape(-1), f"{image}/table"),
        numpy_helper.from_array(offsets, f"{image}/offsets"),
    ]
    shape = [1, preprocessing.height, preprocessing.width, preprocessing.source_channels]
    inputs = [helper.make_tensor_value_info(image, TensorProto.UINT8, shape)]
    return _model(graph, nodes, inputs, [_float_value(graph, name) for name in graph.outputs], constants)
