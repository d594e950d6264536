"""Q/DQ edge graphs go through TensorRT's own parser (that of TensorRT-RTX, which needs no GPU to parse and build).

Necessary, not sufficient: the parser is newer than those on boards, and nothing runs.
"""

from __future__ import annotations

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
from tensorrt_parser import errors

from calib.qdq.emit import emit
from calib.qdq.keep import depthwise_nodes, squeeze_excite_nodes
from calib.qdq.plan import plan
from export.cuts import multi_tensor_cuts
from export.opset import lower_opset

pytestmark = pytest.mark.trtrtx

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

KEEP_THEIR_OPSET = {"vit"}
"""onnx's converter has no older form of the operator Split."""


@pytest.mark.parametrize("name", FAMILIES)
def test_whole_networks_parse_and_build(name: str) -> None:
    graph = exported(name)
    table = observed(graph, images(graph, 2))
    model = emit(graph, plan(graph, graph.outputs, table))
    assert errors(model) == []
    if name not in KEEP_THEIR_OPSET:
        assert errors(lower_opset(model, 17)) == []
    kept = squeeze_excite_nodes(graph) | depthwise_nodes(graph)
    if kept:
        assert errors(emit(graph, plan(graph, graph.outputs, table, kept))) == []


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
