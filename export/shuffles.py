"""Channel shuffles in a graph: ``Reshape``, ``Transpose``, ``Reshape`` that deal a group's channels out to all groups.

Between the three operators there is no image, so nothing is cut, observed or named there (arXiv 1707.01083, section
3.1, is where such shuffles come from).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from export.graph import Graph

_IMAGE_RANK = 4


@dataclass(frozen=True)
class Shuffle:
    """One shuffle; channel ``b`` of group ``a`` becomes channel ``b * groups + a``.

    Attributes:
        source: the tensor whose channels are shuffled, ``[n, c, h, w]``.
        inner: the two tensors inside.
        result: the tensor with the channels in their new order.
        groups: before the shuffle; they divide the channels.
        channels: of source and result.
    """

    source: str
    inner: tuple[str, str]
    result: str
    groups: int
    channels: int

    @property
    def order(self) -> NDArray[np.int64]:
        """For each channel of the result the one of the source that it is, ``[channels]``."""
        return np.arange(self.channels).reshape(self.groups, -1).T.reshape(-1)


def shuffles(graph: Graph) -> Iterator[Shuffle]:
    """All of them, in topological order."""
    for node in graph.nodes:
        if node.op_type == "Transpose":
            found = _around(graph, node)
            if found is not None:
                yield found


def inside_shuffles(graph: Graph) -> frozenset[str]:
    """The tensors between the operators of shuffles."""
    return frozenset(name for one in shuffles(graph) for name in one.inner)


def _around(graph: Graph, transpose: NodeProto) -> Shuffle | None:
    """The shuffle that a ``Transpose`` is the middle of."""
    split, turned = transpose.input[0], transpose.output[0]
    before, after = _maker(graph, split), _sole_taker(graph, turned)
    if before is None or after is None or after.op_type != "Reshape" or _sole_taker(graph, split) is None:
        return None
    source, result = before.input[0], after.output[0]
    shape, parts = graph.shapes.get(source, ()), graph.shapes[split]
    if len(shape) != _IMAGE_RANK or graph.shapes[result] != shape or len(parts) < _IMAGE_RANK:
        return None
    n, channels, height, width = shape
    deals = parts[0] == n and parts[1] * parts[2] == channels and prod(parts[3:]) == height * width
    perm = next((list(one.ints) for one in transpose.attribute if one.name == "perm"), None)
    if not deals or perm != [0, 2, 1, *range(3, len(parts))]:
        return None
    return Shuffle(source, (split, turned), result, parts[1], channels)


def _maker(graph: Graph, tensor: str) -> NodeProto | None:
    """The ``Reshape`` that makes a tensor."""
    node = graph.nodes[graph.producer[tensor]] if tensor in graph.producer else None
    return node if node is not None and node.op_type == "Reshape" else None


def _sole_taker(graph: Graph, tensor: str) -> NodeProto | None:
    """The operator that alone takes a tensor."""
    takers = graph.consumers.get(tensor, [])
    return graph.nodes[takers[0]] if len(takers) == 1 and tensor not in graph.outputs else None
