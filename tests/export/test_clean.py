"""A cleaned graph computes what the raw one computes, in fewer nodes, and its tensors still know their modules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import families
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.clean import Cleaned, clean
from export.exported import ExportRequest
from export.exporter import export_model
from export.inputs import InputRequest
from export.metadata import describe
from export.model import Model, load_model

pytestmark = pytest.mark.usefixtures("quick_exports")

SHAPE = (1, 4, 6, 6)


def model_of(
    nodes: Sequence[NodeProto],
    constants: dict[str, Any] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 18,
    shape: Sequence[int] = SHAPE,
) -> ModelProto:
    """A model of one float input ``x``, whose outputs' shapes are to be inferred."""
    return helper.make_model(
        helper.make_graph(
            list(nodes),
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )


def operators(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def cleaned_and_equal(raw: ModelProto) -> Cleaned:
    """Cleans a model, and compares both in ONNX Runtime."""
    cleaned = clean(raw)
    onnx.checker.check_model(cleaned.model, full_check=True)
    shape = [dim.dim_value for dim in raw.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    expected, actual = (
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
        for model in (raw, cleaned.model)
    )
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert [value.name for value in cleaned.model.graph.output] == [value.name for value in raw.graph.output]
    return cleaned


def norm_constants(channels: int = 4) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {name: random.uniform(0.5, 2, channels).astype(np.float32) for name in ("gamma", "beta", "mean", "variance")}


def norm(taken: str, made: str) -> NodeProto:
    return helper.make_node("BatchNormalization", [taken, "gamma", "beta", "mean", "variance"], [made], epsilon=1e-3)


LAYERS = {
    "conv": (helper.make_node("Conv", ["x", "w"], ["t"], name="/body/conv/Conv"), (4, 4, 3, 3), SHAPE),
    "transposed": (
        helper.make_node("ConvTranspose", ["x", "w"], ["t"], name="/body/up/ConvTranspose"),
        (4, 4, 2, 2),
        SHAPE,
    ),
    "linear": (helper.make_node("Gemm", ["x", "w"], ["t"], name="/body/fc/Gemm", transB=1), (4, 6), (1, 6)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_batch_norm_is_folded_into_the_layer_before_it(layer: str) -> None:
    node, weights, shape = LAYERS[layer]
    constants = {"w": np.random.default_rng(2).normal(size=weights).astype(np.float32), **norm_constants()}
    cleaned = cleaned_and_equal(model_of([node, norm("t", "y")], constants, shape=shape))
    assert operators(cleaned.model) == [node.op_type]
    assert "folded 1 BatchNormalization" in cleaned.changes
    assert cleaned.changes[-1] == "nodes 2 to 1"


@pytest.mark.parametrize("shape", [SHAPE, (1, 4)])
def test_a_batch_norm_that_nothing_can_take_in_becomes_two_operations(shape: tuple[int, ...]) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["t"]), norm("t", "u"), helper.make_node("Relu", ["u"], ["y"])]
    cleaned = cleaned_and_equal(model_of(nodes, norm_constants(), shape=shape))
    assert operators(cleaned.model) == ["Relu", "Mul", "Add", "Relu"]
    assert "BatchNormalization to Mul and Add: 1" in cleaned.changes
    assert not any(change.startswith("folded") for change in cleaned.changes)


def mean(opset: int, axes: Sequence[int], keepdims: int) -> tuple[list[NodeProto], dict[str, Any]]:
    if opset < 18:
        return [helper.make_node("ReduceMean", ["x"], ["y"], axes=list(axes), keepdims=keepdims)], {}
    return [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=keepdims)], {"axes": np.array(axes, np.int64)}


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("axes", [(2, 3), (-1, -2)])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_mean_over_height_and_width_is_a_global_pooling(opset: int, axes: tuple[int, int], keepdims: int) -> None:
    nodes, constants = mean(opset, axes, keepdims)
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="/body/act/Relu"), *nodes]
    nodes[1].input[0], nodes[1].name = "r", "/pool/ReduceMean"
    cleaned = cleaned_and_equal(model_of(nodes, constants, opset=opset))
    assert operators(cleaned.model) == ["Relu", "GlobalAveragePool", *["Squeeze"] * (1 - keepdims)]
    assert "ReduceMean over H,W to GlobalAveragePool: 1" in cleaned.changes
    assert set(cleaned.scopes.values()) == {"body.act", "pool"}
    assert [one.version for one in cleaned.model.opset_import if one.domain == ""] == [opset]


@pytest.mark.parametrize(("axes", "shape"), [((1,), SHAPE), ((2,), SHAPE), ((1, 2, 3), SHAPE), ((1, 2), (1, 4, 6))])
def test_other_means_stay(axes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    nodes, constants = mean(18, axes, 1)
    assert operators(cleaned_and_equal(model_of(nodes, constants, shape=shape)).model) == ["ReduceMean"]


def test_what_does_nothing_is_taken_out_and_names_at_the_ends_stay() -> None:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["a"], kernel_shape=[1, 1], strides=[1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Dropout", ["b"], ["c"]),
        helper.make_node("Identity", ["c"], ["d"]),
        helper.make_node("AveragePool", ["d"], ["y"], kernel_shape=[1, 1]),
        helper.make_node("MaxPool", ["d"], ["z"], kernel_shape=[1, 1], strides=[2, 2]),
    ]
    cleaned = cleaned_and_equal(model_of(nodes, outputs=("y", "z")))
    assert operators(cleaned.model) == ["Relu", "MaxPool"]
    for change in ("removed 1 Identity", "removed 1 Dropout", "removed 1 AveragePool", "removed 1 MaxPool"):
        assert change in cleaned.changes


def test_two_outputs_of_one_tensor_keep_their_names() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Identity", ["y"], ["z"])]
    cleaned = cleaned_and_equal(model_of(nodes, outputs=("y", "z")))
    assert operators(cleaned.model) == ["Relu", "Identity"]


def test_constants_are_computed_and_shapes_are_known() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Constant", [], ["first"], value_ints=[0]),
        helper.make_node("Unsqueeze", ["batch", "first"], ["one"]),
        helper.make_node("Constant", [], ["rest"], value_ints=[-1]),
        helper.make_node("Concat", ["one", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["flat"]),
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Mul", ["flat", "two"], ["y"]),
    ]
    cleaned = cleaned_and_equal(model_of(nodes))
    assert operators(cleaned.model) == ["Reshape", "Mul"]
    assert [dim.dim_value for dim in cleaned.model.graph.output[0].type.tensor_type.shape.dim] == [1, 144]
    assert cleaned.changes == (
        "computed or fused: 1 Concat, 1 Gather, 1 Shape, 1 Unsqueeze",
        "nodes 6 to 2",
    )


def test_the_raw_model_is_left_alone() -> None:
    raw = model_of([helper.make_node("Identity", ["x"], ["t"]), helper.make_node("Relu", ["t"], ["y"])])
    before = raw.SerializeToString()
    clean(raw)
    assert raw.SerializeToString() == before


def test_notes_are_written_once() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])])
    model.metadata_props.add(key="author", value="me")
    describe(model, {"tasks": "{}", "tools": "{}"})
    describe(model, {"tasks": '{"a": []}'})
    assert {one.key: one.value for one in model.metadata_props} == {
        "author": "me", "splitboard.tasks": '{"a": []}', "splitboard.tools": "{}"
    }  # fmt: skip
    assert len(model.metadata_props) == 3


@pytest.fixture(scope="module")
def depths(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Residual blocks whose batch norms are folded, heads at several depths."""
    folder = tmp_path_factory.mktemp("depths")
    torch.save(families.depths().state_dict(), folder / "depths.pt")
    inputs = tuple(InputRequest(name, shape) for name, shape in families.INPUTS["depths"].items())
    source = Path(__file__).parents[1] / "models"
    request = ExportRequest(folder / "depths.pt", "depths", "families:depths", inputs, source_folder=source)
    export_model(request, folder / "model")
    return load_model(folder / "model")


def test_what_a_module_returned_in_torch_is_in_the_scope_of_that_module(depths: Model) -> None:
    net = families.depths()
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    returned: dict[str, np.ndarray[Any, Any]] = {}
    for name, module in net.named_modules():
        module.register_forward_hook(lambda _m, _i, out, name=name: returned.update({name: out}))
    with torch.no_grad():
        net(image)
    graph = ModelProto()
    graph.CopyFrom(depths.graph.model)
    inner = [name for node in graph.graph.node for name in node.output if name not in depths.graph.outputs]
    graph.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    values = dict(zip(depths.graph.outputs + inner, session.run(None, {"image": image.numpy()}), strict=True))
    found = set()
    for name, expected in returned.items():
        if not isinstance(expected, torch.Tensor):  # the model itself returns a dictionary
            continue
        for tensor, value in values.items():
            if value.shape == tuple(expected.shape) and np.allclose(value, expected.numpy(), rtol=1e-4, atol=1e-4):
                scope = depths.info.scopes[tensor]
                assert scope == name or scope.startswith(f"{name}.") or name.startswith(f"{scope}."), (name, scope)
                found.add(name)
    assert {"stem", "blocks.0", "blocks.0.unit", "blocks.3", "heads.coarse", "heads.fine.2"} <= found
    assert depths.info.sequences == tuple(
        name for name, one in net.named_modules() if isinstance(one, (torch.nn.Sequential, torch.nn.ModuleList))
    )


def test_the_changes_are_those_of_the_network(depths: Model) -> None:
    norms = sum(isinstance(one, torch.nn.BatchNorm2d) for one in families.depths().modules())
    assert f"folded {norms} BatchNormalization" in depths.info.changes
    assert "ReduceMean over H,W to GlobalAveragePool: 3" in depths.info.changes
    assert depths.info.changes[-1].endswith(f" to {len(depths.graph.nodes)}")


def test_the_file_itself_says_where_it_comes_from(depths: Model) -> None:
    notes = {one.key: one.value for one in depths.graph.model.metadata_props}
    assert notes["splitboard.checkpoint_sha256"] == depths.info.checkpoint_sha256
    assert notes["splitboard.preprocessing"] == "null"
    assert list(json.loads(notes["splitboard.tasks"])) == ["coarse", "fine", "middle"]
    assert json.loads(notes["splitboard.tools"]) == depths.info.tool_versions
