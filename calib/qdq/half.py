"""Which operators of a graph run in half precision (fp16).

TensorRT 10 and later is told by the graph itself in which type an operator computes, so fp16 is a property of the graph
(older ones take the same graph and choose). What an operator may compute in fp16 is read from ONNX's own schemas.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from onnx import NodeProto, TensorProto, defs

from calib.ranges import RangeTable
from export.graph import Graph
from export.opset import opset_of

FP16 = "/fp16"
"""Behind the name of a tensor in half precision."""

LARGEST = float(np.finfo(np.float16).max)
"""What is larger becomes infinite."""

_FLOAT, _HALF = "tensor(float)", "tensor(float16)"
_ACTIVATIONS = ("Clip", "Relu")


class Positions(NamedTuple):
    """Inputs and outputs of an operator that may be fp16 instead of float32."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def half_positions(graph: Graph, node: NodeProto) -> Positions:
    """What of an operator would be fp16; no output where it cannot compute in it.

    An output is fp16 where ONNX ties its type to that of an input that is: so not those of ``Cast`` and its like, whose
    type an attribute says.
    """
    types = _types(node.op_type, node.domain, opset_of(graph.model), len(node.input), len(node.output))
    if types is None or any(one.HasField("g") or one.graphs for one in node.attribute):
        return Positions((), ())
    inputs = tuple(
        i for i, name in enumerate(node.input) if types[0][i] is not None and name and _is_float32(graph, name)
    )
    tied = {types[0][i] for i in inputs}
    outputs = tuple(i for i, name in enumerate(node.output) if name and _is_float32(graph, name))
    if not inputs or not outputs or any(types[1][i] not in tied for i in outputs):
        return Positions((), ())
    return Positions(inputs, outputs)


@cache
def _types(
    op_type: str, domain: str, opset: int, n_inputs: int, n_outputs: int
) -> tuple[tuple[str | None, ...], tuple[str | None, ...]] | None:
    """By input and output, the name of its type where that may be float32 as well as fp16."""
    if not defs.has(op_type, opset, domain):
        return None
    schema = defs.get_schema(op_type, opset, domain)
    both = {one.type_param_str for one in schema.type_constraints if {_FLOAT, _HALF} <= set(one.allowed_type_strs)}

    def names(formal: Sequence[defs.OpSchema.FormalParameter], count: int) -> tuple[str | None, ...]:
        # The last one of a list stands for all that follow.
        return tuple(
            one.type_str if (one := formal[min(i, len(formal) - 1)]).type_str in both else None for i in range(count)
        )

    return names(schema.inputs, n_inputs), names(schema.outputs, n_outputs)


def _is_float32(graph: Graph, name: str) -> bool:
    if name in graph.constants:
        return bool(graph.constants[name].data_type == TensorProto.FLOAT)
    return bool(graph.dtypes[name] == np.float32)


def too_large(graph: Graph, node: NodeProto, table: RangeTable) -> tuple[str, float] | None:
    """The first tensor of an operator that does not fit fp16, and its largest magnitude; ``None`` where all do."""
    for name in (*node.input, *node.output):
        found = _magnitude(graph, name, table)
        if found > LARGEST:
            return name, found
    return None


def _magnitude(graph: Graph, name: str, table: RangeTable) -> float:
    if name in graph.constants:
        values = _finite(graph, name)
        return float(np.abs(values).max(initial=0.0))
    return table.ranges[name].magnitude if name in table.ranges else 0.0


def _finite(graph: Graph, name: str) -> np.ndarray:
    values = graph.constant(name)
    return values[np.isfinite(values)] if values.dtype == np.float32 else np.zeros(0)


def half_regions(
    graph: Graph, nodes: Sequence[NodeProto], int8: Collection[str], weighted: Collection[str], table: RangeTable
) -> frozenset[str]:
    """The float operators of an INT8 graph that run in fp16: every connected region that holds one with weights.

    Elsewhere float operators lie between INT8 ones, take what those give in float32 and hand it to the next
    QuantizeLinear: two conversions would be all that fp16 brought there.

    Args:
        graph: the whole float model.
        nodes: of the edge half, in order.
        int8: operators, by the name of their first output, that take an input through INT8. The activation that is
            part of one on a board stays with it.
        weighted: types of operator that are worth it.
        table: ranges by tensor.

    Returns:
        Operators by the name of their first output.
    """
    held, worth = set(int8), set()
    region: dict[str, set[str]] = {}  # of every operator that may be fp16; those of one region have the same set
    for node in nodes:
        name = node.output[0]
        if name in held:
            continue
        if node.op_type in _ACTIVATIONS and node.input[0] in held and graph.is_fused(node.input[0]):
            held.add(name)
            continue
        if not half_positions(graph, node).outputs or too_large(graph, node, table) is not None:
            continue
        if node.op_type in weighted:
            worth.add(name)
        makers = (graph.nodes[graph.producer[taken]].output[0] for taken in node.input if taken in graph.producer)
        joined = {name}.union(*(region[maker] for maker in makers if maker in region))
        region |= dict.fromkeys(joined, joined)
    return frozenset(name for name, joined in region.items() if joined & worth)
