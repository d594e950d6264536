"""Both halves together are the whole, on floats, on the wire's INT8 and from pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import synthetic_images
from onnx import numpy_helper

from export.checkpoint import _parity
from export.cut import cut, remote_graph, wire_server_graph
from export.graph import Graph
from export.model import Model, load_model
from export.reference import reference_session
from export.splits import list_splits
from export.verify import LIMIT, verify_cut
from splitboard.contract.bundle import TensorSpec
from splitboard.contract.errors import SplitboardError
from splitboard.contract.preprocess import Preprocessing, normalise, resize


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model)


def inputs(model: Model) -> np.ndarray:
    return normalise(resize(synthetic_images(4), 32, 32), model.info.preprocessing)


def test_every_split_of_the_model_is_equal_to_the_whole(model: Model) -> None:
    points = list_splits(model.graph, model.info.scopes, model.info.preprocessing)
    for point in points[1:-1]:
        assert point.tensor is not None
        errors = verify_cut(model.graph, point.tensor, inputs(model))
        assert errors.keys() == {"shape", "colour"}
        assert max(errors.values()) <= LIMIT


def test_a_half_that_differs_is_found(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(graph: Graph, tensor: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        edge, server = cut(graph, tensor)
        weight = next(t for t in server.graph.initializer if len(t.dims) > 1)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.001), weight.name))
        return edge, server

    monkeypatch.setattr("export.verify.cut", spoiled)
    tensor = list_splits(model.graph, model.info.scopes, model.info.preprocessing)[3].tensor
    assert tensor is not None
    with pytest.raises(SplitboardError, match="changes output"):
        verify_cut(model.graph, tensor, inputs(model))


def test_two_swapped_outputs_fail_parity_with_torch() -> None:
    nodes = [onnx.helper.make_node("Relu", ["image"], ["a"]), onnx.helper.make_node("Neg", ["image"], ["b"])]
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 4]) for n in ("image", "a", "b")]
    made = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "heads", values[:1], values[1:]),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=10,
    )
    x = np.random.default_rng(0).normal(size=(3, 1, 4)).astype(np.float32)
    right = {"input": x, "output.a": np.maximum(x, 0), "output.b": -x}
    assert max(one.max_abs for one in _parity(made, right).values()) == 0
    with pytest.raises(SplitboardError, match='output "a" of the exported graph differs'):
        _parity(made, {**right, "output.a": right["output.b"], "output.b": right["output.a"]})


@pytest.mark.parametrize("channels", [1, 3])
def test_remote_only_from_pixels_has_the_bits_of_the_float_model(model: Model, channels: int) -> None:
    spec = Preprocessing(32, 32, channels, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    pixels = resize(synthetic_images(3, channels=channels), 32, 32)
    names = model.graph.outputs
    whole, remote = reference_session(model.graph.model), reference_session(remote_graph(model.graph, spec))
    for image in pixels:
        expected = whole.run(names, {model.graph.inputs[0]: normalise(image[None], spec)})
        for ours, theirs in zip(remote.run(names, {model.graph.inputs[0]: image[None]}), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_server_graph_dequantises_the_wire_tensor(model: Model) -> None:
    point = next(
        p for p in list_splits(model.graph, model.info.scopes, model.info.preprocessing) if p.scope == "blocks.0"
    )
    assert point.tensor is not None
    n, c, h, w = point.shape
    spec = TensorSpec(point.tensor, (n, h, w, c), "int8", "NHWC", scale=0.05, zero_point=-11)
    stored = np.random.default_rng(0).integers(-128, 128, spec.shape, dtype=np.int8)
    real = ((stored.astype(np.float32) - np.float32(-11)) * np.float32(0.05)).transpose(0, 3, 1, 2)
    _, server = cut(model.graph, point.tensor)
    wire = wire_server_graph(model.graph, point.tensor, spec)
    assert [node.op_type for node in wire.graph.node[:2]] == ["DequantizeLinear", "Transpose"]
    names = model.graph.outputs
    expected = reference_session(server).run(names, {point.tensor: np.ascontiguousarray(real)})
    actual = reference_session(wire).run(names, {point.tensor: stored})
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
