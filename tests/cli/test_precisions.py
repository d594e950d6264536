"""Every precision and both formats, built and run: what the files hold, and that both halves fit together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from ai_edge_litert.schema_py_generated import TensorType
from onnx import numpy_helper

from boards.kinds import load_kind
from calib.artefact import count_operators, float_tensors, read_model
from calib.dataset import MOST_IMAGES, calibration_set
from calib.gate.deployed import deployed_outputs, float_outputs
from calib.interpret import TfliteRun
from calib.quantise import fp16, int8
from calib.ranges import RangeTable
from calib.recipe import Recipe, prepare
from calib.tflite_edge import FloatEdge, float_edge
from export.choice import choose
from export.model import load_model
from export.splits import list_splits
from runtime_edge.engines.engine import edge_splits
from splitboard.cli.build import BuildRequest, build_bundle, build_output
from splitboard.contract.bundle import Bundle, load_bundle
from splitboard.contract.decode import read_json
from splitboard.contract.samples import load_samples


def built(model_folder: Path, samples: Path, target: Path, kind: str, recipe: Recipe) -> tuple[Path, Bundle]:
    model = load_model(model_folder)
    splits = list_splits(model)
    request = BuildRequest(choose(model, splits, "blocks.0,blocks.1"), load_kind(kind), recipe)
    with calibration_set(str(samples), 1, MOST_IMAGES, target.parent) as data:
        bundle = build_bundle(model, splits, request, data, target, lambda what, done, total: None)
    assert build_output(target, bundle, request.chosen).edge_bytes > 0
    return target, load_bundle(target)


def noise_by_split(folder: Path, bundle: Bundle, samples: Path) -> dict[str, float]:
    """By split, the largest error of a task's outputs relative to the float model's."""
    images = load_samples(samples, 1).images[:16]
    exact = float_outputs(folder, bundle, images, lambda what, done, total: None)
    found = deployed_outputs(folder, bundle, bundle.splits, images, lambda what, done, total: None)
    return {
        split: max(float(np.linalg.norm(outputs[task] - exact[task]) / np.linalg.norm(exact[task])) for task in exact)
        for split, outputs in found.items()
    }


def tensor_types(content: bytes) -> set[int]:
    """Types of all tensors but the int32 ones: shapes and axes are int32 in every file."""
    tensors = [tensor for subgraph in read_model(content).subgraphs for tensor in subgraph.tensors]
    return {tensor.type for tensor in tensors} - {TensorType.INT32}


@pytest.mark.parametrize(
    ("precision", "wire", "types", "limit"),
    [
        ("fp32", "float32", {TensorType.FLOAT32}, 1e-5),
        ("int16x8", "int16", {TensorType.INT16, TensorType.INT8, TensorType.INT64}, 0.02),
    ],
)
def test_a_tflite_bundle_of_another_precision(
    precision: str, wire: str, types: set[int], limit: float, tiny_model: Path, tiny_samples: Path, tmp_path: Path
) -> None:
    recipe = Recipe(precision, "minmax")
    folder, bundle = built(tiny_model, tiny_samples, tmp_path / "b", "linux-x86-64", recipe)
    assert bundle.precision == precision
    assert {tensor.dtype for split in bundle.splits[1:] for tensor in split.tensors} == {wire}
    assert tensor_types((folder / bundle.edge_files[0]).read_bytes()) == types
    noise = noise_by_split(folder, bundle, tiny_samples)
    assert noise.pop(bundle.splits[0].id) < 1e-5
    assert max(noise.values()) < limit, noise


def test_an_int8_bundle(tiny_bundle: Path, tiny_samples: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    assert tensor_types((tiny_bundle / bundle.edge_files[0]).read_bytes()) == {TensorType.INT8}
    noise = noise_by_split(tiny_bundle, bundle, tiny_samples)
    assert noise.pop(bundle.splits[0].id) < 1e-5
    assert max(noise.values()) < 0.1, noise


def test_a_layer_stays_in_float_and_only_that(tiny_model: Path, tiny_samples: Path, tmp_path: Path) -> None:
    recipe = Recipe(ranges="minmax", keep_float=("blocks.1",))
    folder, bundle = built(tiny_model, tiny_samples, tmp_path / "b", "linux-x86-64", recipe)
    kept = bundle.quantisation.keep_float
    assert len(kept) == 1
    content = (folder / bundle.edge_files[0]).read_bytes()
    named = {name.partition("/")[2].rstrip("'") for _, name in float_tensors(content)}
    model = load_model(tiny_model)
    around = {kept[0], *model.graph.nodes[model.graph.producer[kept[0]]].input}
    conv = model.graph.nodes[model.graph.producer[kept[0]]].input[0]
    around |= set(model.graph.nodes[model.graph.producer[conv]].input)
    assert kept[0] in " ".join(named)
    made = {one for one in named if one in model.graph.producer}
    assert made <= around, made
    # The edge half of the first split ends before that layer, so it converts nothing.
    counted = count_operators(content)
    assert "QUANTIZE" not in counted[bundle.splits[1].id]
    assert counted["local"]["QUANTIZE"] >= 1
    assert counted["local"]["DEQUANTIZE"] >= 1
    assert all(tensor.dtype == "int8" for split in bundle.splits[1:] for tensor in split.tensors)
    assert counted["local"]["CONV_2D float"] == 1
    assert "CONV_2D float" not in counted[bundle.splits[1].id]
    assert max(noise_by_split(folder, bundle, tiny_samples).values()) < 0.1


@pytest.fixture(scope="module")
def qdq(tiny_model: Path, tiny_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    target = tmp_path_factory.mktemp("qdq") / "b"
    return built(tiny_model, tiny_samples, target, "jetson-orin-nano", Recipe(ranges="minmax"))


def test_a_qdq_bundle_runs_as_one_pipeline(qdq: tuple[Path, Bundle], tiny_samples: Path) -> None:
    folder, bundle = qdq
    assert {split.edge for split in edge_splits(bundle.splits).values()} == set(bundle.edge_files)
    assert len(bundle.edge_files) == 3
    noise = noise_by_split(folder, bundle, tiny_samples)
    assert noise.pop(bundle.splits[0].id) < 1e-5
    assert max(noise.values()) < 0.1, noise
    for split in bundle.splits[1:]:
        assert all((wire.dtype, wire.zero_point, wire.layout) == ("int8", 0, "NCHW") for wire in split.tensors)


def test_one_table_gives_every_scale_of_both_formats(qdq: tuple[Path, Bundle], tiny_bundle: Path) -> None:
    """The TFLite side is `test_every_scale_follows_from_the_table`; here the Q/DQ graphs, from numpy alone."""
    folder, bundle = qdq
    table = read_json(RangeTable, folder / "calibration" / "ranges.json")
    # Names are the same ones: those of model.onnx.
    assert table.ranges.keys() == read_json(RangeTable, tiny_bundle / "calibration" / "ranges.json").ranges.keys()
    checked = 0
    for path in bundle.edge_files:
        model = onnx.load(folder / path)
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type != "QuantizeLinear":
                continue
            scale, zero = constants[node.input[1]], constants[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
            if node.input[0] in constants:
                weight = constants[node.input[0]]
                expected = np.abs(weight.reshape(weight.shape[0], -1)).max(axis=1) / 127
                np.testing.assert_allclose(scale, expected, rtol=1e-6)
            else:
                name = node.input[0].removesuffix("/real")
                np.testing.assert_allclose(scale, table.ranges[name].magnitude / 127, rtol=1e-6)
            checked += 1
    assert checked >= 20


@pytest.fixture(scope="module")
def inputs(tiny_model: Path, tiny_samples: Path) -> list[np.ndarray]:
    spec = load_model(tiny_model).info.declared()
    with calibration_set(str(tiny_samples), 1, 20, Path()) as data:
        return list(data.inputs(spec))


@pytest.fixture(scope="module")
def edge(tiny_model: Path, inputs: list[np.ndarray]) -> FloatEdge:
    graph = load_model(tiny_model).graph
    prepared = prepare(graph, (), iter(inputs), Recipe(ranges="minmax"), lambda done: None)
    return float_edge(prepared, {"local": graph.outputs}, inputs[:3])


def noise_of(content: bytes, edge: FloatEdge, inputs: list[np.ndarray]) -> float:
    """The largest error of a task's outputs relative to the float file's."""
    exact, found = (TfliteRun(one, "local").all(inputs) for one in (edge.floating.content, content))
    return max(float(np.linalg.norm(found[task] - exact[task]) / np.linalg.norm(exact[task])) for task in exact)


def test_half_precision_weights(edge: FloatEdge, inputs: list[np.ndarray]) -> None:
    content = fp16(edge.floating, edge.tables["minmax"])
    assert tensor_types(content) == {TensorType.FLOAT32, TensorType.FLOAT16}
    assert len(content) < 0.8 * len(edge.floating.content)
    assert 0 < noise_of(content, edge, inputs) < 2e-3


def test_a_spoiled_range_is_noticed_in_the_output(edge: FloatEdge, inputs: list[np.ndarray]) -> None:
    """The counter-check of the limits above: one range a hundred times too wide shows."""
    table = edge.tables["minmax"]
    name = next(node.output[0] for node in edge.graph.nodes if node.op_type == "Clip")
    wide = replace(table.ranges[name], max=100 * table.ranges[name].max)
    spoiled = replace(table, ranges={**table.ranges, name: wide})
    good, bad = (noise_of(int8(edge.floating, one), edge, inputs) for one in (table, spoiled))
    assert bad > 3 * good
