"""What is read from an engine: layers, what of INT8 was not done, and why INT8 is slower."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from trt_bundles import edge_model

from runtime_edge.tensorrt.compare import Row, Side, compare
from runtime_edge.tensorrt.findings import Conversion, NotInt8, findings, reports
from runtime_edge.tensorrt.graph import Graph, Node, read_graph
from runtime_edge.tensorrt.inspect import precision_of, read_layers
from splitboard.contract.errors import UserError

GOLDEN = Path(__file__).parent / "inspector"
VERSIONS = ("8.5", "10.3")
PW = "block.pw.w + block.pw.w/quantize + /block/pw/Conv"
COPY = f"Reformatting CopyNode for Input Tensor 0 to {PW}"


def pair(tensor: str) -> list[Node]:
    return [
        Node(f"{tensor}/quantize", "QuantizeLinear", (tensor, "s", "z"), (f"{tensor}/quantized",)),
        Node(f"{tensor}/dequantize", "DequantizeLinear", (f"{tensor}/quantized", "s", "z"), (f"{tensor}/dequantized",)),
    ]


def network(*, quantised: bool) -> Graph:
    """The one of the golden files."""
    end = "/dequantized" if quantised else ""
    quantisers = [one for name in ("x", "stem.w", "stem", "block.dw.w", "dw", "block.pw.w") for one in pair(name)]
    return Graph(
        [
            *(quantisers if quantised else []),
            Node("/stem/Conv", "Conv", (f"x{end}", f"stem.w{end}"), ("c1",)),
            Node("/stem/Relu", "Relu", ("c1",), ("stem",)),
            Node("/block/dw/Conv", "Conv", (f"stem{end}", f"block.dw.w{end}"), ("c2",)),
            Node("/block/dw/Relu", "Relu", ("c2",), ("dw",)),
            Node("/block/pw/Conv", "Conv", (f"dw{end}", f"block.pw.w{end}"), ("pw/real",)),
            Node("/head/GlobalAveragePool", "GlobalAveragePool", ("pw/real",), ("pool",)),
            Node("/head/Flatten", "Flatten", ("pool",), ("flat",)),
            Node("/head/Gemm", "Gemm", ("flat", "head.w"), ("y",)),
        ]
    )


def side(version: str, precision: str, microseconds: list[float]) -> Side:
    graph = network(quantised=precision == "int8")
    layers = read_layers((GOLDEN / f"{version}-{precision}.json").read_text(), graph)
    times = {layer.name: round(us * 1e3) for layer, us in zip(layers, microseconds, strict=True)}
    return Side(layers, times, graph)


# The graph's nodes without the package onnx


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_nodes_are_those_that_onnx_reads(tmp_path: Path, precision: str) -> None:
    model = edge_model("s02", precision)
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    found = read_graph(tmp_path / "m.onnx")
    expected = [
        Node(n.name or f"node_of_{n.output[0]}", n.op_type, tuple(n.input), tuple(n.output)) for n in model.graph.node
    ]
    assert list(found.nodes.values()) == expected
    assert [node.name for node in found.int8] == (["first", "second"] if precision == "int8" else [])
    assert found.is_quantised == (precision == "int8")


def test_every_kind_of_field_is_read_over(tmp_path: Path) -> None:
    """Floats, packed integers, long names, other languages, optional inputs, weights inside of the file."""
    name = "größe/" + 300 * "x"
    nodes = [
        helper.make_node("Clip", ["x", "", "most"], ["c"], name=name),
        helper.make_node("LeakyRelu", ["c"], ["r"], alpha=0.5, doc_string="why"),
        helper.make_node("Resize", ["r", "", "scales"], ["y"], mode="nearest", axes=[2, 3], nearest_mode="floor"),
    ]
    constants = {"most": np.float32(3), "scales": np.array([2, 2], np.float32)}
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(model, tmp_path / "m.onnx")
    found = read_graph(tmp_path / "m.onnx")
    assert list(found.nodes) == [name, "node_of_r", "node_of_y"]
    assert found.nodes[name].inputs == ("x", "", "most")


@pytest.mark.parametrize("data", [b"", b"no model", b"\x3a\x7f", b"\xff" * 40])
def test_what_is_no_onnx(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(UserError, match="is no ONNX file"):
        read_graph(tmp_path / "m.onnx")
    with pytest.raises(UserError, match="is no ONNX file"):
        read_graph(tmp_path / "missing.onnx")


def test_a_file_cut_short(tmp_path: Path) -> None:
    data = edge_model("s02", "int8").SerializeToString()
    for end in range(0, len(data), 7):
        (tmp_path / "m.onnx").write_bytes(data[:end])
        with pytest.raises(UserError, match="is no ONNX file"):
            read_graph(tmp_path / "m.onnx")


# Layers


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format.", "INT8"),
        ("Row major linear FP32", "FP32"),
        ("Channel major FP16 format where channel % 8 == 0", "FP16"),
        ("Half", "FP16"),
        ("Float", "FP32"),
        ("BFloat16", "BF16"),
        ("Int64", "INT64"),
        ("N/A due to dynamic shapes", "unknown"),
    ],
)
def test_formats(words: str, precision: str) -> None:
    assert precision_of(words) == precision


@pytest.mark.parametrize("version", VERSIONS)
def test_layers_of_both_forms(version: str) -> None:
    layers = side(version, "int8", [1] * 7).layers
    assert [layer.precision for layer in layers if not layer.is_conversion] == ["INT8", "FP16", "INT8", "FP16"]
    assert [layer.by_qdq for layer in layers] == [True, False, False, True, False, False, False]
    assert [layer.serves for layer in layers] == [None, None, None, None, PW, None, None]
    assert {"/stem/Conv", "/stem/Relu"} <= set(layers[1].nodes)
    assert "/head/Gemm" in layers[6].nodes


@pytest.mark.parametrize("version", VERSIONS)
def test_what_of_int8_was_not_done(version: str) -> None:
    one = side(version, "int8", [5, 20, 30, 6, 7, 40, 8])
    found = findings(one.layers, one.graph, one.times)
    assert found.precisions == {"INT8": 2, "FP16": 2}
    assert found.not_int8 == (NotInt8("/block/dw/Conv", one.layers[2].name, "FP16"),)
    assert found.conversions == (
        Conversion("x/quantize", "FP32>INT8", "x/quantize", 5000),
        Conversion("dw/quantize", "FP16>INT8", "dw/quantize", 6000),
        Conversion(COPY, "INT8>INT8", PW, 7000),
    )
    assert [one.precision for one in reports(one.layers, one.times)][:2] == ["FP32>INT8", "INT8"]
    other = side(version, "fp16", [1] * 5)
    plain = findings(other.layers, other.graph, {})
    assert (plain.not_int8, plain.conversions, plain.precisions) == ((), (), {"FP16": 4})


def test_an_operator_that_no_layer_names() -> None:
    graph = network(quantised=True)
    layers = read_layers((GOLDEN / "8.5-int8.json").read_text(), graph)
    found = findings([layer for layer in layers if "/stem/Conv" not in layer.nodes], graph, {})
    assert NotInt8("/stem/Conv", "", "unknown") in found.not_int8


@pytest.mark.parametrize("text", ["", "[]", '{"Layers": ["conv1"]}', '{"Layers": [{"LayerType": "x"}]}', "null"])
def test_an_engine_without_details(text: str) -> None:
    with pytest.raises(UserError, match="does not tell its layers"):
        read_layers(text, network(quantised=True))


# Side by side


@pytest.mark.parametrize("version", VERSIONS)
def test_why_int8_is_slower(version: str) -> None:
    int8 = side(version, "int8", [5, 20, 33, 6, 7, 40, 8])
    fp16 = side(version, "fp16", [4, 24, 30, 45, 8])
    rows = compare(int8, fp16)
    assert rows == (
        Row(
            ("/block/pw/Conv",), "INT8", 53000, 45000, 13000, "13.0 us go into conversions around it", ("dw",), ("pw",)
        ),
        Row(("/block/dw/Conv",), "FP16", 33000, 30000, 0, "asked for INT8, runs in FP16", ("stem",), ("c2",)),
        Row(("/head/Gemm",), "FP16", 8000, 8000, 0, "", (), ()),
        Row(("/stem/Conv",), "INT8", 25000, 28000, 5000, "", (), ()),
    )
    assert sum(row.time_ns for row in rows) == sum(int8.times.values())
    assert sum(row.beside_ns for row in rows) == sum(fp16.times.values())


def test_a_kernel_that_is_slower_by_itself() -> None:
    rows = compare(side("8.5", "int8", [5, 40, 33, 6, 7, 40, 8]), side("8.5", "fp16", [4, 24, 40, 60, 8]))
    assert rows[0].operators == ("/stem/Conv",)
    assert rows[0].reason == "its INT8 kernel is the slower one"
    assert [row.reason for row in rows[1:]] == ["", "", ""]


def test_operators_that_one_engine_fused_stay_together() -> None:
    text = json.loads((GOLDEN / "8.5-fp16.json").read_text())
    first, second = text["Layers"][2], text["Layers"][3]
    second["Name"], second["Inputs"] = f"{first['Name']} || {second['Name']}", first["Inputs"]
    del text["Layers"][2]
    graph = network(quantised=False)
    layers = read_layers(json.dumps(text), graph)
    times = dict(zip([layer.name for layer in layers], (4000, 24000, 75000, 8000), strict=True))
    rows = compare(side("8.5", "int8", [5, 20, 33, 6, 7, 40, 8]), Side(layers, times, graph))
    assert rows[0].operators == ("/block/dw/Conv", "/block/pw/Conv")
    assert (rows[0].time_ns, rows[0].beside_ns, rows[0].precision) == (86000, 75000, "FP16+INT8")
    assert rows[0].reason == "asked for INT8, runs in FP16+INT8"
    assert rows[0].remove == ("stem", "dw")


def test_operators_without_names_of_their_own() -> None:
    """They go by their output, which has another name where it is a wire or in half precision."""
    int8, fp16 = side("8.5", "int8", [5, 20, 33, 6, 7, 40, 8]), side("8.5", "fp16", [4, 24, 30, 45, 8])

    def renamed(one: Side, name: str) -> Side:
        old, new = "/block/pw/Conv", f"node_of_pw{name}"
        graph = Graph([node._replace(name=new) if node.name == old else node for node in one.graph.nodes.values()])
        swap = lambda nodes: tuple(new if node == old else node for node in nodes)  # noqa: E731
        return Side(tuple(layer._replace(nodes=swap(layer.nodes)) for layer in one.layers), one.times, graph)

    (row, *_) = compare(renamed(int8, "/real"), renamed(fp16, "/fp16/real"))
    assert (row.operators, row.time_ns, row.beside_ns) == (("node_of_pw",), 53000, 45000)
    assert row.keep_float == ("pw",)
