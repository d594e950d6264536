"""The rule for blocks, on graphs whose scopes are written by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from graphs import made_of
from onnx import NodeProto, helper

from export.blocks import block_outputs, find_blocks
from export.graph import Graph

_IMAGE = (1, 4, 8, 8)


class Net:
    """Writes a graph layer by layer; every layer is (operator, module scope) and follows the one before."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.scopes: dict[str, str] = {}
        self.constants: dict[str, np.ndarray] = {}

    def add(self, kind: str, scope: str, *inputs: str, weight: str | None = None) -> str:
        """Adds an operator; ``Conv`` gets a 1x1 weight of its own, or one that has a name."""
        taken = list(inputs) or [self.nodes[-1].output[0] if self.nodes else "x"]
        made = f"t{len(self.nodes)}"
        attributes = {}
        if kind == "Conv":
            name = weight or f"w{len(self.nodes)}"
            self.constants[name] = np.ones((4, 4, 1, 1), np.float32)
            taken.append(name)
            attributes = {"kernel_shape": [1, 1]}
        if kind == "Mul" and len(taken) == 1:  # a norm that was not folded
            self.constants[f"scale{len(self.nodes)}"] = np.ones((1, 4, 1, 1), np.float32)
            taken.append(f"scale{len(self.nodes)}")
        if kind == "MaxPool":
            attributes = {"kernel_shape": [2, 2], "strides": [1, 1], "pads": [0, 0, 1, 1]}
        self.nodes.append(helper.make_node(kind, taken, [made], **attributes))
        self.scopes[made] = scope
        return made

    def chain(self, *layers: tuple[str, str]) -> Net:
        for kind, scope in layers:
            self.add(kind, scope)
        return self

    def graph(self) -> Graph:
        """The graph; the last tensor is its output ``y``."""
        last = self.nodes[-1].output[0]
        self.nodes[-1].output[0] = "y"
        self.scopes["y"] = self.scopes.pop(last)
        return made_of(self.nodes, constants=self.constants, shape=_IMAGE)


def blocks(net: Net, sequences: Sequence[str]) -> list[str]:
    return find_blocks(net.graph(), net.scopes, sequences)


def test_elements_with_two_weighted_layers_are_blocks_and_norms_are_no_weighted_layers() -> None:
    net = Net().chain(
        ("Conv", "features.0.0"),
        ("Mul", "features.0.1"),
        ("Conv", "features.1.conv1"),
        ("Conv", "features.1.conv2"),
        ("Conv", "features.2.conv1"),
        ("Conv", "features.2.conv2"),
        ("Conv", "head"),
    )
    assert blocks(net, ["features", "features.0"]) == ["features.1", "features.2"]


def test_of_nested_ones_the_outermost_that_holds_no_two_disjoint_ones_is_the_block() -> None:
    """Stage 1 has one block of convolutions with squeeze and excite inside, stage 2 has two."""
    stages = []
    for block in ("stages.1.0", "stages.2.0", "stages.2.1"):
        stages += [
            ("Conv", f"{block}.block.0.0"),
            ("Conv", f"{block}.block.1.fc1"),
            ("Conv", f"{block}.block.1.fc2"),
            ("Conv", f"{block}.block.2.0"),
        ]
    net = Net().chain(("Conv", "stages.0"), *stages, ("Conv", "head"))
    sequences = ["stages", "stages.1", "stages.2", *(f"{b}.block" for b in ("stages.1.0", "stages.2.0", "stages.2.1"))]
    assert blocks(net, sequences) == ["stages.1", "stages.2.0", "stages.2.1"]


def test_a_layer_that_is_called_twice_is_one_weighted_layer() -> None:
    net = Net()
    net.add("Conv", "layers.0.conv", weight="shared")
    net.add("Conv", "layers.0.conv", weight="shared")
    net.add("Conv", "layers.1.a")
    net.add("Conv", "layers.1.b")
    net.add("Conv", "head")
    assert blocks(net, ["layers"]) == ["layers.1"]


def test_elements_of_the_model_itself_count_where_it_is_a_sequence() -> None:
    net = Net().chain(("Conv", "0.a"), ("Conv", "0.b"), ("Conv", "1.a"), ("Conv", "1.b"), ("Relu", "2"))
    assert blocks(net, [""]) == ["0", "1"]


def test_the_output_is_taken_after_the_residual_add_inside_the_block() -> None:
    net = Net()
    stem = net.add("Relu", "stem")
    net.add("Conv", "layers.0.a")
    net.add("Conv", "layers.0.b")
    added = net.add("Add", "layers.0", net.nodes[-1].output[0], stem)
    net.add("Relu", "head")
    assert block_outputs(net.graph(), net.scopes, ["layers"]) == {added: "layers.0"}


def test_the_output_is_taken_after_a_residual_add_that_the_caller_makes() -> None:
    net = Net()
    stem = net.add("Relu", "stem")
    net.add("Conv", "layers.0.a")
    net.add("Conv", "layers.0.b")
    added = net.add("Add", "", net.nodes[-1].output[0], stem)
    net.add("Relu", "head")
    assert set(block_outputs(net.graph(), net.scopes, ["layers"])) == {added}


def test_an_add_with_something_else_belongs_to_the_caller() -> None:
    net = Net()
    stem = net.add("Relu", "stem")
    other = net.add("Conv", "other", stem)
    net.add("Conv", "layers.0.a", stem)
    inner = net.add("Conv", "layers.0.b")
    net.add("Add", "", inner, other)
    net.add("Relu", "head")
    assert set(block_outputs(net.graph(), net.scopes, ["layers"])) == {inner}


def test_a_task_head_is_no_block() -> None:
    net = Net().chain(("Conv", "features.0"), ("Relu", "features.1"), ("Conv", "heads.0.0"), ("Conv", "heads.0.1"))
    assert find_blocks(net.graph(), net.scopes, ["features", "heads"]) == ["heads.0"]
    net = Net().chain(("Conv", "features.0"), ("Relu", "features.1"), ("Conv", "heads.0.0"), ("Conv", "heads.0.1"))
    assert set(block_outputs(net.graph(), net.scopes, ["features", "heads"])) == {"t1"}


def test_a_head_that_ends_in_a_softmax_is_no_block_either() -> None:
    net = Net().chain(("Conv", "features.0"), ("Relu", "features.1"))
    for number in range(2):
        hidden = net.add("Conv", f"heads.{number}.0", "t1")
        logits = net.add("Conv", f"heads.{number}.1", hidden)
        net.add("Softmax", "", logits)
    tasks = [node.output[0] for node in net.nodes if node.op_type == "Softmax"]
    graph = made_of(net.nodes, constants=net.constants, shape=_IMAGE, outputs=tasks)
    assert find_blocks(graph, net.scopes, ["features", "heads"]) == ["heads.0", "heads.1"]
    assert set(block_outputs(graph, net.scopes, ["features", "heads"])) == {"t1"}


def test_blocks_of_networks_that_share_nothing_are_blocks() -> None:
    net = Net()
    for tower in "ab":
        first = net.add("Conv", f"{tower}.0.conv1", "x")
        net.add("Conv", f"{tower}.0.conv2", first)
        net.add("Relu", f"{tower}.1")
    tasks = [node.output[0] for node in net.nodes if node.op_type == "Relu"]
    graph = made_of(net.nodes, constants=net.constants, shape=_IMAGE, outputs=tasks)
    assert set(block_outputs(graph, net.scopes, ["a", "b"])) == {"t1", "t4"}


@pytest.mark.parametrize("pool", ["MaxPool", "GlobalAveragePool"])
def test_without_blocks_activations_and_poolings_of_the_convolutional_part_count(pool: str) -> None:
    """Behind the last convolution those of the same sequence; not the pool before the classifier."""
    net = Net().chain(
        ("Conv", "features.0"),
        ("Relu", "features.1"),
        ("Conv", "features.2"),
        ("Relu", "features.3"),
        ("MaxPool", "features.4"),
        (pool, "avgpool"),
        ("Relu", "classifier.1"),
        ("Neg", "classifier.2"),
    )
    assert set(block_outputs(net.graph(), net.scopes, ["features", "classifier"])) == {"t1", "t3", "t4"}


def test_an_activation_that_was_exported_in_parts_counts_once() -> None:
    net = Net()
    conv = net.add("Conv", "features.0")
    gate = net.add("Sigmoid", "features.1")
    silu = net.add("Mul", "features.1", conv, gate)
    net.add("Conv", "features.2")
    last = net.add("Relu", "features.3")
    net.add("Neg", "head")
    found = set(block_outputs(net.graph(), net.scopes, ["features"]))
    assert {silu, last} <= found <= {gate, silu, last}
