"""Why INT8 is slower: two engines of one split side by side, operator by operator.

Layers of two engines differ, as each precision is fused in its own way. So every layer is put to a weighted operator:
its own, else the one that takes what it makes, else the one whose output it takes. Operators that either engine fused
stay together. A conversion so counts with the operator that it is there for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, FrozenSet, List, Optional, Sequence, Set, Tuple

from runtime_edge.tensorrt.findings import Times
from runtime_edge.tensorrt.graph import Graph
from runtime_edge.tensorrt.inspect import INT8, Layer

_MOSTLY = 0.5
"""Conversions that are so much of the loss are its reason."""

Operators = FrozenSet[str]


@dataclass(frozen=True)
class Row:
    """One operator, or some that were fused, in both engines.

    Attributes:
        operators: names of ONNX nodes; empty for layers that belong to none.
        precision: in the engine that is looked at.
        time_ns: there, with all layers that count with it.
        beside_ns: in the other engine.
        converting_ns: part of ``time_ns`` that only converts.
        reason: why it is slower than beside; empty where it is not.
        remove: tensors whose Q/DQ to leave out.
        keep_float: the same for ``splitboard build --keep-float``.
    """

    operators: Tuple[str, ...]
    precision: str
    time_ns: int
    beside_ns: int
    converting_ns: int
    reason: str
    remove: Tuple[str, ...]
    keep_float: Tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """One of the engines.

    Attributes:
        layers: in its order.
        times: by layer.
        graph: that it was built from.
    """

    layers: Tuple[Layer, ...]
    times: Times
    graph: Graph


def compare(one: Side, other: Side) -> Tuple[Row, ...]:
    """The rows, the greatest loss first.

    Args:
        one: the engine that is looked at, in INT8.
        other: the engine beside it.
    """
    here, there = _owners(one), _owners(other)
    groups = _merged({*here, *there})
    rows = [_row(group, one, _of(group, here), other, _of(group, there)) for group in groups]
    return tuple(sorted(rows, key=lambda row: row.beside_ns - row.time_ns))


def _owners(side: Side) -> Dict[Operators, List[Layer]]:
    """The layers of an engine by the weighted operators that they count with."""
    own = [
        frozenset(
            _plain(name) for name in layer.nodes if not layer.is_conversion and side.graph.nodes[name].is_weighted
        )
        for layer in side.layers
    ]
    found: Dict[Operators, List[Layer]] = {}
    for i, layer in enumerate(side.layers):
        owner = own[i] or _reached(side.layers, own, i, forward=True) or _reached(side.layers, own, i, forward=False)
        found.setdefault(owner, []).append(layer)
    return found


def _reached(layers: Sequence[Layer], own: Sequence[Operators], start: int, *, forward: bool) -> Operators:
    """The nearest operators along the tensors, forward or backward; none where there are none."""
    waiting, seen = [start], {start}
    while waiting:
        i = waiting.pop(0)
        if own[i]:
            return own[i]
        ends = layers[i].outputs if forward else layers[i].inputs
        for j, other in enumerate(layers):
            if j not in seen and set(ends) & set(other.inputs if forward else other.outputs):
                seen.add(j)
                waiting.append(j)
    return frozenset()


def _merged(groups: Set[Operators]) -> List[Operators]:
    """Groups without an operator in common."""
    merged: List[Operators] = []
    for group in sorted(groups, key=sorted):
        meeting = [other for other in merged if other & group]
        merged = [other for other in merged if not other & group or not group]
        merged.append(group.union(*meeting))
    return list(dict.fromkeys(merged))


def _of(group: Operators, owners: Dict[Operators, List[Layer]]) -> List[Layer]:
    return [
        layer for owner, layers in owners.items() if owner <= group and bool(owner) == bool(group) for layer in layers
    ]


def _row(group: Operators, one: Side, here: List[Layer], other: Side, there: List[Layer]) -> Row:
    time_ns = sum(one.times.get(layer.name, 0) for layer in here)
    beside_ns = sum(other.times.get(layer.name, 0) for layer in there)
    converting_ns = sum(one.times.get(layer.name, 0) for layer in here if layer.is_conversion)
    working = [layer for layer in here if not layer.is_conversion and group & {_plain(name) for name in layer.nodes}]
    precision = "+".join(sorted({layer.precision for layer in working})) or "none"
    asked = [node for node in one.graph.int8 if _plain(node.name) in group]
    reason: Optional[str] = None
    if time_ns > beside_ns and asked:
        reason = _reason(precision, time_ns - beside_ns, converting_ns)
    return Row(
        operators=tuple(sorted(group)),
        precision=precision,
        time_ns=time_ns,
        beside_ns=beside_ns,
        converting_ns=converting_ns,
        reason=reason or "",
        # The first operand is the activation; the other are weights, whose Q/DQ goes with it.
        remove=tuple(dict.fromkeys(_plain(one.graph.pairs(node)[0]) for node in asked)) if reason else (),
        keep_float=tuple(_plain(node.outputs[0]) for node in asked) if reason else (),
    )


def _reason(precision: str, loss_ns: int, converting_ns: int) -> str:
    if precision != INT8:
        return f"asked for INT8, runs in {precision}"
    if converting_ns >= _MOSTLY * loss_ns:
        return f"{converting_ns / 1e3:.1f} us go into conversions around it"
    return "its INT8 kernel is the slower one"


def _plain(name: str) -> str:
    """As the float model calls a tensor, or an operator that goes by one.

    What leaves an edge graph in INT8 is called ``TENSOR/real`` before that, and in half precision ``TENSOR/fp16``.
    """
    while name.endswith(("/fp16", "/real")):
        name = name[: -len("/fp16")]
    return name
