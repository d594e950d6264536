"""Bias correction: the mean error that rounded weights cause is taken out of the biases.

Rounding the weights of an output channel shifts its mean by the sum of (rounded - exact weight) times the mean of the
input channel, over all inputs. That is known before anything runs, so it is subtracted from the bias (Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2, with measured means in
place of those from batch norms). Padding at the borders is left out of account.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from calib.observe import Observations
from calib.weights import Layer, layers, rounded
from export.graph import Graph


def corrected_biases(graph: Graph, seen: Observations) -> dict[str, NDArray[np.float32]]:
    """The corrected bias of every layer with constant weights.

    Args:
        graph: the float model.
        seen: of the float model; has the channel means of every layer's input.

    Returns:
        ``[out]`` by the name of the tensor that the layer makes.
    """
    found: dict[str, NDArray[np.float32]] = {}
    for layer in layers(graph):
        if layer.source not in seen.tensors or (layer.bias is not None and layer.bias_users > 1):
            continue
        shift = _shift(layer, seen.tensors[layer.source].channel_mean)
        if shift.any():
            bias = np.zeros(len(shift)) if layer.bias is None else layer.bias.astype(np.float64)
            found[layer.output] = (bias - shift).astype(np.float32)
    return found


def with_biases(graph: Graph, biases: Mapping[str, NDArray[np.float32]]) -> Graph:
    """The model with other biases, by the name of the tensor that the layer makes; a layer without one gets one."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    nodes = {node.output[0]: node for node in model.graph.node}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for output, bias in biases.items():
        name = _bias_name(nodes[output])
        made = numpy_helper.from_array(np.ascontiguousarray(bias), name)
        if name in stored:
            stored[name].CopyFrom(made)
        else:
            model.graph.initializer.append(made)
    return Graph(model)


def _shift(layer: Layer, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far rounding moves the mean of every output channel."""
    error = rounded(layer.weight) - layer.weight  # [out, in of its group, positions]
    per_input = error.sum(axis=2)
    n_out, n_in = per_input.shape
    if len(mean) != n_in * layer.groups:
        mean = np.full(n_in * layer.groups, mean.mean())  # flattened features of a linear layer
    group = np.arange(n_out) // (n_out // layer.groups)
    inputs = mean.reshape(layer.groups, n_in)[group]
    return np.asarray((per_input * inputs).sum(axis=1))


def _bias_name(node: NodeProto) -> str:
    """The name of a node's bias, which is made where there is none."""
    if len(node.input) > 2 and node.input[2]:
        return str(node.input[2])
    name = f"{node.output[0]}/bias"
    del node.input[2:]
    node.input.append(name)
    return name
