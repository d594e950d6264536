"""Where a graph can be cut in two: every single-tensor cut, and multi-tensor cuts within bounds.

An edge half is a set of nodes that holds, with a node, everything that the node needs. What *leaves* it is every
tensor of it (or of the model's inputs) that is needed outside, and every task output inside. Those tensors are the
cut, and the rest of the nodes is the server half.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from export.graph import Graph, NodeSet, members
from export.shuffles import inside_shuffles

MAX_TENSORS = 8
"""No multi-tensor cut with more tensors is listed: each is a tensor to name, quantise and send."""

MAX_MULTI = 64
"""Of all multi-tensor cuts found, so many are listed: those with the smallest payloads."""


@dataclass(frozen=True)
class Cut:
    """A division of the graph.

    Attributes:
        edge: the nodes on the edge; the others are the server's.
        crossing: what leaves the edge half, in topological order; the model's inputs first.
        local: tasks that the edge answers, in the order of the model's outputs.
    """

    edge: NodeSet
    crossing: tuple[str, ...]
    local: tuple[str, ...] = ()


def leaving(graph: Graph, edge: NodeSet, candidates: Iterable[str], outputs: Iterable[str]) -> tuple[str, ...]:
    """Which of the candidates leave an edge half.

    Args:
        graph: the whole model.
        edge: the nodes on the edge.
        candidates: tensors to look at: model inputs and outputs of edge nodes.
        outputs: task outputs that must come out of the server half.
    """
    wanted, none = set(outputs), 0
    return tuple(name for name in candidates if name in wanted or graph.consumer_set.get(name, none) & ~edge)


def principal_cuts(graph: Graph) -> list[Cut]:
    """Per node, the smallest edge half that holds it, and all that leaves it.

    What leaves the half of a node has left the half of one of the node's own inputs, or is made by the node itself. So
    one walk over the graph finds all of them.
    """
    cuts: list[Cut] = []
    for i, node in enumerate(graph.nodes):
        sources = [cuts[graph.producer[name]].crossing for name in node.input if name in graph.producer]
        candidates = dict.fromkeys(itertools.chain(graph.inputs, *sources, (name for name in node.output if name)))
        edge = graph.ancestors[i]
        cuts.append(Cut(edge, _in_order(graph, leaving(graph, edge, candidates, graph.outputs))))
    return cuts


def _in_order(graph: Graph, tensors: Iterable[str]) -> tuple[str, ...]:
    inputs = {name: position - len(graph.inputs) for position, name in enumerate(graph.inputs)}
    return tuple(sorted(tensors, key=lambda name: (graph.producer.get(name, inputs.get(name, 0)), name)))


def _ends(graph: Graph) -> set[str]:
    """Task outputs that nobody takes: the ends of heads. What holds one is a placement of a head, not a cut."""
    return {name for name in graph.outputs if not graph.consumer_set.get(name)}


def single_tensor_cuts(graph: Graph) -> list[Cut]:
    """Every tensor whose removal separates the graph, in topological order; none inside of a channel shuffle."""
    ends = _ends(graph) | inside_shuffles(graph)
    return [
        cut
        for node, cut in zip(graph.nodes, principal_cuts(graph), strict=True)
        if len(cut.crossing) == 1 and cut.crossing[0] in node.output and cut.crossing[0] not in ends
    ]


def multi_tensor_cuts(graph: Graph) -> list[Cut]:
    """Cuts of two to `MAX_TENSORS` tensors, the `MAX_MULTI` with the smallest payloads, in topological order.

    Looked at are the half of every node, of every pair of nodes that do not depend on one another, every beginning of
    the graph in topological order, and every beginning by depth. That finds all cuts of two tensors, and of more
    tensors those that models have: skip connections, several scales, heads that leave at different depths.
    """
    ends = _ends(graph) | inside_shuffles(graph)
    principal = principal_cuts(graph)
    found: dict[NodeSet, Cut] = {}
    for cut in itertools.chain(principal, _pairs(graph, principal), _prefixes(graph), _levels(graph)):
        if 2 <= len(cut.crossing) <= MAX_TENSORS and not ends.intersection(cut.crossing):
            found.setdefault(cut.edge, cut)
    ranked = sorted(found.values(), key=lambda cut: (payload_bytes(graph, cut), cut.edge))
    return sorted(ranked[:MAX_MULTI], key=lambda cut: (cut.edge.bit_count(), cut.edge))


def payload_bytes(graph: Graph, cut: Cut) -> int:
    """Bytes that cross, real numbers as INT8."""
    return sum(graph.size(name) if graph.is_float(name) else graph.n_bytes(name) for name in cut.crossing)


def _pairs(graph: Graph, principal: Sequence[Cut]) -> Iterable[Cut]:
    """The joint halves of two nodes, neither of which needs the other."""
    small = [i for i, cut in enumerate(principal) if len(cut.crossing) <= 2 * MAX_TENSORS]
    for position, i in enumerate(small):
        for j in small[position + 1 :]:
            if not graph.ancestors[j] >> i & 1:
                edge = graph.ancestors[i] | graph.ancestors[j]
                candidates = dict.fromkeys((*principal[i].crossing, *principal[j].crossing))
                yield Cut(edge, _in_order(graph, leaving(graph, edge, candidates, graph.outputs)))


def _prefixes(graph: Graph) -> Iterable[Cut]:
    """The first so many nodes in topological order, for every number."""
    edge, alive = 0, tuple(graph.inputs)
    for i, node in enumerate(graph.nodes):
        edge |= 1 << i
        alive = leaving(graph, edge, (*alive, *(name for name in node.output if name)), graph.outputs)
        yield Cut(edge, alive)


def _levels(graph: Graph) -> Iterable[Cut]:
    """All nodes up to a depth (longest path from an input), for every depth."""
    depth: list[int] = []
    for node in graph.nodes:
        depth.append(1 + max((depth[graph.producer[name]] for name in node.input if name in graph.producer), default=0))
    edge, alive = 0, tuple(graph.inputs)
    for level in range(1, max(depth, default=0) + 1):
        new = [i for i, own in enumerate(depth) if own == level]
        edge |= sum(1 << i for i in new)
        made = [name for i in new for name in graph.nodes[i].output if name]
        alive = leaving(graph, edge, (*alive, *made), graph.outputs)
        yield Cut(edge, _in_order(graph, alive))


def head(graph: Graph, task: str) -> NodeSet:
    """The task's own branch: what it needs and no other task does."""
    others = [output for output in graph.outputs if output != task]
    return graph.needed([task]) & ~graph.needed(others)


def placeable(graph: Graph, cut: Cut) -> tuple[str, ...]:
    """Tasks whose heads may run on the edge at this cut: everything that they take is there."""
    return tuple(task for task in graph.outputs if _at_hand(graph, cut.edge, task))


def _at_hand(graph: Graph, edge: NodeSet, task: str) -> bool:
    if len(graph.outputs) < 2:
        return False
    return graph.needed([task]) & ~head(graph, task) & ~edge == 0 and bool(edge & graph.needed([task]))


def place(graph: Graph, cut: Cut, tasks: Sequence[str]) -> Cut:
    """Moves the heads of some tasks to the edge.

    Args:
        graph: the whole model.
        cut: a cut with all heads on the server.
        tasks: some, not all, of `placeable`.
    """
    edge = cut.edge
    for task in tasks:
        edge |= head(graph, task)
    remote = [output for output in graph.outputs if output not in tasks]
    made = (name for i in members(edge) for name in graph.nodes[i].output if name)
    crossing = leaving(graph, edge, (*graph.inputs, *made), remote)
    return Cut(edge, _in_order(graph, crossing), tuple(task for task in graph.outputs if task in tasks))
