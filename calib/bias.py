"""Bias correction: the mean error that rounded weights cause is taken out of the biases.

Rounding the weights of an output channel shifts its mean by the sum of (rounded - exact weight) times the mean of the
input channel, over all inputs. That is known before anything runs, so it is subtracted from the bias (Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2, with measured means in
place of those from batch norms). Padding at the borders is left out of account. A layer without a bias stays without
one: the converter moves new ones about, and tensors that no model has would appear in the file.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

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
        if layer.source not in seen.tensors or layer.bias is None or layer.bias_users > 1:
            continue
        shift = _shift(layer, seen.tensors[layer.source].channel_mean)
        if shift.any():
            found[layer.output] = (layer.bias.astype(np.float64) - shift).astype(np.float32)
    return found


def with_biases(graph: Graph, biases: Mapping[str, NDArray[np.float32]]) -> Graph:
    """The model with other biases, by the name of the tensor that the layer makes."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    nodes = {node.output[0]: node for node in model.graph.node}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for output, bias in biases.items():
        name = nodes[output].input[2]
        stored[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(bias), name))
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
