"""Split points against graph theory (networkx), and their costs against torch's own counters."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode

from export.graph import Graph
from export.model import Model, load_model
from export.splits import SplitPoint, choose_splits, cut_scope, list_splits, single_tensor_cuts
from splitboard.contract.errors import UserError


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def points(model: Model) -> list[SplitPoint]:
    return list_splits(model.graph, model.info.scopes, model.info.preprocessing)


def random_graph(choices: list[tuple[int, int]]) -> Graph:
    """A graph of Adds and Relus: node i takes two earlier tensors; what nobody takes is added up into the output."""
    names, nodes, used = ["x"], [], set()
    for i, picks in enumerate(choices):
        inputs = [names[pick % len(names)] for pick in picks]
        kind = "Relu" if inputs[0] == inputs[1] else "Add"
        nodes.append(helper.make_node(kind, inputs[: 1 if kind == "Relu" else 2], [f"t{i}"]))
        used.update(inputs)
        names.append(f"t{i}")
    loose = [name for name in names if name not in used]
    nodes.append(helper.make_node("Sum", loose, ["y"]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    made = helper.make_model(helper.make_graph(nodes, "random", values[:1], values[1:]))
    onnx.checker.check_model(made)
    return Graph(made)


def tensors_on_every_path(graph: Graph) -> set[str]:
    """By brute force: without the tensor no path leads from the input to the output."""
    paths = nx.DiGraph()
    for i, node in enumerate(graph.nodes):
        paths.add_edges_from((name, i) for name in node.input)
        paths.add_edges_from((i, name) for name in node.output)
    inner = [name for node in graph.nodes for name in node.output if name != "y"]
    return {t for t in inner if not nx.has_path(nx.restricted_view(paths, [t], []), "x", "y")}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=14))
def test_single_tensor_cuts_are_the_tensors_on_every_path(choices: list[tuple[int, int]]) -> None:
    graph = random_graph(choices)
    cuts = single_tensor_cuts(graph)
    assert set(cuts) == tensors_on_every_path(graph)
    assert len(cuts) == len(set(cuts))
    assert cuts == sorted(cuts, key=lambda name: graph.producer[name])


def test_an_input_that_skips_the_cut_forbids_it() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["b", "x"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    assert single_tensor_cuts(Graph(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:])))) == []


def test_ids_scopes_and_ends(points: list[SplitPoint]) -> None:
    assert [point.id for point in points] == [f"s{i:02d}" for i in range(len(points))]
    assert (points[0].scope, points[-1].scope) == ("remote", "local")
    scopes = [point.scope for point in points]
    for module in ("stem", "blocks.0", "blocks.1", "blocks"):
        assert module in scopes
    assert scopes.index("blocks.0") < scopes.index("blocks.1") < scopes.index("blocks")


def test_costs_are_torchs(model: Model, points: list[SplitPoint]) -> None:
    import tiny  # type: ignore[import-not-found, unused-ignore]

    net = tiny.make().eval()
    image = torch.zeros(1, 3, 32, 32)
    with FlopCounterMode(display=False) as whole:
        net(image)
    with FlopCounterMode(display=False) as edge:
        net.blocks[:2](net.stem(image))
    macs = whole.get_total_flops() // 2
    cut = next(point for point in points if point.scope == "blocks.1")
    assert cut.edge_macs == edge.get_total_flops() // 2
    assert all(point.edge_macs + point.server_macs == macs for point in points)
    # Batch norm is folded: per channel its two trained and two running values become the convolution's bias.
    folded = sum(m.num_features for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)) * 2
    total = sum(p.numel() for p in net.parameters()) - folded
    unbiased = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.bias is not None]
    assert unbiased  # the tiny net's convolutions have biases of their own, so folding adds none
    assert points[-1].edge_parameters == total == points[0].server_parameters
    assert all(point.edge_parameters + point.server_parameters == total for point in points)


def test_bytes_and_natural_bottlenecks(points: list[SplitPoint]) -> None:
    for point in points[1:-1]:
        values = int(np.prod(point.shape))
        assert (point.fp32_bytes, point.int8_bytes) == (4 * values, values)
        assert point.natural == (values < 3 * 32 * 32)
    assert points[0].int8_bytes == 32 * 32
    assert points[-1].int8_bytes == 0


def test_splits_are_chosen_by_id_or_scope_in_order(points: list[SplitPoint]) -> None:
    by_id = choose_splits(points, "s05, s03")
    assert [point.id for point in by_id] == ["s03", "s05"]
    assert choose_splits(points, "blocks.1,blocks.0") == by_id
    assert choose_splits(points, "all") == points[1:-1]


@pytest.mark.parametrize("wanted", ["s77", "blocks.9", "s00", "local", ""])
def test_an_unknown_split_is_refused(points: list[SplitPoint], wanted: str) -> None:
    with pytest.raises(UserError) as error:
        choose_splits(points, wanted)
    assert f'"{wanted}"' in error.value.message
    assert points[1].id in error.value.tries[-1]


def test_the_scope_of_a_cut_is_the_outermost_module_that_ends_there() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = Graph(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:])))
    assert cut_scope(graph, {"a": "net.blocks.4.project.1", "y": "net.blocks.5.expand"}, "a") == "net.blocks.4"
    assert cut_scope(graph, {"a": "net.blocks.4.project.1", "y": "net.blocks.4.project.2"}, "a") == (
        "net.blocks.4.project.1"
    )
    assert cut_scope(graph, {"a": "net.final", "y": "head"}, "a") == "net"
