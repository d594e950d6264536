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
    "type": Case("type", 'input "x" is of type "int16", which TensorRT does not have', "whole numbers to int32"),
    "float64": Case("type", 'output "y" is of type "float64", which TensorRT refuses or takes for', "to float32"),
    "dynamic": Case("dynamic", 'input "x" has the open shape "batchx3x8x8"', "--input"),
    "operator": Case(
        "operator", 'Det that makes "y" is not read by the parser of TensorRT 8.5.2 and 8.2.1', "a split in"
    ),
    "opset": Case(
        "opset",
        'of opset "18"; TensorRT 8.5.2 reads up to 17, TensorRT 8.2.1 reads up to 13',
        "opset 13: splitboard build",
    ),
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


@pytest.mark.parametrize("release", ["7.1", "9", "9.9", "99", "8.0", "10.2", "12.1"])
def test_releases_that_are_not_known_are_refused(release: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["check-onnx", str(INVALID / "legal.onnx"), "--board", "jetson-orin-nano", "--tensorrt"]
    assert run([*argv, release]) == 3
    said = capsys.readouterr().err
    assert f'TensorRT "{release}" reads is not known' in said
    assert "Try: 8.x from 8.2 on, 10.x from 10.3 on, 11.x from 11.0 on" in said
    for no_release in ("newest", "10.x", "-8", ""):
        assert run([*argv, no_release]) == 3
        assert f'"{no_release}" is no release' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("named", "judged", "opset"), [("8", "8.2", 13), ("10", "10.3", 21), ("11", "11.0", 25), ("10.14.1", "10.14.1", 23)]
)
def test_a_major_alone_is_its_oldest_release(
    named: str, judged: str, opset: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make = maker()
    onnx.save(make.one_operator("Relu", opset=26), tmp_path / "graph.onnx")
    argv = ["check-onnx", str(tmp_path / "graph.onnx"), "--board", "jetson-orin-nano", "--tensorrt", named]
    assert run(argv) == 1
    said = capsys.readouterr().out
    assert f"(TensorRT {judged}):" in said
    assert f"TensorRT {judged} reads up to {opset}\n" in said


def test_releases_are_named_as_the_user_does(capsys: pytest.CaptureFixture[str]) -> None:
    graph = str(INVALID / "operator.onnx")
    assert run(["check-onnx", graph, "--board", "jetson-orin-nano", "--tensorrt", "10.16.2"]) == 1
    said = capsys.readouterr().out
    assert "Not legal for jetson-orin-nano (TensorRT 10.16.2):" in said
    assert "is not read by the parser of TensorRT 10.16.2\n" in said
    stored = onnx.load(INVALID / "stored_weights.onnx")
    (alone,) = refusals(stored, load_kind("jetson-orin-nano"), ["8.5.2"])
    assert str(alone).endswith("TensorRT 8.5.2 takes none")
    (both,) = refusals(stored, load_kind("jetson-orin-nano"), ["10.3.0", "8.6.2", "8.5.2"])
    assert str(both).endswith("TensorRT 8.6.2 and 8.5.2 take none")


@pytest.mark.parametrize("content", [None, b"", b"not a graph", ModelProto(ir_version=7).SerializeToString()])
def test_what_is_no_graph_is_refused(content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "graph.onnx"
    if content is not None:
        path.write_bytes(content)
    assert run(["check-onnx", str(path), "--board", "jetson-nano"]) == 3
    said = capsys.readouterr().err
    assert f'"{path}"' in said
    assert "Try: " in said


def shaped(model: ModelProto) -> ModelProto:
    """With a shape of the output where none can be inferred; ONNX asks for one."""
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3, 8, 8)))
    return model


def test_the_suffix_does_not_matter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The package `onnx` would choose its parser by it."""
    path = tmp_path / "graph.json"
    path.write_bytes((INVALID / "legal.onnx").read_bytes())
    assert run(["check-onnx", str(path), "--board", "jetson-orin-nano"]) == 0
    path.write_text('{"format": 1}', encoding="utf-8")
    capsys.readouterr()
    assert run(["check-onnx", str(path), "--board", "jetson-orin-nano"]) == 3
    assert capsys.readouterr().err.startswith(f'error: "{path}" is not a readable ONNX file: ')


def test_what_onnx_refuses_is_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, path = maker(), tmp_path / "graph.onnx"
    for node, why in (
        (helper.make_node("Relu", ["nobody"], ["y"]), "nobody"),
        (helper.make_node("Nope", ["x"], ["y"]), "No Op registered for Nope"),
        (helper.make_node("Relu", ["x"], ["y"], alpha=1.0), "Unrecognized attribute: alpha"),
    ):
        path.write_bytes(shaped(make.model([node], {})).SerializeToString())
        assert run(["check-onnx", str(path), "--board", "jetson-orin-nano"]) == 3
        error, *tries = capsys.readouterr().err.splitlines()
        assert error.startswith(f'error: "{path}" is not valid ONNX: ')
        assert why in error
        assert all(line.startswith("Try: ") for line in tries)


def test_operators_of_other_domains_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, path = maker(), tmp_path / "graph.onnx"
    nodes = [
        helper.make_node("Foo", ["x"], ["a"], domain="custom"),
        helper.make_node("Foo", ["a"], ["b"], domain="custom"),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    model = shaped(make.model(nodes, {}))
    onnx.save(model, path)
    argv = ["check-onnx", str(path), "--board", "jetson-orin-nano"]
    assert run(argv) == 0
    assert capsys.readouterr().out.endswith("\nNot judged: 1 operator of another domain: custom::Foo\n")
    assert run([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_judged"] == ["custom::Foo"]
    model.graph.node[1].op_type = "Bar"
    onnx.save(model, path)
    assert run(argv) == 0
    assert "Not judged: 2 operators of other domains: custom::Foo, custom::Bar\n" in capsys.readouterr().out


def test_a_folder_is_told_from_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["check-onnx", str(tmp_path), "--board", "jetson-orin-nano"]
    assert run(argv) == 3
    assert f'"{tmp_path}" is a folder' in capsys.readouterr().err
    graph = tmp_path / "edge" / "all.int8.op17.onnx"
    graph.parent.mkdir()
    graph.write_bytes(b"")
    assert run(argv) == 3
    assert f"Try: {graph}\n" in capsys.readouterr().err


def test_what_is_alike_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five operators with the same fault, and one with another."""
    make, path = maker(), tmp_path / "graph.onnx"
    constants = {"s": np.array(1, np.float32), "z": np.array(0, np.uint8)}
    names = ["x", *(f"t{number}" for number in range(4)), "y"]
    nodes = [node for source, target in pairwise(names) for node in _uint8_pair(source, target)]
    onnx.save(make.model(nodes, constants, shape=("n", 3, 8, 8)), path)
    argv = ["check-onnx", str(path), "--board", "jetson-orin-nano"]
    assert run(argv) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["unsigned", "DequantizeLinear", "QuantizeLinear"]
    assert lines[4].split() == ["and", "7", "more", "(--json", "lists", "all)"]
    assert lines[5].split()[0] == "Change:"
    assert lines[6].split()[0] == "dynamic"
    assert lines[7].split()[0] == "Change:"
    assert len(lines) == 8
    assert run([*argv, "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["refusals"]) == 11


def _uint8_pair(source: str, target: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [source, "s", "z"], [f"{target}/q"]),
        helper.make_node("DequantizeLinear", [f"{target}/q", "s", "z"], [target]),
    ]


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
    assert parser_of("11.4").tensorrt == "11.0"
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
