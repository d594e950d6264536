"""Grouped convolutions, blocks and shuffles through calibration and quantisation: TFLite's INT8 and explicit Q/DQ."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import sparse_nets
import torch
from ai_edge_litert.tools import flatbuffer_utils
from conftest import synthetic_images
from onnx import helper, numpy_helper
from sparse_graphs import TASKS, exported

from boards.kinds import load_kind
from calib.artefact import accelerated_partitions, count_operators, count_shuffles, float_tensors, read_model
from calib.bias import corrected_biases
from calib.equalise import equalise
from calib.interpret import TfliteRun
from calib.observe import observe, quantisable
from calib.qdq.emit import emit
from calib.qdq.legal import refusals
from calib.qdq.plan import plan
from calib.quantise import int8
from calib.recipe import Prepared, Recipe, prepare
from calib.tflite_edge import FloatEdge, float_edge
from calib.weights import layers
from export.graph import Graph
from export.opset import lower_opset
from export.packed import pack
from export.reference import reference_session, relative_error
from export.shuffles import inside_shuffles, shuffles


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    pixels = synthetic_images(40, 40, 3)[:, 4:36, 4:36].astype(np.float32) / 64 - 2
    return [np.ascontiguousarray(one.transpose(2, 0, 1)[None]) for one in pixels]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return exported(sparse_nets.grouped())


@pytest.fixture(scope="module")
def prepared(graph: Graph, images: list[np.ndarray]) -> Prepared:
    return prepare(graph, graph.outputs, images, Recipe(ranges="p99.99"), lambda _: None)


@pytest.fixture(scope="module")
def edge(prepared: Prepared, images: list[np.ndarray]) -> FloatEdge:
    return float_edge(prepared, {"local": prepared.graph.outputs}, images[:2])


@pytest.fixture(scope="module")
def content(edge: FloatEdge) -> bytes:
    (table,) = edge.tables.values()
    return int8(edge.floating, table)


def answers(graph: Graph, images: list[np.ndarray]) -> dict[str, np.ndarray]:
    session = reference_session(graph.model)
    found = [session.run(TASKS, {"image": one}) for one in images]
    return {name: np.concatenate([one[i] for one in found]) for i, name in enumerate(TASKS)}


def test_full_int8_is_near_float(graph: Graph, content: bytes, images: list[np.ndarray]) -> None:
    expected, found = answers(graph, images), TfliteRun(content, "local").all(images)
    for task in TASKS:
        assert relative_error(found[task], expected[task]) < 0.12
        signal = np.square(expected[task]).sum() / np.square(found[task] - expected[task]).sum()
        assert 10 * np.log10(signal) > 20


def test_the_whole_file_is_int8_in_one_accelerated_part(content: bytes) -> None:
    assert float_tensors(content) == []
    assert accelerated_partitions(content) == {"local": 1}
    (operators,) = count_operators(content).values()
    assert not any("float" in name for name in operators)
    assert count_shuffles(content) == {"local": 3} == {"local": operators["TRANSPOSE"]}


def test_a_shuffle_keeps_scale_and_zero_point(content: bytes) -> None:
    model = read_model(content)
    (subgraph,) = model.subgraphs
    moved = 0
    for operator in subgraph.operators:
        if str(flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)) in ("RESHAPE", "TRANSPOSE"):
            ends = [subgraph.tensors[index].quantization for index in (operator.inputs[0], operator.outputs[0])]
            assert ends[0].scale[0] == ends[1].scale[0]
            assert ends[0].zeroPoint[0] == ends[1].zeroPoint[0]
            moved += 1
    assert moved == 9


def test_weights_have_a_scale_per_output_channel_of_all_groups(content: bytes) -> None:
    model = read_model(content)
    (subgraph,) = model.subgraphs
    grouped = 0
    for operator in subgraph.operators:
        if str(flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)) == "CONV_2D":
            weight = subgraph.tensors[operator.inputs[1]]
            assert len(weight.quantization.scale) == weight.shape[0]
            grouped += weight.shape[3] < subgraph.tensors[operator.inputs[0]].shape[3]
    assert grouped == 10  # eight of the backbone, two of the heads


def test_a_shuffle_has_one_range_under_every_method(graph: Graph, images: list[np.ndarray]) -> None:
    """The histogram looks at other values of the shuffled tensor, so percentiles would differ."""
    tables = prepare(graph, graph.outputs, images, Recipe(ranges="auto"), lambda _: None).tables
    assert len(tables) > 2
    for table in tables.values():
        assert not inside_shuffles(graph) & table.ranges.keys()
        for one in shuffles(graph):
            assert table.ranges[one.result] == table.ranges[one.source]


def test_bias_correction_takes_the_mean_of_each_channel_where_it_has_gone(
    graph: Graph, images: list[np.ndarray]
) -> None:
    """Against the shift itself: a shuffled layer with rounded weights, run by torch."""
    seen = observe(graph, quantisable(graph, ()), images, lambda _: None)
    corrected = corrected_biases(graph, seen)
    shuffle = next(shuffles(graph))
    (layer,) = (one for one in layers(graph) if one.source == shuffle.result)
    weight = layer.weight.reshape(layer.weight.shape[0], layer.weight.shape[1], 3, 3)
    scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    error = torch.from_numpy(np.rint(weight / scale) * scale - weight)
    values = _values(graph, shuffle.source, images).mean((0, 2, 3))[None, :, None, None]
    everywhere = torch.nn.functional.channel_shuffle(torch.from_numpy(values), 4).expand(-1, -1, 3, 3)
    shift = torch.nn.functional.conv2d(everywhere, error, groups=4).reshape(-1).numpy()
    assert layer.bias is not None
    np.testing.assert_allclose(layer.bias - corrected[layer.output], shift, atol=1e-5)


def _values(graph: Graph, name: str, images: list[np.ndarray]) -> np.ndarray:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    model.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = reference_session(model)
    return np.concatenate([session.run([name], {"image": one})[0] for one in images]).astype(np.float64)


def test_equalisation_follows_the_channels_through_a_shuffle(graph: Graph, images: list[np.ndarray]) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    shuffle = next(shuffles(graph))
    first = graph.nodes[graph.producer[graph.nodes[graph.producer[shuffle.source]].input[0]]]
    factors = np.exp2(np.random.default_rng(0).uniform(-6, 6, shuffle.channels)).astype(np.float32)
    for tensor in model.graph.initializer:
        if tensor.name in first.input:
            value = numpy_helper.to_array(tensor)
            value = value * factors.reshape(-1, *[1] * (value.ndim - 1))
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    uneven = Graph(model)
    balanced, pairs = equalise(uneven, ())
    assert pairs == 3
    for task, expected in answers(uneven, images[:4]).items():
        assert relative_error(answers(balanced, images[:4])[task], expected) < 1e-5
    (before,) = (one.weight for one in layers(uneven) if one.output == first.output[0])
    (after,) = (one.weight for one in layers(balanced) if one.output == first.output[0])
    spread = [float(np.ptp(np.log2(np.abs(one).max(axis=(1, 2))))) for one in (before, after)]
    assert spread[1] < spread[0] * 0.7


def test_explicit_qdq_passes_through_the_shuffle(prepared: Prepared, images: list[np.ndarray]) -> None:
    graph = prepared.graph
    (table,) = prepared.tables.values()
    planned = plan(graph, graph.outputs, table)
    convolutions = {node.output[0] for node in graph.nodes if node.op_type == "Conv"}
    assert {name: planned.weights[name].axis for name in convolutions} == dict.fromkeys(convolutions, 0)
    for one in shuffles(graph):
        assert planned.scales[one.result] == np.float32(table.ranges[one.source].symmetric_scale)
    model = emit(graph, planned)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for name in convolutions:
        weight = planned.weights[name].tensor
        assert shapes[f"{weight}/axis0/scale"] == shapes[weight][:1]
    expected = answers(graph, images)
    session = reference_session(model)
    for i, task in enumerate(TASKS):
        found = np.concatenate([session.run(TASKS, {"image": one})[i] for one in images])
        assert relative_error(found, expected[task]) < 0.12
    older = Graph(lower_opset(graph.model, 17))
    kind = load_kind("jetson-orin-nano")
    assert refusals(emit(older, plan(older, older.outputs, table)), kind, ["8.5.2", "10.3.0"]) == ()


@pytest.mark.trtrtx
def test_tensorrt_takes_the_qdq_graph(prepared: Prepared) -> None:
    from tensorrt_parser import errors

    (table,) = prepared.tables.values()
    assert errors(emit(prepared.graph, plan(prepared.graph, TASKS, table))) == []


@pytest.mark.trtrtx
def test_tensorrt_does_not_take_every_packed_weight() -> None:
    """Why the halves of a Jetson stay dense: 16-bit places, those of more than 256 channels on either side."""
    from tensorrt_parser import errors

    weight = np.zeros((260, 260), np.float32)
    weight[np.arange(260), np.arange(260)] = 1
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
            "g",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 260])],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 260])],
            [numpy_helper.from_array(weight, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    assert errors(model) == []
    assert "Failed to import initializer" in errors(pack(model))[0]


def test_the_files_shrink_with_the_weights(content: bytes, images: list[np.ndarray]) -> None:
    dense = exported(sparse_nets.dense())
    prepared = prepare(dense, dense.outputs, images, Recipe(ranges="minmax"), lambda _: None)
    edge = float_edge(prepared, {"local": dense.outputs}, images[:2])
    (table,) = edge.tables.values()
    weights = {True: 0, False: 0}
    for is_dense, file in ((True, int8(edge.floating, table)), (False, content)):
        model = read_model(file)
        (subgraph,) = model.subgraphs
        for operator in subgraph.operators:
            if str(flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)) in ("CONV_2D", "FULLY_CONNECTED"):
                weights[is_dense] += len(model.buffers[subgraph.tensors[operator.inputs[1]].buffer].data)
    stem, last = 16 * 3 * 9, 32 * 5
    assert weights[False] - stem - last == (weights[True] - stem - last) // 4


def test_a_scattered_network_is_as_accurate_in_int8(images: list[np.ndarray]) -> None:
    graph = exported(sparse_nets.scattered())
    prepared = prepare(graph, graph.outputs, images, Recipe(ranges="p99.99"), lambda _: None)
    edge = float_edge(prepared, {"local": graph.outputs}, images[:2])
    (table,) = edge.tables.values()
    found, expected = TfliteRun(int8(edge.floating, table), "local").all(images), answers(graph, images)
    for task in TASKS:
        assert relative_error(found[task], expected[task]) < 0.12
