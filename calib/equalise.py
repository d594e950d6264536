"""Cross-layer equalisation: channels of two layers in a row are scaled so that both halves use INT8 equally well.

A factor taken out of an output channel and put into the next layer's weights for it changes nothing where only ReLU, or
nothing, stands between (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV
2019, section 4.1). ReLU6, hard-swish and a tensor that others take as well do not allow it. A channel shuffle does: the
factors go the way of their channels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calib.weights import Layer, layers
from export.graph import Graph
from export.shuffles import shuffles

_PASSES = 20
_SETTLED = 1e-3
"""The factors of a pass that changes nothing by more than this are the last ones."""

_MOVES = frozenset({"GlobalAveragePool", "MaxPool", "Relu"})
"""Operators that a positive factor per channel passes through."""


@dataclass(frozen=True)
class _Pair:
    """Two layers in a row.

    Attributes:
        first: makes the channels.
        second: takes them.
        order: for each input channel of the second the output channel of the first that it is.
    """

    first: Layer
    second: Layer
    order: NDArray[np.int64]


def equalise(graph: Graph, fixed: Collection[str]) -> tuple[Graph, int]:
    """Equalises all pairs of layers that allow it.

    Args:
        graph: the float model.
        fixed: tensors that must keep their values, such as those that cross a cut.

    Returns:
        The model with other weights and the same function, and the number of pairs.
    """
    pairs = list(_pairs(graph, {*fixed, *graph.outputs}))
    if not pairs:
        return graph, 0
    weights = {layer.output: layer.weight.copy() for pair in pairs for layer in (pair.first, pair.second)}
    biases = {layer.output: layer.bias for pair in pairs for layer in (pair.first, pair.second)}
    for _ in range(_PASSES):
        largest = 0.0
        for pair in pairs:
            first, second = pair.first, pair.second
            factor = _factors(weights[first.output], weights[second.output], pair)
            weights[first.output] = weights[first.output] / factor[:, None, None]
            bias = biases[first.output]
            biases[first.output] = None if bias is None else (bias / factor).astype(np.float32)
            weights[second.output] = _scaled_inputs(weights[second.output], factor[pair.order], second)
            largest = max(largest, float(np.abs(np.log(factor)).max()))
        if largest < _SETTLED:
            break
    return _with_weights(graph, pairs, weights, biases), len(pairs)


def _pairs(graph: Graph, fixed: Collection[str]) -> Iterator[_Pair]:
    by_output = {layer.output: layer for layer in layers(graph)}
    by_source = {layer.source: layer for layer in by_output.values()}
    dealt = {one.source: one for one in shuffles(graph)}
    for first in by_output.values():
        order = np.arange(first.weight.shape[0])
        end: str | None = first.output
        while end is not None and end not in by_source:
            if end in dealt and _only_taken_once(graph, end, fixed):
                order, end = order[dealt[end].order], dealt[end].result
            else:
                end = _passed_on(graph, end, fixed)
        if end is None or not _only_taken_once(graph, end, fixed):
            continue
        second = by_source[end]
        sole = first.weight_users == second.weight_users == 1 and first.bias_users <= 1
        if sole and second.weight.shape[1] * second.groups == first.weight.shape[0]:
            yield _Pair(first, second, order)


def _only_taken_once(graph: Graph, name: str, fixed: Collection[str]) -> bool:
    return name not in fixed and len(graph.consumers.get(name, [])) == 1


def _passed_on(graph: Graph, name: str, fixed: Collection[str]) -> str | None:
    """The tensor behind an operator that factors pass through, if that is all that takes this one."""
    if not _only_taken_once(graph, name, fixed):
        return None
    (taker,) = graph.consumers[name]
    return graph.nodes[taker].output[0] if graph.nodes[taker].op_type in _MOVES else None


def _factors(first: NDArray[np.float64], second: NDArray[np.float64], pair: _Pair) -> NDArray[np.float64]:
    """By output channel of the first, ``sqrt(r1 / r2)`` (equation 11 of the source); 1 where one side is dead."""
    r1 = np.abs(first).max(axis=(1, 2))
    r2 = np.empty_like(r1)
    r2[pair.order] = np.abs(_by_input(second, pair.second)).max(axis=(1, 2))
    usable = (r1 > 0) & (r2 > 0)
    return np.where(usable, np.sqrt(np.where(usable, r1, 1.0) / np.where(usable, r2, 1.0)), 1.0)


def _by_input(weight: NDArray[np.float64], layer: Layer) -> NDArray[np.float64]:
    """``[in, out of its group, positions]``."""
    n_out, n_in, positions = weight.shape
    grouped = weight.reshape(layer.groups, n_out // layer.groups, n_in, positions)
    return grouped.transpose(0, 2, 1, 3).reshape(layer.groups * n_in, n_out // layer.groups, positions)


def _scaled_inputs(weight: NDArray[np.float64], factor: NDArray[np.float64], layer: Layer) -> NDArray[np.float64]:
    n_out, n_in, _ = weight.shape
    group = np.arange(n_out) // (n_out // layer.groups)
    return np.asarray(weight * factor.reshape(layer.groups, n_in)[group][:, :, None])


def _with_weights(
    graph: Graph,
    pairs: list[_Pair],
    weights: dict[str, NDArray[np.float64]],
    biases: dict[str, NDArray[np.float32] | None],
) -> Graph:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    bias_names = {node.output[0]: node.input[2] for node in graph.nodes if len(node.input) > 2}
    for layer in {one.output: one for pair in pairs for one in (pair.first, pair.second)}.values():
        shape = tuple(stored[layer.weight_name].dims)
        value = layer.stored(weights[layer.output], shape)
        stored[layer.weight_name].CopyFrom(numpy_helper.from_array(value, layer.weight_name))
        bias = biases[layer.output]
        if bias is not None:
            name = bias_names[layer.output]
            stored[name].CopyFrom(numpy_helper.from_array(bias, name))
    return Graph(model)
