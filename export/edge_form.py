"""The model in the form that TFLite's INT8 kernels are fast at; its tensors keep their names.

Hard-swish is written out as ``x * (relu6(x + 3) * 0.1667)``: the exact form is fused into HARD_SWISH, whose INT8
version no delegate accelerates. The factor is off by 2e-4 of itself, a twentieth of an INT8 step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from export.graph import Graph

_UNFUSED_SIXTH = 0.1667
_ALPHA, _BETA = 0.2, 0.5
"""Defaults of HardSigmoid (onnx.ai, Operators, HardSigmoid-6)."""

_THREE = "/three"

_Written = tuple[list[NodeProto], dict[str, float]]
"""Nodes, and the scalars that they take by name."""


def edge_form(graph: Graph) -> Graph:
    """A graph whose ``HardSwish`` and ``HardSigmoid`` are written out; the same one where there are none."""
    if not any(node.op_type in _WRITERS for node in graph.nodes):
        return graph
    model = ModelProto()
    model.CopyFrom(graph.model)
    nodes: list[NodeProto] = []
    scalars: dict[str, float] = {}
    for node in graph.nodes:
        written, taken = _WRITERS[node.op_type](node) if node.op_type in _WRITERS else ([node], {})
        nodes += written
        scalars |= taken
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in scalars.items()
    )
    return Graph(model)


def sums_into_biases(graph: Graph, crossing: Collection[str]) -> Graph:
    """Where only a written-out sum takes a layer's output, the layer's bias does the sum.

    The converter would do it; done here, whoever looks at the biases sees what will be stored.

    Args:
        graph: from `edge_form`.
        crossing: tensors that must stay.
    """
    kept = {*crossing, *graph.outputs}
    model = ModelProto()
    model.CopyFrom(graph.model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.output[0]: node for node in model.graph.node}
    for node in graph.nodes:
        if node.op_type != "Add" or not node.input[1].endswith(_THREE) or node.input[0] not in graph.producer:
            continue
        source = node.input[0]
        layer = nodes[source]
        if layer.op_type not in ("Conv", "Gemm") or source in kept or len(graph.consumers[source]) > 1:
            continue
        three = numpy_helper.to_array(stored[node.input[1]])
        if len(layer.input) < 3:
            bias = np.broadcast_to(three, graph.shapes[source][1])
        elif layer.input[2] in stored:
            bias = numpy_helper.to_array(stored[layer.input[2]]) + three
        else:
            continue
        summed = f"{node.output[0]}/bias"
        model.graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), summed))
        layer.input[2:] = [summed]
        layer.output[0] = node.output[0]
        model.graph.node.remove(nodes[node.output[0]])
    return Graph(model)


def _hard_swish(node: NodeProto) -> _Written:
    y = node.output[0]
    nodes, scalars = _relu6_of_sum(node)
    nodes += [
        helper.make_node("Mul", [f"{y}/relu6", f"{y}/sixth"], [f"{y}/gate"], name=f"{node.name}/gate"),
        helper.make_node("Mul", [node.input[0], f"{y}/gate"], [y], name=node.name),
    ]
    return nodes, {**scalars, f"{y}/sixth": _UNFUSED_SIXTH}


def _hard_sigmoid(node: NodeProto) -> _Written:
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    alpha, beta = attributes.get("alpha", _ALPHA), attributes.get("beta", _BETA)
    y = node.output[0]
    if np.float32(alpha) == np.float32(1 / 6) and beta == 0.5:
        nodes, scalars = _relu6_of_sum(node)
        nodes.append(helper.make_node("Mul", [f"{y}/relu6", f"{y}/sixth"], [y], name=node.name))
        return nodes, {**scalars, f"{y}/sixth": 1 / 6}
    nodes = [
        helper.make_node("Mul", [node.input[0], f"{y}/alpha"], [f"{y}/scaled"], name=f"{node.name}/scaled"),
        helper.make_node("Add", [f"{y}/scaled", f"{y}/beta"], [f"{y}/sum"], name=f"{node.name}/sum"),
        helper.make_node("Clip", [f"{y}/sum", f"{y}/zero", f"{y}/one"], [y], name=node.name),
    ]
    return nodes, {f"{y}/alpha": alpha, f"{y}/beta": beta, f"{y}/zero": 0.0, f"{y}/one": 1.0}


def _relu6_of_sum(node: NodeProto) -> _Written:
    """``relu6(x + 3)``."""
    y = node.output[0]
    nodes = [
        helper.make_node("Add", [node.input[0], y + _THREE], [f"{y}/sum"], name=f"{node.name}/sum"),
        helper.make_node("Clip", [f"{y}/sum", f"{y}/zero", f"{y}/six"], [f"{y}/relu6"], name=f"{node.name}/relu6"),
    ]
    return nodes, {y + _THREE: 3.0, f"{y}/zero": 0.0, f"{y}/six": 6.0}


_WRITERS: Mapping[str, Callable[[NodeProto], _Written]] = {"HardSwish": _hard_swish, "HardSigmoid": _hard_sigmoid}
