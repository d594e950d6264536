"""Bias correction and equalisation against torch and against what they promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import synthetic_images
from onnx import TensorProto, helper, numpy_helper

from calib.bias import corrected_biases, with_biases
from calib.equalise import equalise
from calib.keep_float import operators_of, resolve
from calib.observe import observe, quantisable
from calib.ranges import Range, RangeTable
from calib.recipe import Recipe, choose
from export.graph import Graph
from export.model import load_model
from export.reference import reference_session
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import normalise, resize


def network(*layers: tuple[str, list[np.ndarray], dict[str, object]], channels: int = 3) -> Graph:
    """A chain of operators from ``image`` [1, channels, 12, 12] to ``y``."""
    nodes, constants, at = [], [], "image"
    for number, (kind, weights, attributes) in enumerate(layers):
        names = [f"w{number}_{i}" for i in range(len(weights))]
        constants += [
            numpy_helper.from_array(np.asarray(w, np.float32), n) for w, n in zip(weights, names, strict=True)
        ]
        result = "y" if number == len(layers) - 1 else f"t{number}"
        nodes.append(helper.make_node(kind, [at, *names], [result], name=f"n{number}", **attributes))
        at = result
    made = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, channels, 12, 12))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return Graph(onnx.shape_inference.infer_shapes(model))


def random_chain(seed: int, activation: str, groups: int = 1) -> Graph:
    """Conv, activation, Conv, with the channels in between of very different sizes."""
    random = np.random.default_rng(seed)
    size = np.exp(random.normal(0, 2, 8))
    first = random.normal(0, 1, (8, 3, 3, 3)) * size[:, None, None, None]
    second = random.normal(0, 1, (8, 8 // groups, 3, 3))
    second = second / (size[:, None, None, None] if groups == 8 else size[None, :, None, None])
    clip = [np.float32(0), np.float32(6)] if activation == "Clip" else []
    return network(
        ("Conv", [first, random.normal(0, 1, 8) * size], {"pads": [1, 1, 1, 1]}),
        (activation, clip, {}),
        ("Conv", [second, random.normal(0, 1, 8)], {"pads": [1, 1, 1, 1], "group": groups}),
    )


def images(count: int, channels: int = 3) -> list[np.ndarray]:
    random = np.random.default_rng(11)
    return [random.normal(0.3, 1, (1, channels, 12, 12)).astype(np.float32) for _ in range(count)]


def outputs(graph: Graph, name: str, inputs: list[np.ndarray]) -> np.ndarray:
    session = reference_session(graph.model)
    return np.concatenate([session.run([name], {"image": one})[0] for one in inputs])


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("seed", range(4))
def test_equalising_keeps_the_function_and_evens_the_ranges(seed: int, groups: int) -> None:
    graph = random_chain(seed, "Relu", groups)
    balanced, pairs = equalise(graph, ())
    assert pairs == 1
    np.testing.assert_allclose(outputs(balanced, "y", images(4)), outputs(graph, "y", images(4)), rtol=1e-3, atol=1e-3)
    # Settled: of every channel both halves have the same range, as equation 9 of the source demands.
    first, second = balanced.constant("w0_0"), balanced.constant("w2_0")
    r1 = np.abs(first).max(axis=(1, 2, 3))
    r2 = np.abs(second).max(axis=(1, 2, 3) if groups == 8 else (0, 2, 3))
    np.testing.assert_allclose(r1, r2, rtol=0.01)


def test_equalising_is_left_alone_where_it_would_change_something() -> None:
    assert equalise(random_chain(0, "Clip"), ())[1] == 0
    assert equalise(random_chain(0, "Sigmoid"), ())[1] == 0
    graph = random_chain(0, "Relu")
    assert equalise(graph, ["t0"])[1] == 0
    assert equalise(graph, ["t1"])[1] == 0
    twice = onnx.ModelProto()
    twice.CopyFrom(graph.model)
    twice.graph.node.append(helper.make_node("Relu", ["t0"], ["z"], name="other"))
    twice.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    assert equalise(Graph(onnx.shape_inference.infer_shapes(twice)), ())[1] == 0


def _with_rounded_weights(graph: Graph) -> Graph:
    """Every convolution's weights rounded per output channel by torch's own fake quantisation."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for tensor in model.graph.initializer:
        value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        if value.ndim == 4:
            scale = value.abs().amax((1, 2, 3)) / 127
            zero = torch.zeros(len(scale), dtype=torch.int32)
            rounded = torch.fake_quantize_per_channel_affine(value, scale, zero, 0, -127, 127)
            tensor.CopyFrom(numpy_helper.from_array(rounded.numpy(), tensor.name))
    return Graph(model)


@pytest.mark.parametrize("groups", [1, 4])
def test_correction_takes_out_the_mean_error_of_rounding(groups: int) -> None:
    """Without padding, where the theory is exact: the mean of every output channel is the float model's again."""
    random = np.random.default_rng(3)
    weight = random.normal(0, 1, (8, 4 // groups, 3, 3)) * np.exp(random.normal(0, 1.5, (8, 4 // groups, 3, 3)))
    graph = network(("Conv", [weight, random.normal(0, 1, 8)], {"group": groups}), channels=4)
    # An image whose edges repeat has the same mean in every window's place.
    inputs = [np.broadcast_to(m, (1, 4, 12, 12)).astype(np.float32) for m in random.normal(1, 1, (16, 1, 4, 1, 1))]
    seen = observe(graph, quantisable(graph, ()), iter(inputs), lambda done: None)
    corrected = with_biases(graph, corrected_biases(graph, seen))
    exact = outputs(graph, "y", inputs).mean(axis=(0, 2, 3))
    rounded = outputs(_with_rounded_weights(graph), "y", inputs).mean(axis=(0, 2, 3))
    mended = outputs(_with_rounded_weights(corrected), "y", inputs).mean(axis=(0, 2, 3))
    assert np.abs(rounded - exact).max() > 1e-3
    np.testing.assert_allclose(mended, exact, atol=1e-4)


def test_a_layer_without_a_bias_gets_none() -> None:
    graph = network(("Conv", [np.random.default_rng(4).normal(0, 1, (8, 3, 3, 3))], {}))
    seen = observe(graph, quantisable(graph, ()), iter(images(4)), lambda done: None)
    assert corrected_biases(graph, seen) == {}


def test_a_linear_layer_is_corrected_with_its_features_means() -> None:
    random = np.random.default_rng(5)
    weight = random.normal(0, 1, (6, 3 * 144)) * np.exp(random.normal(0, 1, (6, 3 * 144)))
    graph = network(("Flatten", [], {"axis": 1}), ("Gemm", [weight, np.zeros(6)], {"transB": 1}))
    inputs = images(32)
    seen = observe(graph, quantisable(graph, ()), iter(inputs), lambda done: None)
    found = corrected_biases(graph, seen)["y"]
    scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    error = np.rint(weight / scale) * scale - weight
    features = np.concatenate(inputs).reshape(32, -1).mean(axis=0)
    np.testing.assert_allclose(found, -(error @ features), rtol=1e-3, atol=1e-4)


def test_names_to_keep_float_are_modules_or_tensors(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    graph, scopes = model.graph, model.info.scopes
    layers = set(quantisable(graph, ()))
    stem = resolve(graph, scopes, ["stem"], ())
    assert len(stem) == 1
    assert graph.nodes[graph.producer[stem[0]]].op_type == "Clip"  # the convolution and its ReLU6 are one
    conv = graph.nodes[graph.producer[stem[0]]].input[0]
    assert resolve(graph, scopes, [conv], ()) == stem
    assert operators_of(graph, stem, ()) == {stem[0], conv}
    both = resolve(graph, scopes, ["blocks.0", "stem"], ())
    assert set(stem) < set(both) <= layers
    with pytest.raises(UserError, match=r'"blocks\.00" is neither a module nor a tensor') as error:
        resolve(graph, scopes, ["blocks.00"], ())
    assert error.value.tries[0] == '"blocks.0" is the nearest'
    with pytest.raises(UserError) as error:  # a module that only holds modules
        resolve(graph, scopes, ["block"], ())
    assert error.value.tries[0] == '"blocks" is the nearest'


def _tables(*methods: str) -> dict[str, RangeTable]:
    return {method: RangeTable(2, method, 1, {"x": Range(-1.0, 1.0, 1.0)}) for method in methods}


def test_the_worst_task_chooses() -> None:
    reference = {"a": np.ones((4, 2), np.float32), "b": np.ones((4, 2), np.float32)}
    off = {"minmax": (0.1, 0.3), "p99.999": (0.0, 0.4), "p99.99": (0.2, 0.2), "mse": (0.25, 0.1)}

    def run(table: RangeTable) -> dict[str, np.ndarray]:
        return {task: reference[task] + by for task, by in zip("ab", off[table.method], strict=True)}

    choice = choose(_tables(*off), Recipe(), reference, run)
    assert choice.method == "p99.99"
    assert choice.errors["mse"]["a"] == pytest.approx(0.25, rel=1e-5)


def test_entropy_is_refused_where_it_is_worse() -> None:
    reference = {"a": np.ones((4, 2), np.float32)}
    recipe = Recipe(ranges="entropy")
    assert recipe.candidates == ("minmax", "entropy")
    worse = {"minmax": 0.1, "entropy": 0.9}
    with pytest.raises(UserError, match='ranges "entropy" are worse than minmax'):
        choose(_tables(*worse), recipe, reference, lambda table: {"a": reference["a"] + worse[table.method]})
    better = {"minmax": 0.1, "entropy": 0.05}
    found = choose(_tables(*better), recipe, reference, lambda table: {"a": reference["a"] + better[table.method]})
    assert found.method == "entropy"


def test_torch_agrees_on_what_a_rounded_weight_is() -> None:
    from calib.weights import rounded

    weight = np.random.default_rng(6).normal(0, 1, (5, 3, 9))
    value = torch.from_numpy(weight.astype(np.float32))
    scale = value.abs().amax((1, 2)) / 127
    expected = torch.fake_quantize_per_channel_affine(value, scale, torch.zeros(5, dtype=torch.int32), 0, -127, 127)
    np.testing.assert_allclose(rounded(weight), expected.numpy(), atol=1e-6)


def test_synthetic_images_reach_the_tiny_model(tiny_model: Path) -> None:
    """The whole preparation on a real model changes its answers by no more than rounding would."""
    from calib.recipe import prepare

    model = load_model(tiny_model)
    spec = model.info.declared()
    inputs = normalise(resize(synthetic_images(20), 32, 32), spec)
    listed = [inputs[i : i + 1] for i in range(len(inputs))]
    prepared = prepare(model.graph, (), iter(listed), Recipe(ranges="minmax", equalise=True), lambda done: None)
    before, after = reference_session(model.graph.model), reference_session(prepared.graph.model)
    for one in listed:
        for old, new in zip(before.run(None, {"image": one}), after.run(None, {"image": one}), strict=True):
            assert np.abs(old - new).max() < 0.02 * np.abs(old).max()
