"""Cuts against graph theory (networkx) and brute force over all edge halves, on random graphs."""

from __future__ import annotations

import networkx as nx
from graphs import made_of, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from export.cuts import (
    MAX_MULTI,
    MAX_TENSORS,
    Cut,
    leaving,
    multi_tensor_cuts,
    place,
    placeable,
    principal_cuts,
    single_tensor_cuts,
)
from export.graph import Graph, members

_CHOICES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=14)
_FEW_CHOICES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=9)


def paths(graph: Graph) -> nx.DiGraph:
    """Tensors and nodes; a path is a way that data takes."""
    found = nx.DiGraph()
    for i, node in enumerate(graph.nodes):
        found.add_edges_from((name, i) for name in node.input)
        found.add_edges_from((i, name) for name in node.output)
    return found


def separates(graph: Graph, tensors: tuple[str, ...]) -> bool:
    """Whether no data gets from a model input to a model output without passing one of the tensors."""
    without = nx.restricted_view(paths(graph), list(tensors), [])
    ends = [(a, b) for a in graph.inputs for b in graph.outputs if a in without and b in without]
    return not any(nx.has_path(without, a, b) for a, b in ends)


@settings(max_examples=300, deadline=None)
@given(_CHOICES)
def test_single_tensor_cuts_are_the_tensors_on_every_path(choices: list[tuple[int, int]]) -> None:
    graph = random_graph(choices)
    cuts = [cut.crossing[0] for cut in single_tensor_cuts(graph)]
    inner = [name for node in graph.nodes for name in node.output if name not in graph.outputs]
    assert set(cuts) == {name for name in inner if separates(graph, (name,))}
    assert len(cuts) == len(set(cuts))
    assert cuts == sorted(cuts, key=lambda name: graph.producer[name])


@settings(max_examples=300, deadline=None)
@given(_CHOICES, st.integers(1, 2), st.integers(1, 3))
def test_every_listed_cut_separates_and_none_is_listed_twice(
    choices: list[tuple[int, int]], n_inputs: int, n_outputs: int
) -> None:
    graph = random_graph(choices, n_inputs, n_outputs)
    cuts = [*single_tensor_cuts(graph), *multi_tensor_cuts(graph)]
    assert len({cut.crossing for cut in cuts}) == len({cut.edge for cut in cuts}) == len(cuts)
    for cut in cuts:
        assert separates(graph, cut.crossing)
        assert 0 < cut.edge < graph.everything
        # Not one tensor too many: each is taken by the server half, or is a task's result.
        server = [graph.nodes[i] for i in members(graph.everything & ~cut.edge)]
        assert set(cut.crossing) <= {name for node in server for name in node.input} | set(graph.outputs)
        assert all(graph.ancestors[i] & ~cut.edge == 0 for i in members(cut.edge))


def halves(graph: Graph) -> set[int]:
    """Every edge half by brute force: all sets of nodes that hold what their nodes need."""
    return {
        edge
        for edge in range(1, graph.everything)
        if all(graph.ancestors[i] & ~edge == 0 for i in members(edge))
    }  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(_FEW_CHOICES, st.integers(1, 2))
def test_no_cut_of_two_tensors_is_missing(choices: list[tuple[int, int]], n_outputs: int) -> None:
    graph = random_graph(choices, n_outputs=n_outputs)
    tensors = [*graph.inputs, *(name for node in graph.nodes for name in node.output)]
    expected = set()
    for edge in halves(graph):
        inside = [name for name in tensors if name in graph.inputs or edge >> graph.producer[name] & 1]
        out = leaving(graph, edge, inside, graph.outputs)
        if len(out) == 2 and not set(out) & set(graph.outputs):
            expected.add(edge)
    listed = {cut.edge for cut in multi_tensor_cuts(graph) if len(cut.crossing) == 2}
    assert len(expected) > MAX_MULTI or listed == expected


@settings(max_examples=200, deadline=None)
@given(_CHOICES)
def test_what_leaves_a_principal_half_is_what_a_full_search_finds(choices: list[tuple[int, int]]) -> None:
    graph = random_graph(choices, n_outputs=2)
    for i, cut in enumerate(principal_cuts(graph)):
        made = [name for j in members(graph.ancestors[i]) for name in graph.nodes[j].output]
        assert set(cut.crossing) == set(leaving(graph, cut.edge, (*graph.inputs, *made), graph.outputs))


def test_an_input_that_skips_the_cut_crosses_with_it() -> None:
    graph = made_of(
        [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Add", ["b", "x"], ["y"]),
        ]
    )
    assert single_tensor_cuts(graph) == []
    assert [cut.crossing for cut in multi_tensor_cuts(graph)] == [("x", "a"), ("x", "b")]


def test_the_smallest_payloads_are_kept() -> None:
    """Two long branches: every pair of their tensors is a cut, far more than are listed."""
    branches = [
        helper.make_node("Relu", [f"{side}{i - 1}" if i else f"x{side}"], [f"{side}{i}"])
        for side in "ab"
        for i in range(20)
    ]
    graph = made_of([*branches, helper.make_node("Add", ["a19", "b19"], ["y"])], ["xa", "xb"])
    cuts = multi_tensor_cuts(graph)
    assert len(cuts) == MAX_MULTI
    assert all(len(cut.crossing) <= MAX_TENSORS for cut in cuts)


def test_skip_connections_and_scales_are_found() -> None:
    """Down, down, down; up with a skip from each: the bottom crosses with all skips."""
    nodes = [
        helper.make_node("Relu", ["x"], ["e0"]),
        helper.make_node("Neg", ["e0"], ["e1"]),
        helper.make_node("Neg", ["e1"], ["e2"]),
        helper.make_node("Neg", ["e2"], ["bottom"]),
        helper.make_node("Add", ["bottom", "e2"], ["d2"]),
        helper.make_node("Add", ["d2", "e1"], ["d1"]),
        helper.make_node("Add", ["d1", "e0"], ["y"]),
    ]
    found = {cut.crossing for cut in multi_tensor_cuts(made_of(nodes))}
    assert {("e0", "e1"), ("e0", "e1", "e2"), ("e0", "e1", "e2", "bottom"), ("e0", "e1", "d2"), ("e0", "d1")} == found


def heads() -> Graph:
    """A backbone of three nodes; task ``early`` leaves after the first, ``late`` and ``last`` after the third."""
    return made_of(
        [
            helper.make_node("Relu", ["x"], ["b0"]),
            helper.make_node("Neg", ["b0"], ["h0"]),
            helper.make_node("Relu", ["b0"], ["b1"]),
            helper.make_node("Neg", ["h0"], ["early"]),
            helper.make_node("Relu", ["b1"], ["b2"]),
            helper.make_node("Neg", ["b2"], ["late"]),
            helper.make_node("Abs", ["b2"], ["last"]),
        ],
        outputs=["early", "late", "last"],
    )


def test_a_head_may_be_placed_where_its_inputs_are() -> None:
    graph = heads()
    by_crossing = {cut.crossing: cut for cut in (*single_tensor_cuts(graph), *multi_tensor_cuts(graph))}
    assert placeable(graph, by_crossing[("b0",)]) == ("early",)
    assert placeable(graph, by_crossing[("b0", "b1")]) == ("early",)
    assert placeable(graph, by_crossing[("b0", "b2")]) == ("early", "late", "last")
    placed = place(graph, by_crossing[("b0", "b1")], ["early"])
    assert placed.crossing == ("b1",)
    assert placed.local == ("early",)
    assert {name for i in members(placed.edge) for name in graph.nodes[i].output} == {"b0", "h0", "b1", "early"}
    placed = place(graph, by_crossing[("b0", "b2")], ["last", "early"])
    assert (placed.crossing, placed.local) == (("b2",), ("early", "last"))


def test_a_single_task_has_no_head_of_its_own() -> None:
    graph = made_of([helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])])
    assert placeable(graph, single_tensor_cuts(graph)[0]) == ()


def test_a_task_output_on_the_way_to_another_can_be_answered_where_it_is() -> None:
    graph = made_of(
        [helper.make_node(kind, [a], [b]) for kind, a, b in (("Relu", "x", "a"), ("Neg", "a", "b"), ("Neg", "b", "y"))],
        outputs=["a", "y"],
    )
    first, second = single_tensor_cuts(graph)[0], multi_tensor_cuts(graph)
    assert first.crossing == ("a",)
    assert "a" in placeable(graph, first)
    assert [cut.crossing for cut in second] == [("a", "b")]
    assert place(graph, second[0], ["a"]) == Cut(second[0].edge, ("b",), ("a",))


def test_a_long_chain_with_skips_is_listed_whole() -> None:
    nodes, previous, before = [], "x", "x"
    for i in range(200):
        taken = [previous, before] if i % 3 == 2 else [previous]
        nodes.append(helper.make_node("Add" if len(taken) == 2 else "Neg", taken, [f"t{i}"]))
        before = previous if i % 3 == 0 else before
        previous = f"t{i}"
    nodes[-1].output[0] = "y"
    graph = made_of(nodes)
    assert {cut.crossing for cut in single_tensor_cuts(graph)} == {
        (name,) for name in graph.producer if name != "y" and separates(graph, (name,))
    }
