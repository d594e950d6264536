"""The float TFLite file against ONNX Runtime: outputs, every tensor inside by its name, and every replayed operator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_litert.tools import flatbuffer_utils
from conftest import synthetic_images
from onnx import TensorProto, helper, numpy_helper

from export.choice import choose
from export.edge_form import edge_form, sums_into_biases
from export.graph import Graph
from export.model import Model, load_model
from export.reference import reference_session
from export.replay import Replay, shared_constants
from export.splits import list_splits
from export.tflite import _all_values, convert, onnx_name
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import normalise, resize


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def samples(model: Model) -> np.ndarray:
    return normalise(resize(synthetic_images(3), 32, 32), model.info.preprocessing)


@pytest.fixture(scope="module")
def content(model: Model, samples: np.ndarray) -> bytes:
    chosen = choose(model, list_splits(model), "blocks.0,blocks.1")
    signatures = {choice.point.id: choice.cut.crossing for choice in chosen}
    return convert(
        model.graph, {**signatures, "local": model.graph.outputs}, [samples[:1]], list(model.graph.producer)
    ).content


def test_signatures_give_onnx_runtimes_tensors(content: bytes, model: Model, samples: np.ndarray) -> None:
    interpreter = Interpreter(model_content=content)
    reference = reference_session(model.graph.model)
    runner = interpreter.get_signature_runner("local")
    for sample in samples:
        ours = runner(image=np.ascontiguousarray(sample[None].transpose(0, 2, 3, 1)))
        theirs = reference.run(model.graph.outputs, {"image": sample[None]})
        assert ours.keys() == set(model.graph.outputs)
        for name, expected in zip(model.graph.outputs, theirs, strict=True):
            np.testing.assert_allclose(ours[name], expected, atol=1e-5)


def test_every_tensor_has_the_name_of_its_values(content: bytes, model: Model, samples: np.ndarray) -> None:
    """On an image that the names were not matched on."""
    file = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    interpreter = Interpreter(
        model_content=content,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    values = _all_values(model.graph, [samples[2:3]], list(model.graph.producer))
    checked = 0
    for definition in file.signatureDefs:
        interpreter.get_signature_runner(definition.signatureKey.decode())(
            image=np.ascontiguousarray(samples[2:3].transpose(0, 2, 3, 1))
        )
        subgraph = file.subgraphs[definition.subgraphIndex]
        for operator in subgraph.operators:
            if flatbuffer_utils.opcode_to_name(file, operator.opcodeIndex) == "PAD":
                continue
            index = operator.outputs[0]
            expected = values[onnx_name(subgraph.tensors[index].name.decode())]
            actual = interpreter.get_tensor(index, definition.subgraphIndex)
            np.testing.assert_allclose(actual.reshape(-1), expected.reshape(-1), atol=1e-4)
            checked += 1
    assert checked >= 15


def test_no_weight_is_stored_twice(content: bytes) -> None:
    file = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    weights = [bytes(np.asarray(b.data, np.uint8)) for b in file.buffers if b.data is not None and len(b.data) > 64]
    assert len(weights) == len(set(weights))
    assert len(weights) >= 6


_IMAGE = (1, 4, 9, 8)
_WEIGHT = np.random.default_rng(5)


def _weights(*shape: int) -> np.ndarray:
    return _WEIGHT.normal(0, 0.5, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "shape", "constants", "attributes"),
    [
        ("Add", _IMAGE, [_weights(1, 4, 1, 1)], {}),
        ("Mul", _IMAGE, [_weights(1, 4, 9, 8)], {}),
        ("Sub", _IMAGE, [_weights(1, 4, 1, 1)], {}),
        ("Clip", _IMAGE, [np.float32(0), np.float32(6)], {}),
        ("Clip", _IMAGE, [np.float32(-0.5), np.float32(0.25)], {}),
        ("Concat", _IMAGE, [_weights(*_IMAGE)], {"axis": 1}),
        ("Conv", _IMAGE, [_weights(6, 4, 3, 3), _weights(6)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("Conv", _IMAGE, [_weights(6, 4, 3, 3)], {"pads": [0, 0, 1, 1], "strides": [2, 2]}),
        ("Conv", _IMAGE, [_weights(4, 1, 5, 5)], {"pads": [1, 1, 2, 2], "group": 4, "strides": [2, 2]}),
        ("Conv", _IMAGE, [_weights(4, 4, 3, 3)], {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        ("Flatten", _IMAGE, [], {}),
        ("Gemm", (1, 12), [_weights(5, 12), _weights(5)], {"transB": 1}),
        ("Gemm", (1, 12), [_weights(12, 5)], {}),
        ("GlobalAveragePool", _IMAGE, [], {}),
        ("MaxPool", _IMAGE, [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("MaxPool", _IMAGE, [], {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 0]}),
        ("ReduceMean", _IMAGE, [np.array([2, 3])], {"keepdims": 1}),
        ("ReduceMean", _IMAGE, [np.array([2, 3])], {"keepdims": 0}),
        ("Relu", _IMAGE, [], {}),
        ("Reshape", _IMAGE, [np.array([0, -1])], {}),
        ("Sigmoid", _IMAGE, [], {}),
    ],
)
def test_a_replayed_operator_is_onnx_runtimes(
    kind: str, shape: tuple[int, ...], constants: list[np.ndarray], attributes: dict[str, object]
) -> None:
    graph = one_operator(kind, shape, constants, attributes)
    x = np.random.default_rng(6).normal(0, 3, shape).astype(np.float32)
    (expected,) = reference_session(graph.model).run(["y"], {"image": x})
    import torch

    actual = Replay(graph, ["y"], shared_constants(graph))(torch.from_numpy(x))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "attributes", "tolerance"),
    [
        ("HardSwish", {}, 3e-4),  # 0.1667 for 1/6, on purpose: 2e-4 relative
        ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, 1e-6),
        ("HardSigmoid", {}, 1e-6),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.1}, 1e-6),
    ],
)
def test_the_edge_form_is_the_same_function(kind: str, attributes: dict[str, object], tolerance: float) -> None:
    graph = one_operator(kind, _IMAGE, [], attributes)
    x = np.random.default_rng(6).normal(0, 3, _IMAGE).astype(np.float32)
    (expected,) = reference_session(graph.model).run(["y"], {"image": x})
    form = edge_form(graph)
    assert kind not in {node.op_type for node in form.nodes}
    (actual,) = reference_session(form.model).run(["y"], {"image": x})
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=1e-6)
    import torch

    replayed = Replay(form, ["y"], shared_constants(form))(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(replayed, actual, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [[], [_weights(6)]])
def test_a_sum_moves_into_the_bias_of_the_layer_that_only_it_takes(bias: list[np.ndarray]) -> None:
    convolution = helper.make_node("Conv", ["image", "w", *(["b"] if bias else [])], ["conv"], name="conv")
    gate = helper.make_node("HardSigmoid", ["conv"], ["y"], name="gate", alpha=1 / 6, beta=0.5)
    tensors = [numpy_helper.from_array(_weights(6, 4, 1, 1), "w"), *(numpy_helper.from_array(b, "b") for b in bias)]
    made = helper.make_model(
        helper.make_graph(
            [convolution, gate],
            "gated",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, _IMAGE)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            tensors,
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    graph = Graph(onnx.shape_inference.infer_shapes(made))
    x = np.random.default_rng(6).normal(0, 3, _IMAGE).astype(np.float32)
    (expected,) = reference_session(graph.model).run(["y"], {"image": x})
    summed = sums_into_biases(edge_form(graph), ())
    assert [node.op_type for node in summed.nodes] == ["Conv", "Clip", "Mul"]
    (actual,) = reference_session(summed.model).run(["y"], {"image": x})
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    kept = sums_into_biases(edge_form(graph), ["conv"])
    assert [node.op_type for node in kept.nodes] == ["Conv", "Add", "Clip", "Mul"]


def test_an_unknown_operator_is_refused_by_name() -> None:
    with pytest.raises(UserError, match='operator "Erf"'):
        Replay(one_operator("Erf", _IMAGE, [], {}), ["y"], {})


def one_operator(
    kind: str, shape: tuple[int, ...], constants: list[np.ndarray], attributes: dict[str, object]
) -> Graph:
    """A model of one node: ``image`` and constants to ``y``."""
    names = [f"c{i}" for i in range(len(constants))]
    node = helper.make_node(kind, ["image", *names], ["y"], name="only", **attributes)
    made = helper.make_model(
        helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(value), name) for value, name in zip(constants, names, strict=True)],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    return Graph(onnx.shape_inference.infer_shapes(made))
