"""Channel shuffles and grouped layers on their way to the edge, against torch and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import onnx
import pytest
import sparse_nets
import torch
from ai_edge_litert.tools import flatbuffer_utils
from onnx import ModelProto, TensorProto, helper, numpy_helper
from sparse_graphs import exported
from torch import nn
from torch.nn import functional as F

from calib.artefact import count_operators
from export.costs import Costs
from export.cuts import multi_tensor_cuts, single_tensor_cuts
from export.edge_form import edge_form
from export.graph import Graph
from export.reference import reference_session
from export.replay import Replay, shared_constants
from export.shuffles import inside_shuffles, shuffles
from export.tflite import convert, onnx_name
from splitboard.zoo import networks
from splitboard.zoo.multitask import ExitAt
from splitboard.zoo.networks import Network
from splitboard.zoo.sparsity import Sparsity


@pytest.fixture(scope="module")
def net() -> nn.Module:
    made: nn.Module = sparse_nets.grouped()
    return made


@pytest.fixture(scope="module")
def graph(net: nn.Module) -> Graph:
    return exported(net)


def shuffle_model(
    parts: Sequence[int], perm: Sequence[int], channels: int = 12, back: Sequence[int] = (1, 12, 4, 6)
) -> ModelProto:
    nodes = [
        helper.make_node("Relu", ["image"], ["x"]),
        helper.make_node("Reshape", ["x", "parts"], ["split"]),
        helper.make_node("Transpose", ["split"], ["turned"], perm=list(perm)),
        helper.make_node("Reshape", ["turned", "back"], ["y"]),
        helper.make_node("Relu", ["y"], ["out"]),
    ]
    shapes = {"parts": parts, "back": back}
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, channels, 4, 6])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, list(back))],
        [numpy_helper.from_array(np.array(shape, np.int64), name) for name, shape in shapes.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize(("parts", "perm"), [((1, 4, 3, 4, 6), (0, 2, 1, 3, 4)), ((1, 4, 3, 24), (0, 2, 1, 3))])
def test_a_shuffle_is_found_in_either_form(parts: Sequence[int], perm: Sequence[int]) -> None:
    graph = Graph(shuffle_model(parts, perm))
    (found,) = shuffles(graph)
    assert (found.source, found.inner, found.result, found.groups) == ("x", ("split", "turned"), "y", 4)
    x = torch.randn(1, 12, 4, 6)
    torch.testing.assert_close(x[:, torch.from_numpy(found.order)], F.channel_shuffle(x, 4))
    image = x.abs()
    torch.testing.assert_close(Replay(graph, ["y"], shared_constants(graph))(image), F.channel_shuffle(image, 4))


@pytest.mark.parametrize(
    ("parts", "perm", "back"),
    [
        ((1, 4, 3, 4, 6), (0, 2, 1, 4, 3), (1, 12, 4, 6)),  # turns the image as well
        ((1, 4, 3, 4, 6), (0, 1, 2, 3, 4), (1, 12, 4, 6)),
        ((1, 4, 3, 4, 6), (0, 2, 1, 3, 4), (1, 12, 6, 4)),
        ((1, 4, 6, 12), (0, 2, 1, 3), (1, 12, 4, 6)),  # takes the channels apart together with the rows
    ],
)
def test_what_is_no_shuffle(parts: Sequence[int], perm: Sequence[int], back: Sequence[int]) -> None:
    assert list(shuffles(Graph(shuffle_model(parts, perm, back=back)))) == []


def test_export_keeps_what_torch_computes(net: nn.Module, graph: Graph) -> None:
    image = torch.randn(1, 3, 32, 32)
    found = reference_session(graph.model).run(graph.outputs, {"image": image.numpy()})
    for name, value in zip(graph.outputs, found, strict=True):
        np.testing.assert_allclose(value, net(image)[name].detach().numpy(), atol=1e-5)


def test_a_block_behind_a_flattened_map_is_one_convolution_of_it(graph: Graph) -> None:
    """No flattening, so no cut and no transposition there."""
    convolutions = [node for node in graph.nodes if node.op_type == "Conv"]
    (taken,) = (node.input[0] for node in convolutions if tuple(graph.constants[node.input[1]].dims) == (32, 8, 4, 4))
    assert graph.shapes[taken] == (1, 32, 4, 4)
    assert "Flatten" not in {node.op_type for node in graph.nodes}


def test_costs_count_what_exists(net: nn.Module, graph: Graph) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, 32, 32))
    costs = Costs(graph)
    assert 2 * costs.macs(graph.everything) == counter.get_total_flops()
    assert costs.parameters(graph.everything) == sum(
        int(np.prod(one.dims)) for one in graph.constants.values() if one.data_type == TensorProto.FLOAT and one.dims
    )


def test_no_cut_goes_through_a_shuffle(graph: Graph) -> None:
    inside = inside_shuffles(graph)
    assert len(inside) == 6
    cuts = [*single_tensor_cuts(graph), *multi_tensor_cuts(graph)]
    assert cuts
    assert not inside & {name for cut in cuts for name in cut.crossing}


def test_the_file_has_one_form_of_shuffle_and_no_other_transposition(graph: Graph) -> None:
    """RESHAPE, TRANSPOSE, RESHAPE; each tensor has the name of its values, shown on an image of its own."""
    random = np.random.default_rng(0)
    samples = [random.normal(size=(1, 3, 32, 32)).astype(np.float32) for _ in range(2)]
    names = [name for name in graph.producer if name not in inside_shuffles(graph)]
    content = convert(graph, {"local": graph.outputs}, samples, names).content
    file = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    (subgraph,) = file.subgraphs
    kinds = [str(flatbuffer_utils.opcode_to_name(file, one.opcodeIndex)) for one in subgraph.operators]
    assert kinds.count("TRANSPOSE") == 3
    assert kinds.count("RESHAPE") == 6
    made = {
        onnx_name(subgraph.tensors[one.outputs[0]].name.decode())
        for one, kind in zip(subgraph.operators, kinds, strict=True)
        if kind == "TRANSPOSE"
    }
    assert made == {one.result for one in shuffles(graph)}
    assert all(len(subgraph.tensors[one.outputs[0]].shape) <= 4 for one in subgraph.operators)


def test_every_tensor_of_the_file_has_the_values_of_its_name(graph: Graph) -> None:
    assert rightly_named(graph) >= 9  # of each of the three shuffles: what goes in, twice, and what comes out, twice


@pytest.fixture(scope="module")
def mobile() -> Graph:
    """MobileNetV3-small: where a block ends without activation, its output is added, pooled for exits, and shuffled."""
    classes, sparsity = (("shape", 2), ("colour", 3)), Sparsity(Fraction(1, 8), Fraction(1, 8))
    network = Network("mobilenet-v3-small", classes, 32, exits=(ExitAt("3"), ExitAt("8")), sparsity=sparsity)
    torch.manual_seed(0)
    net = networks.make(network).eval()
    return edge_form(exported(net, [one.name for one in net.outputs]))


def test_a_cut_through_what_is_added_pooled_and_shuffled_takes_no_transposition(mobile: Graph) -> None:
    samples = [np.random.default_rng(2).normal(size=(1, 3, 32, 32)).astype(np.float32)]
    names = [name for name in mobile.producer if name not in inside_shuffles(mobile)]
    added = next(one.source for one in shuffles(mobile) if mobile.nodes[mobile.producer[one.source]].op_type == "Add")
    content = convert(mobile, {"local": mobile.outputs, "cut": [added, *mobile.outputs]}, samples, names).content
    operators = count_operators(content)["cut"]
    assert sum(n for kind, n in operators.items() if kind.startswith("TRANSPOSE")) == len(list(shuffles(mobile)))
    assert rightly_named(mobile) >= 3 * len(list(shuffles(mobile)))


def rightly_named(graph: Graph) -> int:
    """Asserts that every tensor of the file has the values of its name; returns how many are of shuffles."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    random = np.random.default_rng(1)
    samples = [random.normal(size=(1, 3, 32, 32)).astype(np.float32) for _ in range(3)]
    names = [name for name in graph.producer if name not in inside_shuffles(graph)]
    content = convert(graph, {"local": graph.outputs}, samples[:2], names).content
    file = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    interpreter = Interpreter(
        model_content=content,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    runner = interpreter.get_signature_runner("local")
    runner(image=np.ascontiguousarray(samples[2].transpose(0, 2, 3, 1)))
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    expected = dict(zip(names, reference_session(model).run(names, {"image": samples[2]}), strict=True))
    (subgraph,) = file.subgraphs
    dealt = {one.source for one in shuffles(graph)}
    checked = 0
    for operator in subgraph.operators:
        tensor = subgraph.tensors[operator.outputs[0]]
        name = onnx_name(tensor.name.decode())
        if name not in expected or str(flatbuffer_utils.opcode_to_name(file, operator.opcodeIndex)) == "PAD":
            continue
        value = expected[name].transpose(0, 2, 3, 1) if expected[name].ndim == 4 else expected[name]
        np.testing.assert_allclose(interpreter.get_tensor(operator.outputs[0]).ravel(), value.ravel(), atol=1e-4)
        checked += name in dealt or name in {one.result for one in shuffles(graph)}
    return checked
