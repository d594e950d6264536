"""Weights with a sparse pattern, stored packed in an ONNX file: those that exist, and small integers that say where.

Standard operators put them into their places: ``ConstantOfShape``, ``Cast``, ``Expand`` and ``ScatterElements``. All of
them take constants only, so ONNX Runtime computes them once, when it loads the file, and then runs the dense operator:
the file is smaller, and nothing is faster. TensorRT's parser refuses 16-bit integers, and explicit quantisation wants
weights that are constants, so edge graphs stay dense.

A pattern is over pairs of output and input channels; a kernel exists as a whole or not. As many are stored for each row
(or column) as the fullest one has, so a pattern with fixed degrees, as that of arXiv 2407.11763, has no slack.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

LEAST_BYTES = 1024
"""Of a weight that is worth the operators."""

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose second input is a weight."""

_VALUES, _PLACES, _SHAPE, _FULL, _ZEROS, _INDEX, _KERNELS = (
    f"/packed/{part}" for part in ("values", "places", "shape", "full", "zeros", "index", "kernels")
)
"""What follows the weight's name in those of its parts."""


@dataclass(frozen=True)
class PackedWeight:
    """One weight.

    Attributes:
        name: in the graph.
        dense_bytes: of all its values.
        packed_bytes: of the values that exist and of their places.
    """

    name: str
    dense_bytes: int
    packed_bytes: int


@dataclass(frozen=True)
class _Parts:
    """A weight taken apart along one of its first two axes.

    Attributes:
        axis: that places number.
        values: those that exist, float32; as the weight, but shorter along the axis.
        places: ``[rows, n, 1, 1]`` or, along axis 0, ``[n, columns, 1, 1]``; the smallest unsigned integers that hold
            them.
        shape: of the weight.
    """

    axis: int
    values: NDArray[np.float32]
    places: NDArray[np.unsignedinteger]
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return self.values.nbytes + self.places.nbytes


def pack(model: ModelProto) -> ModelProto:
    """Packs every weight that takes less room so; the same model where there is none.

    Args:
        model: of opset 13 and up. Weights keep their names and their values; only a zero's sign is lost.
    """
    weights = {node.input[1] for node in model.graph.node if node.op_type in _WEIGHTED}
    found = {}
    for tensor in model.graph.initializer:
        if tensor.name in weights and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2:
            parts = _smaller(numpy_helper.to_array(tensor))
            if parts is not None:
                found[tensor.name] = parts
    if not found:
        return model
    packed = ModelProto()
    packed.CopyFrom(model)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in found]
    nodes: list[NodeProto] = []
    for name, parts in found.items():
        made, constants = _unpacking(name, parts)
        nodes, kept = nodes + made, kept + constants
    del packed.graph.initializer[:], packed.graph.node[:]
    packed.graph.initializer.extend(kept)
    packed.graph.node.extend([*nodes, *model.graph.node])
    return packed


def unpack(model: ModelProto) -> ModelProto:
    """Takes `pack` back; the same model where nothing is packed."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    names = [one.name for one in packed_weights(model)]
    if not names:
        return model
    dense = ModelProto()
    dense.CopyFrom(model)
    parts = {f"{name}{part}" for name in names for part in (_VALUES, _PLACES, _SHAPE, _FULL, _ZEROS, _INDEX, _KERNELS)}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in parts]
    weights = [numpy_helper.from_array(_whole(model, name, stored), name) for name in names]
    del dense.graph.initializer[:], dense.graph.node[:]
    dense.graph.initializer.extend([*kept, *weights])
    gone = parts | set(names)
    dense.graph.node.extend(node for node in model.graph.node if node.output[0] not in gone)
    return dense


def packed_weights(model: ModelProto) -> Iterator[PackedWeight]:
    """The packed weights of a graph."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in (one.removesuffix(_VALUES) for one in stored if one.endswith(_VALUES)):
        values, places = (numpy_helper.to_array(stored[name + part]) for part in (_VALUES, _PLACES))
        dense = prod(int(size) for size in numpy_helper.to_array(stored[name + _SHAPE]))
        yield PackedWeight(name, dense * values.itemsize, values.nbytes + places.nbytes)


def _smaller(weight: NDArray[np.generic]) -> _Parts | None:
    """A weight taken apart, if that is smaller than the whole."""
    if weight.nbytes < LEAST_BYTES or np.count_nonzero(weight) == weight.size:
        return None
    exists = np.any(weight.reshape(*weight.shape[:2], -1) != 0, axis=2)
    best = min((_apart(weight, exists, axis) for axis in (0, 1)), key=lambda parts: parts.n_bytes)
    return best if best.n_bytes < weight.nbytes else None


def _apart(weight: NDArray[np.generic], exists: NDArray[np.bool_], axis: int) -> _Parts:
    n = max(1, int(exists.sum(axis=axis).max()))
    # Where a row has fewer than n, zeros of it fill up: they are put where zeros belong.
    first = np.argsort(~exists, axis=axis, kind="stable").take(range(n), axis=axis)
    places = np.sort(first, axis=axis)
    smallest = np.min_scalar_type(weight.shape[axis] - 1)
    kernels = places.reshape(*places.shape, *[1] * (weight.ndim - 2))
    values = np.take_along_axis(weight, kernels, axis=axis).astype(np.float32)
    return _Parts(axis, values, kernels.astype(smallest), weight.shape)


def _whole(model: ModelProto, name: str, stored: dict[str, TensorProto]) -> NDArray[np.float32]:
    """A weight from its parts."""
    values, places, shape = (numpy_helper.to_array(stored[name + part]) for part in (_VALUES, _PLACES, _SHAPE))
    (axis,) = (
        attribute.i
        for node in model.graph.node
        if node.output[0] == name
        for attribute in node.attribute
        if attribute.name == "axis"
    )
    weight = np.zeros(shape, np.float32)
    np.put_along_axis(weight, places.astype(np.int64), values, axis=axis)
    return weight


def _unpacking(name: str, parts: _Parts) -> tuple[list[NodeProto], list[TensorProto]]:
    """The operators that make a weight, and their constants."""
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(parts.values), name + _VALUES),
        numpy_helper.from_array(np.ascontiguousarray(parts.places), name + _PLACES),
        numpy_helper.from_array(np.array(parts.shape, np.int64), name + _SHAPE),
    ]
    nodes = [
        helper.make_node("ConstantOfShape", [name + _SHAPE], [name + _ZEROS]),
        helper.make_node("Cast", [name + _PLACES], [name + _INDEX], to=TensorProto.INT64),
    ]
    index = name + _INDEX
    if parts.values.ndim > 2:
        constants.append(numpy_helper.from_array(np.array(parts.values.shape, np.int64), name + _FULL))
        nodes.append(helper.make_node("Expand", [index, name + _FULL], [name + _KERNELS]))
        index = name + _KERNELS
    nodes.append(helper.make_node("ScatterElements", [name + _ZEROS, index, name + _VALUES], [name], axis=parts.axis))
    return nodes, constants
