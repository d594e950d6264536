"""Graphs that TensorRT does not take, each a file of ``tests/invalid``; what is written here is none of them."""

from __future__ import annotations

import importlib.util
import json
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from quantised import (  # type: ignore[import-not-found, unused-ignore]
    concatenated,
    even_table,
    exported,
    images,
    linear_gate,
    observed,
    shortcut,
    whole_numbers,
)

from boards.kinds import kind_names, load_kind, systems_for
from calib.qdq.emit import emit
from calib.qdq.legal import quantisation, refusals
from calib.qdq.parsers import PARSERS, parser_of
from calib.qdq.plan import plan
from export.opset import lower_opset
from splitboard.cli.main import run

ROOT = Path(__file__).parents[2]
INVALID = ROOT / "tests" / "invalid"


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make", INVALID / "make.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


class Case(NamedTuple):
    """What a file breaks: rule, and words of the two lines that are printed."""

    rule: str
    wrong: str
    change: str
    board: str = "jetson-xavier-nx"


CASES = {
    "unsigned": Case("unsigned", 'that makes "x/q" has a zero point that is not 0 in int8: uint8', "QInt8"),
    "zero_point": Case("zero-point", 'that makes "x/q" has a zero point that is not 0 in int8: int8 "3"', "symmetric"),
    "int32_bias": Case("int32-bias", 'that makes "b" takes the int32 bias "b/q"', "QuantizeBias=False"),
    "axis": Case("axis", 'Conv that makes "y" has the scales of its weights along axis "1"', "axis 0 of Conv"),
    "axis_of_activations": Case("axis", 'has a scale per channel of "x", which is no constant', "one scale for the"),
    "scale": Case("scale", 'that makes "x/q" has a scale that is not a positive float32: "0"', "calibrate with images"),
    "scale_in_fp16": Case("scale", 'not a positive float32: "0.03125" in float16', "keep scales in float32"),
    "stored_weights": Case("stored-weights", 'weights "w/q", which are INT8 already: TensorRT 8.5.2', "AddQDQPair"),
    "dynamic": Case("dynamic", 'input "x" has the open shape "batchx3x8x8"', "--input"),
    "operator": Case("operator", 'Det that makes "y" is not read by the parser of TensorRT 8.5 and 8.2', "a split in"),
    "opset": Case("opset", 'of opset "18"; TensorRT 8.5 reads up to 17, TensorRT 8.2 reads up to 13', "opset 13"),
    "legal": Case("no-int8", "jetson-nano refuses it: Maxwell (sm_53) has no INT8 hardware", "fp16", "jetson-nano"),
}
"""By name of the file."""


def test_the_files_are_what_the_script_writes() -> None:
    made = maker().GRAPHS
    assert {path.stem for path in INVALID.glob("*.onnx")} == set(made) == set(CASES)
    for name, graph in made.items():
        assert onnx.load(INVALID / f"{name}.onnx") == graph


@pytest.mark.parametrize("name", CASES)
def test_each_file_breaks_one_rule(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    argv = ["check-onnx", str(INVALID / f"{name}.onnx"), "--board", case.board]
    assert run(argv) == 1
    said = capsys.readouterr().out
    assert case.wrong in said
    assert case.change in said
    assert run([*argv, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {one["rule"] for one in found["refusals"]} == {case.rule}


def test_a_legal_graph_is_legal(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["check-onnx", str(INVALID / "legal.onnx"), "--board", "jetson-xavier-nx"]
    assert run(argv) == 0
    assert "Legal for jetson-xavier-nx (TensorRT 8.5.2)" in capsys.readouterr().out  # INT8 goes not to JetPack 4
    assert run([*argv, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["tensorrt"] == ["8.5.2"]
    assert said["refusals"] == []
    schema = ROOT / "docs" / "schema" / "check-onnx-output.schema.json"
    jsonschema.validate(said, json.loads(schema.read_text(encoding="utf-8")))


def test_one_release_alone_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("opset", "stored_weights"):
        argv = ["check-onnx", str(INVALID / f"{name}.onnx"), "--board", "jetson-orin-nano"]
        assert run(argv) == 1
        assert run([*argv, "--tensorrt", "10.3"]) == 0
    capsys.readouterr()
    assert run([*argv, "--tensorrt", "7.1"]) == 3
    assert 'TensorRT "7.1"' in capsys.readouterr().err
    assert run([*argv, "--tensorrt", "newest"]) == 3
    assert '"newest" is no release' in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"not a graph", ModelProto(ir_version=7).SerializeToString()])
def test_what_is_no_graph_is_refused(content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "graph.onnx"
    if content is not None:
        path.write_bytes(content)
    assert run(["check-onnx", str(path), "--board", "jetson-nano"]) == 3
    said = capsys.readouterr().err
    assert f'"{path}"' in said
    assert "Try: " in said


def test_weights_that_are_not_beside_it_are_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "graph.onnx"
    external = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(onnx.load(INVALID / "legal.onnx"), path, **external)
    assert run(["check-onnx", str(path), "--board", "jetson-orin-nano"]) == 0
    (tmp_path / "weights.bin").unlink()
    assert run(["check-onnx", str(path), "--board", "jetson-orin-nano"]) == 3
    assert "weights.bin" in capsys.readouterr().err


def test_a_board_without_tensorrt_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check-onnx", str(INVALID / "legal.onnx"), "--board", "rpi5"]) == 3
    assert '"rpi5" runs no TensorRT' in capsys.readouterr().err


# The rules beyond the files.


def linear(op_type: str, axis: int, **attributes: int) -> ModelProto:
    """A linear layer, or a transposed convolution, with one scale per slice of its weights along an axis."""
    shape = (3, 4, 2, 2) if op_type == "ConvTranspose" else (6, 4)
    weights = np.ones(shape, np.float32)
    make = maker()
    constants = {
        "x/s": np.array(1, np.float32),
        "x/z": np.array(0, np.int8),
        "w": weights,
        "w/s": np.ones(shape[axis], np.float32),
        "w/z": np.zeros(shape[axis], np.int8),
    }
    image = (1, 3, 8, 8) if op_type == "ConvTranspose" else (1, 4) if attributes else (1, 6)
    node = helper.make_node(op_type, ["x/d", "w/d"], ["y"], **attributes)
    made: ModelProto = make.model([*make.pair("x", 1), *make.pair("w", axis), node], constants, shape=image)
    return made


@pytest.mark.parametrize(
    ("op_type", "axis", "attributes", "is_legal"),
    [
        ("Gemm", 1, {}, True),
        ("Gemm", 0, {}, False),
        ("Gemm", 0, {"transB": 1}, True),
        ("Gemm", 1, {"transB": 1}, False),
        ("MatMul", 1, {}, True),
        ("MatMul", 0, {}, False),
        ("MatMul", -1, {}, True),
        ("ConvTranspose", 1, {}, True),
        ("ConvTranspose", 2, {}, False),
    ],
)
def test_scales_lie_along_the_outputs(op_type: str, axis: int, attributes: dict[str, int], is_legal: bool) -> None:
    assert [one.rule for one in quantisation(linear(op_type, axis, **attributes))] == ([] if is_legal else ["axis"])


def test_constants_may_be_operators() -> None:
    """Some exporters write them so."""
    model = onnx.load(INVALID / "zero_point.onnx")
    (zero,) = [tensor for tensor in model.graph.initializer if tensor.name == "x/z"]
    model.graph.initializer.remove(zero)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["x/z"], value=zero))
    assert {one.rule for one in quantisation(model)} == {"zero-point"}


def test_operators_of_inner_graphs_are_read() -> None:
    branch = helper.make_graph(
        [helper.make_node("Det", ["x"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    make = maker()
    flag = numpy_helper.from_array(np.array(True), "flag")
    model = make.model([helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)], {})
    model.graph.initializer.append(flag)
    (refusal,) = refusals(model, load_kind("jetson-orin-nano"), ["10.3"])
    assert refusal.rule == "operator"
    assert 'Det that makes "inner"' in str(refusal)


def test_operators_that_are_not_onnxs_are_left_alone() -> None:
    """They may be plugins."""
    make = maker()
    for node in (
        helper.make_node("EfficientNMS_TRT", ["x"], ["y"]),
        helper.make_node("Det", ["x"], ["y"], domain="user"),
    ):
        assert refusals(make.model([node], {}), load_kind("jetson-orin-nano"), ["8.5"]) == ()


def test_what_parsers_read_grows() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    for older, newer in pairwise(PARSERS):
        assert older.operators <= newer.operators
        assert older.opset <= newer.opset
    assert PARSERS[-1].operators <= known  # no name is misspelt
    assert parser_of("8.2.1").tensorrt == "8.2"
    assert parser_of("8.4").tensorrt == "8.2"
    assert parser_of("10.16.2").tensorrt == "10.15"
    assert parser_of("12").tensorrt == "11.0"
    for never in ("Det", "QLinearConv", "MatMulInteger", "DynamicQuantizeLinear", "Unique", "StringNormalizer"):
        assert not any(never in one.operators for one in PARSERS)
    since = {"Xor": "8.5", "HardSwish": "8.5", "LayerNormalization": "8.6", "Hardmax": "10.3", "STFT": "10.13"}
    for operator, first in since.items():
        assert next(one.tensorrt for one in PARSERS if operator in one.operators) == first


def test_every_jetson_has_parsers() -> None:
    jetsons = [kind for kind in map(load_kind, kind_names()) if kind.format == "onnx"]
    assert len(jetsons) == 8
    for kind in jetsons:
        for system in kind.systems:
            tensorrt = system.runtimes["tensorrt"]
            assert parser_of(tensorrt).tensorrt.split(".")[0] == tensorrt.split(".")[0]


# What is written here, and by others.


def small_graphs() -> list[ModelProto]:
    exact, table = whole_numbers(0)
    made = [emit(exact, plan(exact, ["sum", "y"], table))]
    for graph in (concatenated(), linear_gate(), shortcut(shortcut_first=True)):
        made.append(emit(graph, plan(graph, graph.outputs, even_table(graph))))
    return made


@pytest.mark.parametrize("name", ["unet", "two_scales", "mobilenet_v3_small_two_heads", "efficientnet_lite0_two_heads"])
def test_networks_that_are_written_here_are_legal(name: str) -> None:
    graph = exported(name)
    model = emit(graph, plan(graph, graph.outputs, observed(graph, images(graph, 2))))
    kind = load_kind("jetson-orin-nano")
    releases = [system.runtimes["tensorrt"] for system in systems_for(kind, "int8")]
    assert refusals(lower_opset(model, 17), kind, releases) == ()
    assert {one.rule for one in refusals(model, kind, releases)} == {"opset"}
    assert refusals(model, load_kind("jetson-thor"), ["10.13"]) == ()


def test_small_graphs_that_are_written_here_are_legal() -> None:
    for model in small_graphs():
        assert quantisation(model) == ()


class _Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self) -> None:
        self._left = [{"x": np.random.default_rng(i).normal(size=(1, 3, 8, 8)).astype(np.float32)} for i in range(4)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None


@pytest.mark.filterwarnings("ignore")  # the quantiser's advice
def test_the_defaults_of_onnx_runtimes_quantiser_are_refused(tmp_path: Path) -> None:
    """What a user is most likely to bring: all its defaults at once, and then the four that the rules say to change."""
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    make = maker()
    constants = {name: make.conv_constants()[name] for name in ("w", "b")}
    onnx.save(make.model([helper.make_node("Conv", ["x", "w", "b"], ["y"])], constants), source)
    quantize_static(source, target, _Images(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8)
    kind = load_kind("jetson-xavier-nx")
    found = {one.rule for one in refusals(onnx.load(target), kind, ["8.5"])}
    assert {"unsigned", "int32-bias", "stored-weights"} <= found
    extra = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True}
    types = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
    quantize_static(
        source, target, _Images(), quant_format=QuantFormat.QDQ, per_channel=True, **types, extra_options=extra
    )
    assert refusals(onnx.load(target), kind, ["8.5"]) == ()
