"""fp16 as a property of the graph: which operators, what lies at their borders, and what they compute."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graphs import made_of
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto
from quantised import (  # type: ignore[import-not-found, unused-ignore]
    even_table,
    exported,
    images,
    linear_gate,
    node,
    observed,
    weights,
)

from calib.qdq.emit import emit
from calib.qdq.half import half_positions
from calib.qdq.inspect import check_precision, count_operators, operators
from calib.qdq.keep import depthwise_nodes, float_layers, squeeze_excite_nodes
from calib.qdq.plan import plan, plan_fp16, plan_fp32
from export.graph import Graph
from export.opset import lower_opset, opset_of
from export.reference import reference_session, relative_error
from splitboard.contract.errors import UserError

FAMILIES = ("unet", "vit", "depths", "two_scales", "mobilenet_v3_small_two_heads", "efficientnet_lite0_two_heads")


def types_of(model: ModelProto) -> dict[str, int]:
    return {one.name: one.data_type for one in model.graph.initializer}


# What may be fp16


@pytest.mark.parametrize(
    ("made", "constants", "inputs", "outputs"),
    [
        (node("Conv", ["x", "w"], ["y"]), {"w": weights(1, 4, 3, 1, 1)}, (0, 1), (0,)),
        (node("Relu", ["x"], ["y"]), {}, (0,), (0,)),
        (node("Concat", ["x", "x", "x"], ["y"], axis=1), {}, (0, 1, 2), (0,)),
        (node("Gather", ["x", "i"], ["y"]), {"i": np.array([0])}, (0,), (0,)),
        (node("Reshape", ["x", "i"], ["y"]), {"i": np.array([-1])}, (0,), (0,)),
        # The factors of a resize are float32 in every opset.
        (node("Resize", ["x", "", "f"], ["y"]), {"f": np.float32([1, 1, 2, 2])}, (0,), (0,)),
        # The type of what it makes is an attribute.
        (node("Cast", ["x"], ["y"], to=TensorProto.FLOAT), {}, (), ()),
    ],
    ids=lambda value: value.op_type if isinstance(value, NodeProto) else None,
)
def test_what_an_operator_may_have_in_fp16(
    made: NodeProto, constants: dict[str, NDArray[np.generic]], inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> None:
    graph = made_of([made], constants=constants, shape=(1, 3, 8, 8))
    assert half_positions(graph, made) == (inputs, outputs)


# The whole graph


@pytest.mark.parametrize("name", FAMILIES)
def test_a_whole_network_in_fp16_is_near_float(name: str) -> None:
    graph = exported(name)
    samples = images(graph, 3)
    planned = plan_fp16(graph, graph.outputs, observed(graph, samples))
    model = emit(graph, planned)
    check_precision(model, planned)
    assert {one.precision for one in operators(model)} <= {"fp16", "float"}
    weighted = [one for one in operators(model) if one.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    assert weighted
    assert {one.precision for one in weighted} == {"fp16"}
    # Inputs and outputs stay float32, and each has one Cast.
    assert {value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]} == {1}
    counted = count_operators({"local": model})["local"]
    assert counted["Cast"] == len(model.graph.input) + len(model.graph.output)
    for sample in samples:
        expected, actual = (reference_session(one).run(None, {"image": sample}) for one in (graph.model, model))
        for ours, theirs in zip(actual, expected, strict=True):
            assert ours.dtype == np.float32
            # The deep ones have random weights, and amplify what arrives.
            assert 0 < relative_error(ours, theirs) < (3e-2 if "net_" in name else 5e-3)


def test_a_small_network_is_what_torch_makes_of_fp16_weights() -> None:
    """ONNX Runtime adds up in float32 and does not round between the layers, as torch does here."""
    constants = {"w": weights(1, 8, 3, 3, 3), "b": weights(2, 8), "v": weights(3, 4, 8), "c": weights(4, 4)}
    nodes = [
        node("Conv", ["x", "w", "b"], ["a"]),
        node("Relu", ["a"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "v", "c"], ["y"], transB=1),
    ]
    graph = made_of(nodes, constants=constants, shape=(1, 3, 9, 9))
    model = emit(graph, plan_fp16(graph, ["y"], even_table(graph)))
    assert set(types_of(model).values()) == {TensorProto.FLOAT16}

    def half(value: torch.Tensor) -> torch.Tensor:
        return value.half().float()

    at = {name: half(torch.from_numpy(value)) for name, value in constants.items()}
    x = weights(5, 1, 3, 9, 9)
    features = half(half(F.relu(half(F.conv2d(half(torch.from_numpy(x)), at["w"], at["b"])))).mean((2, 3)))
    expected = half(F.linear(features, at["v"], at["c"])).numpy()
    (y,) = reference_session(model).run(None, {"x": x})
    np.testing.assert_allclose(y, expected, rtol=2**-10, atol=2**-10)
    assert not np.array_equal(y, reference_session(graph.model).run(None, {"x": x})[0])


def test_fp32_is_the_model_as_it_is() -> None:
    graph = exported("depths")
    planned = plan_fp32(graph, graph.outputs)
    model = emit(graph, planned)
    check_precision(model, planned)
    assert [one.op_type for one in model.graph.node] == [one.op_type for one in graph.nodes]
    (image,) = images(graph, 1)
    for ours, theirs in zip(
        *(reference_session(one).run(None, {"image": image}) for one in (graph.model, model)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_part_that_sends_a_tensor_sends_it_in_float32() -> None:
    graph = exported("depths")
    crossing = next(one.output[0] for one in graph.nodes if one.op_type == "Add")
    (image,) = images(graph, 1)
    model = emit(graph, plan_fp16(graph, [crossing], observed(graph, [image])))
    (sent,) = reference_session(model).run([crossing], {"image": image})
    assert sent.dtype == np.float32
    assert sent.shape == graph.shapes[crossing]


# INT8 with float regions


@pytest.mark.parametrize("name", ["mobilenet_v3_small_two_heads", "efficientnet_lite0_two_heads", "vit"])
@pytest.mark.parametrize("depthwise", ["float", "int8"])
def test_nothing_stands_between_an_int8_operator_and_its_rounding(name: str, depthwise: str) -> None:
    graph = exported(name)
    samples = images(graph, 2)
    planned = plan(graph, graph.outputs, observed(graph, samples), float_layers(graph, depthwise))
    model = emit(graph, planned)
    check_precision(model, planned)
    maker = {tensor: one for one in model.graph.node for tensor in one.output}
    constants = types_of(model)
    casts = [one for one in model.graph.node if one.op_type == "Cast"]
    for one in model.graph.node:
        if one.output[0].removesuffix("/real") in planned.weights:
            assert [maker[name].op_type for name in one.input[:2]] == ["DequantizeLinear"] * 2
            assert all(constants[name] == TensorProto.FLOAT for name in one.input[2:])
        if one.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert constants[one.input[1]] == TensorProto.FLOAT
        # What an INT8 operator gives is rounded as it is, or behind the activation that belongs to it.
        if one.op_type == "QuantizeLinear" and one.input[0] in maker and maker[one.input[0]].op_type == "Cast":
            assert maker[one.input[0]].input[0].removesuffix("/fp16") in planned.fp16
    # Every tensor changes its type once at most, and never back.
    assert len({one.input[0] for one in casts}) == len(casts)
    assert not any(
        maker[one.input[0]].op_type in ("Cast", "DequantizeLinear") for one in casts if one.input[0] in maker
    )
    weighted = [one for one in operators(model) if one.op_type in ("Conv", "Gemm", "MatMul")]
    assert {one.precision for one in weighted} <= {"int8", "fp16"}
    # fp16 adds next to nothing to what INT8 changes.
    without = emit(graph, dataclasses.replace(planned, fp16=frozenset()))
    exact, mixed, plain = (
        [np.concatenate(one, axis=None) for one in (reference_session(m).run(None, {"image": s}) for s in samples)]
        for m in (graph.model, model, without)
    )
    assert np.linalg.norm(np.subtract(mixed, exact)) < 1.3 * np.linalg.norm(np.subtract(plain, exact))


def test_softmax_and_task_outputs_are_not_rounded() -> None:
    graph = exported("vit")
    model = emit(graph, plan(graph, graph.outputs, observed(graph, images(graph, 2))))
    rounded = {one.input[0] for one in model.graph.node if one.op_type == "QuantizeLinear"}
    softmax = [one for one in graph.nodes if one.op_type == "Softmax"]
    assert softmax
    for one in softmax:
        assert one.input[0] not in rounded
    assert not {*graph.outputs} & rounded
    assert {value.type.tensor_type.elem_type for value in model.graph.output} == {TensorProto.FLOAT}


def test_a_gate_is_one_region_of_fp16() -> None:
    graph = linear_gate()
    planned = plan(graph, ["y"], even_table(graph, 3.0), squeeze_excite_nodes(graph))
    assert planned.weights.keys() == {"a", "y"}
    assert planned.fp16 == {"pool", "flat", "squeezed", "hidden", "excited", "gate", "weights", "weighted"}
    model = emit(graph, planned)
    casts = [(one.input[0], one.output[0]) for one in model.graph.node if one.op_type == "Cast"]
    assert casts == [("a", "a/fp16"), ("weighted/fp16", "weighted")]


def test_a_region_holds_together_through_every_output_of_an_operator() -> None:
    nodes = [
        node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
        node("Conv", ["a", "w"], ["c"]),
        node("Tanh", ["b"], ["t"]),
        node("Sigmoid", ["x"], ["apart"]),
        node("Concat", ["t", "apart"], ["d"], axis=1),
        node("Conv", ["d", "v"], ["e"]),
        node("Add", ["c", "e"], ["y"]),
    ]
    constants = {"w": weights(1, 5, 2, 1, 1), "v": weights(2, 5, 6, 1, 1)}
    graph = made_of(nodes, constants=constants, shape=(1, 4, 8, 8))
    # What the INT8 convolution takes and what takes its result are float, and connected with the other one.
    assert plan(graph, ["y"], even_table(graph), {"c", "y"}).fp16 == {"a", "c", "t", "apart", "d", "y"}
    assert plan(graph, ["y"], even_table(graph), {"y"}).fp16 == frozenset()


def test_float_operators_without_weights_between_int8_ones_stay_float32() -> None:
    """Two conversions would be all that fp16 brought there."""
    graph = exported("efficientnet_lite0_two_heads")
    table = observed(graph, images(graph, 2))
    assert plan(graph, graph.outputs, table).fp16 == frozenset()
    planned = plan(graph, graph.outputs, table, depthwise_nodes(graph))
    kinds = [graph.nodes[graph.producer[name]].op_type for name in planned.fp16]
    # Each depthwise convolution with its own activation; that of the INT8 one in front stays with that.
    assert sorted(set(kinds)) == ["Clip", "Conv"]
    assert kinds.count("Conv") == kinds.count("Clip") == len(depthwise_nodes(graph))


# What does not fit


def test_what_does_not_fit_is_refused_by_name() -> None:
    graph = linear_gate()
    table = even_table(graph)
    beyond = {**table.ranges, "hidden": dataclasses.replace(table.ranges["hidden"], magnitude=7e4)}
    wide = dataclasses.replace(table, ranges=beyond)
    with pytest.raises(UserError, match='tensor "hidden" reaches "70000", and fp16 ends at 65504') as error:
        plan_fp16(graph, ["y"], wide)
    assert error.value.tries == ("--keep-float hidden,excited", "--precision fp32")
    kept = plan_fp16(graph, ["y"], wide, {"hidden", "excited"})
    assert {node.output[0] for node in graph.nodes} - kept.fp16 == {"hidden", "excited"}
    # In INT8 nobody asked for fp16: what does not fit is float32.
    planned = plan(graph, ["y"], wide, squeeze_excite_nodes(graph))
    assert not planned.fp16 & {"hidden", "excited"}
    with pytest.raises(UserError, match='no operator makes the tensor "z"'):
        plan_fp16(graph, ["y"], table, {"z"})


def test_weights_that_do_not_fit_are_refused_and_infinite_ones_are_meant() -> None:
    mask = np.float32([[0, -np.inf, 7e4]])
    nodes = [node("Add", ["x", "mask"], ["m"]), node("Softmax", ["m"], ["y"], axis=1)]
    graph = made_of(nodes, constants={"mask": mask}, shape=(1, 3))
    with pytest.raises(UserError, match='tensor "mask" reaches "70000"'):
        plan_fp16(graph, ["y"], even_table(graph))
    fits = made_of(nodes, constants={"mask": np.float32([[0, -np.inf, 1]])}, shape=(1, 3))
    model = emit(fits, plan_fp16(fits, ["y"], even_table(fits)))
    (y,) = reference_session(model).run(None, {"x": np.float32([[1, 5, 0]])})
    np.testing.assert_allclose(y, [[0.5, 0, 0.5]], atol=1e-3)


@pytest.mark.parametrize("opset", [13, 17])
def test_older_opsets_are_planned_and_written_alike(opset: int) -> None:
    graph = exported("mobilenet_v3_small_two_heads")
    samples = images(graph, 2)
    table = observed(graph, samples)
    older = Graph(lower_opset(graph.model, opset))
    for make in (plan, plan_fp16):
        found = []
        for one in (graph, older):
            model = emit(one, make(one, one.outputs, table))
            found.append((opset_of(model), reference_session(model).run(None, {"image": samples[0]})))
        (_, expected), (written, actual) = found
        assert written == opset
        for ours, theirs in zip(actual, expected, strict=True):
            assert relative_error(ours, theirs) < 2e-2  # hard-swish in two steps rounds another way
