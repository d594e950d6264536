"""Every precision and both formats, built and run: what the files hold, and that both halves fit together."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from ai_edge_litert.schema_py_generated import TensorType
from graphs import made_of
from onnx import helper, numpy_helper

from boards.kinds import load_kind
from calib.artefact import count_operators, float_tensors, read_model
from calib.dataset import MOST_IMAGES, calibration_set
from calib.diagnose.qdq import QdqVariants
from calib.diagnose.rebuild import rebuild
from calib.gate.deployed import deployed_outputs, float_outputs
from calib.interpret import TfliteRun
from calib.quantise import fp16, int8
from calib.ranges import RangeTable
from calib.recipe import Recipe, prepare
from calib.tflite_edge import FloatEdge, float_edge
from export.choice import choose
from export.exported import ExportRequest
from export.exporter import export_model
from export.graph import Graph
from export.model import Model, load_model
from export.opset import opset_of
from export.spec import ModelSpec
from export.splits import list_splits
from runtime_edge.engines.engine import edge_splits
from splitboard.cli.build import BuildRequest, build_bundle, build_output, check_depthwise
from splitboard.cli.onnx_half import oldest_form, refused_by
from splitboard.contract.bundle import Bundle, load_bundle
from splitboard.contract.decode import read_json
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import Preprocessing, normalise
from splitboard.contract.samples import load_samples


def built(
    model_folder: Path, samples: Path, target: Path, kind: str, recipe: Recipe, depthwise: str = "float"
) -> tuple[Path, Bundle]:
    model = load_model(model_folder)
    splits = list_splits(model)
    request = BuildRequest(choose(model, splits, "blocks.0,blocks.1"), load_kind(kind), recipe, depthwise=depthwise)
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


@pytest.mark.parametrize(
    ("kind", "precision", "opset", "limit"),
    [
        ("jetson-nano", "fp16", 13, 2e-3),
        ("jetson-tx2", "fp32", 13, 1e-6),
        ("jetson-xavier-nx", "fp16", 13, 2e-3),
        ("jetson-xavier-nx", "int8", 17, 0.1),
        ("jetson-thor", "int8", 18, 0.1),
        ("jetson-thor", "fp32", 18, 1e-6),
    ],
)
def test_a_jetson_bundle_of_every_precision(
    kind: str, precision: str, opset: int, limit: float, tiny_model: Path, tiny_samples: Path, tmp_path: Path
) -> None:
    folder, bundle = built(tiny_model, tiny_samples, tmp_path / "b", kind, Recipe(precision, "minmax"))
    ids = [split.id for split in bundle.splits[1:-1]]
    assert bundle.edge_files == tuple(f"edge/{one}.{precision}.op{opset}.onnx" for one in (*ids, "local"))
    for path in bundle.edge_files:
        model = onnx.load(folder / path)
        assert opset_of(model) == opset
        assert model.ir_version <= 8
    assert bundle.edge_input.dtype == "float32"
    wires = {tensor.dtype for split in bundle.splits[1:] for tensor in split.tensors}
    assert wires == {"int8" if precision == "int8" else "float32"}
    noise = noise_by_split(folder, bundle, tiny_samples)
    assert noise.pop(bundle.splits[0].id) < 1e-5
    assert max(noise.values()) < limit, noise
    assert (max(noise.values()) > 1e-5) == (precision != "fp32")
    assert not bundle.notes


def test_the_weights_of_all_splits_are_stored_once(qdq: tuple[Path, Bundle], tiny_model: Path) -> None:
    folder, bundle = qdq
    (weights,) = (one for one in bundle.artifacts if one.format == "onnx-weights")
    assert weights.path == "edge/weights.int8.bin"
    graph = load_model(tiny_model).graph
    large = sum(len(tensor.raw_data) for tensor in graph.constants.values() if len(tensor.raw_data) >= 1024)
    assert large <= weights.size_bytes < large + 64 * len(graph.constants)
    for path in bundle.edge_files:
        assert (folder / path).stat().st_size < 40_000
        for tensor in onnx.load(folder / path, load_external_data=False).graph.initializer:
            assert (tensor.data_location == onnx.TensorProto.EXTERNAL) == (not len(tensor.raw_data))


def test_tensorrt_8_gets_the_scales_of_the_graph_as_a_cache(qdq: tuple[Path, Bundle]) -> None:
    folder, bundle = qdq
    first, *lines = (folder / "calibration/trt8.cache").read_text().splitlines()
    assert first == "TRT-8602-EntropyCalibration2"  # of the newest TensorRT 8 that an Orin Nano has
    told = {name: np.frombuffer(bytes.fromhex(digits), ">f4")[0] for name, digits in (x.split(": ") for x in lines)}
    wires = {wire.name: wire.scale for split in bundle.splits for wire in split.tensors if wire.dtype == "int8"}
    assert wires
    assert {name: told[name] for name in wires} == {name: np.float32(scale) for name, scale in wires.items()}


def test_a_self_check_of_floats_leaves_room_for_another_runtime(
    tiny_model: Path, tiny_samples: Path, tmp_path: Path
) -> None:
    folder, bundle = built(tiny_model, tiny_samples, tmp_path / "b", "jetson-thor", Recipe("fp32"))
    with np.load(folder / bundle.golden) as golden:
        for task, tolerance in bundle.golden_tolerance.items():
            assert tolerance == pytest.approx(0.01 * np.abs(golden[task]).max())


class Gated(torch.nn.Module):
    """A depthwise convolution with squeeze-excite behind it, between two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU6())
        self.depthwise = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, 1, 1, groups=8), torch.nn.ReLU6())
        self.squeeze, self.excite = torch.nn.Conv2d(8, 4, 1), torch.nn.Conv2d(4, 8, 1)
        self.project = torch.nn.Conv2d(8, 12, 1)
        self.shape, self.colour = torch.nn.Linear(12, 2), torch.nn.Linear(12, 3)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.depthwise(self.stem(image))
        x = x * F.hardsigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = F.relu(self.project(x)).mean((2, 3))
        return self.shape(x), self.colour(x)


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("gated")
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter says that it is the older one
        torch.onnx.export(
            Gated().eval(),
            (torch.zeros(1, 3, 32, 32),),
            str(folder / "gated.onnx"),
            dynamo=False,
            opset_version=18,
            input_names=["image"],
            output_names=["shape", "colour"],
        )
    spec = ModelSpec(Preprocessing(height=32, width=32, source_channels=1, mean=(0.5,) * 3, std=(0.5,) * 3))
    export_model(ExportRequest(folder / "gated.onnx", "gated", spec=spec), folder / "model")
    return load_model(folder / "model")


@pytest.mark.parametrize(("depthwise", "n_fp16", "n_int8"), [("float", 3, 2), ("int8", 2, 3)])
def test_gates_stay_float_and_depthwise_convolutions_on_request(
    depthwise: str, n_fp16: int, n_int8: int, gated: Model, tiny_samples: Path, tmp_path: Path
) -> None:
    splits = list_splits(gated)
    point = next(point.id for point in splits.proper if point.id[0] == "s")
    request = BuildRequest(choose(gated, splits, point), load_kind("jetson-orin-nano"), depthwise=depthwise)
    with calibration_set(str(tiny_samples), 1, MOST_IMAGES, tmp_path) as data:
        build_bundle(gated, splits, request, data, tmp_path / "b", lambda what, done, total: None)
    bundle = load_bundle(tmp_path / "b")
    counted = bundle.operators["local"]
    assert (counted["Conv fp16"], counted["Conv int8"]) == (n_fp16, n_int8)
    assert counted["GlobalAveragePool fp16"] == 1  # of the gate
    assert counted["Gemm int8"] == 2
    assert len(bundle.quantisation.keep_float) == n_fp16
    assert bundle.notes[-1].startswith(f"{n_fp16} depthwise and squeeze-excite layers are in fp16")
    assert max(noise_by_split(tmp_path / "b", bundle, tiny_samples).values()) < 0.1
    # What is float by itself is known when the bundle is taken apart again.
    local = bundle.splits[-1]
    variants = QdqVariants(tmp_path / "b", str(local.edge), rebuild(tmp_path / "b", bundle, local))
    assert variants.deviation < 1e-3
    assert not variants.switchable & set(bundle.quantisation.keep_float)
    with np.load(tmp_path / "b" / bundle.golden) as golden:
        image = normalise(golden["images"][:1], bundle.preprocessing)
    assert {value.dtype for value in variants.tensors(image).values()} == {np.dtype(np.float32)}


def normalised() -> Graph:
    nodes = [helper.make_node("LayerNormalization", ["x", "one"], ["n"]), helper.make_node("Relu", ["n"], ["y"])]
    return made_of(nodes, constants={"one": np.ones(4, np.float32)}, shape=(1, 4))


def test_a_model_that_has_no_oldest_form_goes_to_the_releases_that_read_it() -> None:
    """LayerNormalization began in opset 17; TensorRT reads it from 8.6 on."""
    for name, opset, unable in (
        ("jetson-agx-xavier", 17, ["JetPack 5.1", "JetPack 4.6"]),
        ("jetson-orin-nx", 17, ["JetPack 5.1"]),
        ("jetson-thor", 18, []),
    ):
        kind = load_kind(name)
        written = oldest_form(normalised(), kind.systems)
        assert opset_of(written.model) == opset
        notes = refused_by(written.model, kind, kind.systems)
        assert [note.partition(" (")[0] for note in notes] == unable
        assert all('whole model: LayerNormalization that makes "n" is not read' in note for note in notes)
    with pytest.raises(UserError, match="No Previous Version of LayerNormalization") as error:
        oldest_form(normalised(), load_kind("jetson-nano").systems)
    assert "newer TensorRT" in error.value.tries[0]


@pytest.mark.parametrize(
    ("kind", "precision", "depthwise", "says"),
    [
        ("jetson-orin-nano", "int8", "fp16", 'unknown depthwise "fp16"'),
        ("jetson-nano", "fp16", "float", '--depthwise "float" is about INT8 halves for TensorRT, and this is fp16'),
        ("rpi5", "int8", "int8", 'this is int8 for "rpi5"'),
    ],
)
def test_a_word_on_depthwise_that_changes_nothing_is_refused(
    kind: str, precision: str, depthwise: str, says: str
) -> None:
    with pytest.raises(UserError, match=says) as error:
        check_depthwise(load_kind(kind), precision, depthwise)
    assert error.value.tries


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
