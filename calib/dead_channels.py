"""Output channels whose weights are (nearly) zero get a weight that INT8 arithmetic can carry.

A bias is stored as int32 in steps of ``input scale * weight scale``. Where training killed a channel its weights are
about zero, and with them the step: the bias overflows, and the channel's constant is lost without a word. Raising one
weight until the bias takes 30 bits changes the channel by at most 255 * 127 * 2**-30 = 3e-5 of its constant.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from calib.ranges import RangeTable
from export.graph import Graph

_BIAS_LIMIT = 2.0**30
_WEIGHT_STEPS = 127


@dataclass(frozen=True)
class FlooredChannels:
    """Channels of one node that were given a carrying weight.

    Attributes:
        node: name of the convolution or matrix product.
        channels: how many of its output channels.
    """

    node: str
    channels: int


def floor_dead_channels(graph: Graph, tables: Collection[RangeTable]) -> tuple[Graph, tuple[FlooredChannels, ...]]:
    """Raises one weight in each dead channel.

    Args:
        graph: the float model.
        tables: ranges of its tensors, one of which will be used; the weights carry the biases with each.

    Returns:
        The model with those weights raised, and what was raised.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    floored = []
    for node in graph.nodes:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3 or node.input[2] not in graph.constants:
            continue
        weight, count = _floored(graph, node, min(table.of(node.input[0]).asymmetric_scale for table in tables))
        if count:
            initializers[node.input[1]].CopyFrom(numpy_helper.from_array(weight, node.input[1]))
            floored.append(FlooredChannels(node.name, count))
    return Graph(model) if floored else graph, tuple(floored)


def _floored(graph: Graph, node: NodeProto, input_scale: float) -> tuple[NDArray[np.float32], int]:
    stored = np.array(graph.constant(node.input[1]), dtype=np.float32)
    bias = np.array(graph.constant(node.input[2]), dtype=np.float64)
    by_column = node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
    channels = (stored.T if by_column else stored).reshape(len(bias), -1)
    needed = np.abs(bias) / (input_scale * _BIAS_LIMIT) * _WEIGHT_STEPS
    dead = np.flatnonzero(np.abs(channels).max(axis=1) < needed)
    raised = channels.copy()
    raised[dead, np.abs(channels[dead]).argmax(axis=1)] = needed[dead]
    return np.ascontiguousarray(raised.T if by_column else raised.reshape(stored.shape)), len(dead)
