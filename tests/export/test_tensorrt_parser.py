"""Server graphs go through TensorRT's own parser (that of TensorRT-RTX, which needs no GPU to parse and build).

Necessary, not sufficient: the parser is newer than those on boards and servers, and nothing runs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tensorrt_parser import errors

from export.cut import wire_server_graph
from export.model import Model, load_model
from export.opset import lower_opset
from export.splits import list_splits
from splitboard.contract.bundle import TensorSpec

pytestmark = pytest.mark.trtrtx


def server_of(model: Model, split_id: str) -> onnx.ModelProto:
    """With asymmetric wire tensors, as TFLite's are."""
    cut = list_splits(model).cuts[split_id]
    wires = []
    for name in cut.crossing:
        n, c, h, w = model.graph.shapes[name]
        wires.append(TensorSpec(name, (n, h, w, c), "int8", "NHWC", scale=0.05, zero_point=-7))
    return wire_server_graph(model.graph, cut, wires)


@pytest.mark.parametrize("split_id", ["s03", "m01"])
def test_a_server_graph_parses_and_builds(tiny_model: Path, split_id: str) -> None:
    server = server_of(load_model(tiny_model), split_id)
    assert errors(server) == []
    assert errors(lower_opset(server, 17)) == []


def test_the_zero_point_inside_the_operator_would_not(tiny_model: Path) -> None:
    server = server_of(load_model(tiny_model), "s03")
    for tensor in server.graph.initializer:
        if tensor.name.endswith("/zero"):
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(-7, np.int8), tensor.name))
    (error,) = errors(server)
    assert "Non-zero zero point is not supported" in error
