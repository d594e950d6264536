"""Operators that are better left in float, as names for ``keep_float`` of `calib.qdq.plan.plan`."""

from __future__ import annotations

from onnx import helper

from calib.qdq.plan import WEIGHTED
from export.graph import Graph, NodeSet, members

DEPTHWISE = ("float", "int8")
"""What depthwise convolutions can be in; the first one is the default (``docs/adr/0026``)."""

_AVERAGES = ("GlobalAveragePool", "ReduceMean", "AveragePool")


def float_layers(graph: Graph, depthwise: str) -> frozenset[str]:
    """The operators that TensorRT runs better in fp16 than in INT8.

    Args:
        graph: the whole float model.
        depthwise: one of `DEPTHWISE`.
    """
    return squeeze_excite_nodes(graph) | (depthwise_nodes(graph) if depthwise == "float" else frozenset())


def squeeze_excite_nodes(graph: Graph) -> frozenset[str]:
    """The weighted operators of the gates that weight the channels of a tensor by its own average.

    A gate is what lies between an average of a tensor over height and width and the ``Mul`` with that same tensor. Its
    tensors hold one value per channel, so INT8 saves nothing there, and costs accuracy.

    Returns:
        The tensors that those operators make.
    """
    found: NodeSet = 0
    for node in graph.nodes:
        if node.op_type == "Mul":
            for weighted, gate in (tuple(node.input), tuple(reversed(node.input))):
                found |= _gate(graph, weighted, gate)
    return frozenset(graph.nodes[i].output[0] for i in members(found) if graph.nodes[i].op_type in WEIGHTED)


def _gate(graph: Graph, weighted: str, gate: str) -> NodeSet:
    """The nodes from an average of one tensor to another, which has one value per channel; none where no way leads."""
    shape = graph.shapes.get(gate, ())
    if gate not in graph.producer or len(shape) != 4 or shape[2:] != (1, 1):
        return 0
    needed = graph.needed([gate])
    pools = [i for i in graph.consumers.get(weighted, []) if graph.nodes[i].op_type in _AVERAGES and needed >> i & 1]
    inside = (i for i in members(needed) if any(graph.ancestors[i] >> pool & 1 for pool in pools))
    return sum(1 << i for i in inside)


def depthwise_nodes(graph: Graph) -> frozenset[str]:
    """The convolutions in which every channel has weights of its own.

    INT8 is often slower than FP16 there (NVIDIA/TensorRT issue 4529), and their few weights per channel lose most.

    Returns:
        The tensors that they make.
    """
    return frozenset(
        node.output[0]
        for node in graph.nodes
        if node.op_type == "Conv"
        and node.input[1] in graph.constants
        and graph.constants[node.input[1]].dims[1] == 1
        and any(one.name == "group" and helper.get_attribute_value(one) > 1 for one in node.attribute)
    )
