"""Packed weights against ONNX Runtime: the same results from a smaller file, and no operator left when it is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.cut import remote_graph, whole_graph
from export.graph import Graph
from export.opset import lower_opset
from export.packed import pack, packed_weights, unpack
from splitboard.contract.preprocess import Preprocessing

UNPACKING = {"ConstantOfShape", "Cast", "Expand", "ScatterElements"}


def regular(rows: int, columns: int, degree: int, kernel: tuple[int, ...] = (), seed: int = 0) -> np.ndarray:
    """A weight whose rows have so many kernels each, shifted from row to row."""
    random = np.random.default_rng(seed)
    weight = np.zeros((rows, columns, *kernel), np.float32)
    for row in range(rows):
        chosen = (np.arange(degree) + row * degree) % columns
        weight[row, chosen] = random.normal(size=(degree, *kernel))
    return weight


def network(conv: np.ndarray, linear: np.ndarray, opset: int = 18) -> ModelProto:
    """Convolution, average, linear layer."""
    constants = {"w": conv, "v": linear}
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["features"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "v"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, conv.shape[1], 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, len(linear)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture
def sparse() -> ModelProto:
    return network(regular(64, 32, 4, (3, 3)), regular(40, 64, 8))


def loaded(model: ModelProto, folder: Path) -> tuple[ort.InferenceSession, list[str]]:
    """A session and the operators that are left in it."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4  # it warns that such a file belongs to this machine
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


def test_onnx_runtime_runs_the_dense_operators_with_the_same_bits(sparse: ModelProto, tmp_path: Path) -> None:
    packed = pack(sparse)
    onnx.checker.check_model(packed, full_check=True)
    assert {node.op_type for node in packed.graph.node} >= UNPACKING
    dense_session, dense_operators = loaded(sparse, tmp_path)
    session, operators = loaded(packed, tmp_path)
    assert operators == dense_operators
    for seed in range(3):
        image = {"image": np.random.default_rng(seed).normal(size=(1, 32, 8, 8)).astype(np.float32)}
        np.testing.assert_array_equal(session.run(None, image)[0], dense_session.run(None, image)[0])


def test_the_file_is_as_small_as_values_and_places(sparse: ModelProto) -> None:
    packed = pack(sparse)
    values = 64 * 4 * 9 * 4 + 40 * 8 * 4
    places = 64 * 4 + 40 * 8  # uint8: neither side has more than 256 channels
    found = {one.name: one for one in packed_weights(packed)}
    assert sum(one.packed_bytes for one in found.values()) == values + places
    assert sum(one.dense_bytes for one in found.values()) == 64 * 32 * 9 * 4 + 40 * 64 * 4
    assert sparse.ByteSize() - packed.ByteSize() > sum(o.dense_bytes - o.packed_bytes for o in found.values()) - 2000


def test_places_number_the_shorter_side() -> None:
    """1,568 inputs of 25,088 for each of 256 outputs are also 16 outputs of 256 for each input: one byte each."""
    weight = regular(64, 1024, 64)
    packed = pack(network(regular(64, 32, 4, (3, 3)), np.ascontiguousarray(weight[:, :64])))
    tall = pack(_linear(weight))
    assert {tensor.data_type for tensor in packed.graph.initializer if tensor.name.endswith("/places")} == {
        TensorProto.UINT8
    }
    (one,) = packed_weights(tall)
    assert one.packed_bytes == 64 * 64 * (4 + 1)
    np.testing.assert_array_equal(_weight(unpack(tall)), weight)


def _linear(weight: np.ndarray) -> ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "v"], ["y"], transB=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, weight.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, weight.shape[0]])],
        [numpy_helper.from_array(weight, "v")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _weight(model: ModelProto) -> np.ndarray:
    return next(numpy_helper.to_array(one) for one in model.graph.initializer if one.name == "v")


def test_rows_with_fewer_weights_are_filled_up(tmp_path: Path) -> None:
    """Training may end at zero, and a pattern need not be regular."""
    weight = regular(40, 64, 8)
    weight[3, :] = 0
    weight[7, np.flatnonzero(weight[7])[:5]] = 0
    packed = pack(_linear(weight))
    session, operators = loaded(packed, tmp_path)
    assert operators == ["Gemm"]
    x = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    dense, _ = loaded(_linear(weight), tmp_path)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], dense.run(None, {"x": x})[0])
    np.testing.assert_array_equal(_weight(unpack(packed)), weight)


@pytest.mark.parametrize(
    "weight",
    [
        np.ones((64, 64), np.float32),
        regular(64, 64, 63),  # indices would take more than the zeros
        regular(8, 8, 1),  # smaller than what the operators take
    ],
    ids=["dense", "nearly dense", "small"],
)
def test_what_would_not_be_smaller_stays(weight: np.ndarray) -> None:
    model = _linear(weight)
    assert pack(model) is model
    assert unpack(model) is model


def test_unpacking_gives_the_graph_back(sparse: ModelProto) -> None:
    back = unpack(pack(sparse))
    assert [node.op_type for node in back.graph.node] == [node.op_type for node in sparse.graph.node]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in back.graph.initializer}
    assert stored.keys() == {"w", "v"}
    for tensor in sparse.graph.initializer:
        np.testing.assert_array_equal(stored[tensor.name], numpy_helper.to_array(tensor))


@pytest.mark.parametrize("opset", [14, 17])
def test_older_operator_sets(sparse: ModelProto, opset: int, tmp_path: Path) -> None:
    packed = pack(lower_opset(sparse, opset))
    onnx.checker.check_model(packed, full_check=True)
    image = {"image": np.random.default_rng(0).normal(size=(1, 32, 8, 8)).astype(np.float32)}
    np.testing.assert_array_equal(
        loaded(packed, tmp_path)[0].run(None, image), loaded(sparse, tmp_path)[0].run(None, image)
    )


def test_the_model_comes_back_from_a_packed_remote_graph() -> None:
    """As a bundle's diagnosis takes it."""
    model = network(regular(64, 3, 1, (3, 3)), regular(40, 64, 8))
    spec = Preprocessing(height=8, width=8, source_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    packed = pack(remote_graph(Graph(model), spec))
    assert {one.name for one in packed_weights(packed)} == {"w", "v"}
    whole = whole_graph(packed)
    assert [node.op_type for node in whole.nodes] == [node.op_type for node in model.graph.node]
    np.testing.assert_array_equal(whole.constant("w"), Graph(model).constant("w"))
