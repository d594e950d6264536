"""Split points: where the graph can be cut in two, and what each cut costs on either side."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from export.graph import Graph
from splitboard.contract.bundle import unknown_split
from splitboard.contract.preprocess import Preprocessing

REMOTE = "remote"
LOCAL = "local"


@dataclass(frozen=True)
class SplitPoint:
    """One way to divide the model.

    Attributes:
        id: ``s00`` remote only, ``sNN`` in topological order, the last one local only.
        scope: the module that the cut follows, ``remote`` or ``local`` at the two ends.
        tensor: what crosses, by its name in the graph; ``None`` at the two ends.
        shape: of that tensor; of the source image for remote only; empty for local only.
        fp32_bytes: payload as float32 (uint8 for remote only).
        int8_bytes: payload as int8.
        natural: strictly fewer values than the model's input tensor.
        edge_macs: multiply-accumulates of the edge graph.
        server_macs: of the server graph.
        edge_parameters: constants of the edge graph, in values.
        server_parameters: of the server graph.
    """

    id: str
    scope: str
    tensor: str | None
    shape: tuple[int, ...]
    fp32_bytes: int
    int8_bytes: int
    natural: bool
    edge_macs: int
    server_macs: int
    edge_parameters: int
    server_parameters: int

    @property
    def is_cut(self) -> bool:
        """Whether the model itself is cut (neither remote only nor local only)."""
        return self.tensor is not None


def node_macs(graph: Graph, node: NodeProto) -> int:
    """Multiply-accumulates of one node; only convolutions and matrix products count, as is usual."""
    if node.op_type == "Conv":
        weight = graph.constants[node.input[1]].dims
        return graph.size(node.output[0]) * int(np.prod(weight[1:], dtype=np.int64))
    if node.op_type == "ConvTranspose":
        weight = graph.constants[node.input[1]].dims
        return graph.size(node.input[0]) * int(np.prod(weight[1:], dtype=np.int64))
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return graph.size(node.output[0]) * graph.shapes[node.input[0]][0 if transposed else 1]
    if node.op_type == "MatMul":
        return graph.size(node.output[0]) * graph.shapes[node.input[0]][-1]
    return 0


def _parameters(graph: Graph, nodes: Sequence[int]) -> int:
    """Values in the float constants that these nodes take; scalars such as clip limits left out."""
    used = {name for i in nodes for name in graph.nodes[i].input if name in graph.constants}
    tensors = [graph.constants[name] for name in used]
    return sum(
        int(np.prod(tensor.dims, dtype=np.int64))
        for tensor in tensors
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 0
    )


def single_tensor_cuts(graph: Graph) -> list[str]:
    """Every tensor whose removal separates the graph, in topological order.

    The edge graph of a tensor is everything that it depends on. The tensor is a cut when nothing else leaves that set:
    no other tensor of it, no graph input, no graph output is needed outside.
    """
    everything = (1 << len(graph.nodes)) - 1
    consumer_bits = {name: sum(1 << i for i in users) for name, users in graph.consumers.items()}
    outputs = set(graph.outputs)
    cuts = []
    for i, node in enumerate(graph.nodes):
        edge = graph.ancestors[i]
        server = everything & ~edge
        if server == 0:
            continue
        inside = [graph.nodes[j] for j in range(i + 1) if edge >> j & 1]
        leaving = {
            name
            for member in inside
            for name in member.output
            if name in outputs or consumer_bits.get(name, 0) & server
        }
        leaving |= {name for name in graph.inputs if consumer_bits.get(name, 0) & server}
        if len(leaving) == 1 and leaving <= set(node.output) and not leaving & outputs:
            cuts.append(leaving.pop())
    return cuts


def cut_scope(graph: Graph, scopes: Mapping[str, str], tensor: str) -> str:
    """The outermost module that ends with this tensor, as the user knows the model (``backbone.blocks.4``).

    It is the part of the producing module's path up to and including the first name in which it differs from all
    modules that take the tensor.
    """
    path = scopes.get(tensor, "").split(".")
    consumers = [scopes.get(graph.nodes[i].output[0], "").split(".") for i in graph.consumers[tensor]]
    shared = max(_shared_names(path, other) for other in consumers)
    return ".".join(path[: shared + 1]) or tensor


def _shared_names(one: Sequence[str], other: Sequence[str]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def list_splits(graph: Graph, scopes: Mapping[str, str], preprocessing: Preprocessing | None) -> list[SplitPoint]:
    """All split points of a model: remote only, every single-tensor cut, local only."""
    macs = [node_macs(graph, node) for node in graph.nodes]
    everything = list(range(len(graph.nodes)))
    input_values = graph.size(graph.inputs[0])
    pixels, source = input_values, graph.shapes[graph.inputs[0]]
    if preprocessing is not None:
        pixels = preprocessing.pixel_values
        source = (1, preprocessing.height, preprocessing.width, preprocessing.source_channels)
    total, weights = sum(macs), _parameters(graph, everything)
    found = [SplitPoint("s00", REMOTE, None, source, pixels, pixels, pixels < input_values, 0, total, 0, weights)]
    for number, tensor in enumerate(single_tensor_cuts(graph), 1):
        ancestors = graph.ancestors[graph.producer[tensor]]
        edge = [i for i in everything if ancestors >> i & 1]
        server = [i for i in everything if not ancestors >> i & 1]
        size = graph.size(tensor)
        found.append(
            SplitPoint(
                id=f"s{number:02d}",
                scope=cut_scope(graph, scopes, tensor),
                tensor=tensor,
                shape=graph.shapes[tensor],
                fp32_bytes=4 * size,
                int8_bytes=size,
                natural=size < input_values,
                edge_macs=sum(macs[i] for i in edge),
                server_macs=sum(macs[i] for i in server),
                edge_parameters=_parameters(graph, edge),
                server_parameters=_parameters(graph, server),
            )
        )
    found.append(SplitPoint(f"s{len(found):02d}", LOCAL, None, (), 0, 0, True, total, 0, weights, 0))
    return found


def choose_splits(points: Sequence[SplitPoint], wanted: str) -> list[SplitPoint]:
    """The cuts that a comma-separated list of ids or module scopes names, in topological order; ``all`` for all.

    Raises:
        UserError: an entry names no cut; the nearest id is said.
    """
    cuts = [point for point in points if point.is_cut]
    if wanted == "all":
        return cuts
    chosen = set()
    for entry in (part.strip() for part in wanted.split(",")):
        matches = [point for point in cuts if entry in (point.id, point.scope)]
        if not matches:
            raise unknown_split(entry, [point.id for point in cuts], "model")
        chosen.add(matches[-1].id)
    return [point for point in cuts if point.id in chosen]
