"""Q/DQ edge graphs go through TensorRT's own parser (that of TensorRT-RTX, which needs no GPU to parse and build).

Necessary, not sufficient: the parser is newer than those on boards, and nothing runs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
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
from tensorrt_parser import errors, refusals_of_the_parser

from boards.kinds import load_kind
from calib.qdq.emit import emit
from calib.qdq.keep import float_layers
from calib.qdq.legal import refusals
from calib.qdq.plan import plan, plan_fp16
from export.cuts import multi_tensor_cuts, single_tensor_cuts
from export.external import SharedWeights
from export.graph import Graph
from export.opset import lower_opset, opset_of

pytestmark = [pytest.mark.trtrtx, pytest.mark.slow]

FAMILIES = (
    "unet",
    "vit",
    "depths",
    "two_scales",
    "shared",
    "resnet18_two_heads",
    "mobilenet_v3_small_two_heads",
    "efficientnet_lite0_two_heads",
)

OPSETS = (13, 17, 18)
"""That bundles are written in: for TensorRT from 8.2 on, from 8.5 on, from 10 on."""

WRITTEN = [(name, opset) for name in FAMILIES for opset in OPSETS if (name, opset) != ("vit", 13)]
"""LayerNormalization began in opset 17."""


@pytest.mark.parametrize(("name", "opset"), WRITTEN)
def test_whole_networks_parse_and_build_by_path(name: str, opset: int, tmp_path: Path) -> None:
    graph = exported(name)
    table = observed(graph, images(graph, 2))
    older = Graph(lower_opset(graph.model, opset))
    plans = {
        "fp16": plan_fp16(older, older.outputs, table),
        "int8": plan(older, older.outputs, table, float_layers(older, "float")),
        "int8-depthwise": plan(older, older.outputs, table, float_layers(older, "int8")),
    }
    weights = SharedWeights("weights.bin")
    for form, planned in plans.items():
        model = emit(older, planned)
        assert (opset_of(model), model.ir_version <= 8) == (opset, True)
        weights.take(model)
        (tmp_path / f"{form}.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "weights.bin").write_bytes(weights.content)
    for form in plans:
        assert errors(tmp_path / f"{form}.onnx") == []


@pytest.mark.parametrize("name", FAMILIES[-3:])
def test_every_split_is_legal_and_parsed_and_some_are_built(name: str) -> None:
    kind = load_kind("jetson-orin-nano")
    releases = [system.runtimes["tensorrt"] for system in kind.systems]
    exact = exported(name)
    graph = Graph(lower_opset(exact.model, 17))
    table = observed(exact, images(exact, 2))
    kept = float_layers(graph, "float")
    cuts = single_tensor_cuts(graph)
    assert len(cuts) > 20
    for number, cut in enumerate(cuts):
        for planned in (plan(graph, cut.crossing, table, kept), plan_fp16(graph, cut.crossing, table)):
            model = emit(graph, planned)
            assert refusals(model, kind, releases) == ()
            assert (errors if number % 8 == 0 else refusals_of_the_parser)(model) == []


def test_halves_that_send_several_int8_tensors_parse_and_build() -> None:
    graph = exported("unet")
    table = observed(graph, images(graph, 2))
    for where in multi_tensor_cuts(graph)[::12]:
        model = emit(graph, plan(graph, where.crossing, table))
        assert {value.type.tensor_type.elem_type for value in model.graph.output} == {onnx.TensorProto.INT8}
        assert errors(model) == []
        assert errors(lower_opset(model, 17)) == []


def test_small_graphs_parse_and_build() -> None:
    exact, table = whole_numbers(0)
    assert errors(emit(exact, plan(exact, ["sum", "y"], table))) == []
    for graph in (concatenated(), linear_gate(), shortcut(shortcut_first=True)):
        assert errors(emit(graph, plan(graph, graph.outputs, even_table(graph)))) == []


@pytest.mark.parametrize(
    ("constant", "value", "words"),
    [
        ("r1/zero", np.asarray(3, np.int8), "Non-zero zero point is not supported"),
        ("r1/scale", np.asarray(0, np.float32), "must all be positive"),
    ],
)
def test_what_our_own_check_refuses_would_not(constant: str, value: np.ndarray, words: str) -> None:
    graph, table = whole_numbers(0)
    model = emit(graph, plan(graph, graph.outputs, table))
    for tensor in model.graph.initializer:
        if tensor.name == constant:
            tensor.CopyFrom(numpy_helper.from_array(value, constant))
    found = errors(model)
    assert found
    assert words in found[0]
