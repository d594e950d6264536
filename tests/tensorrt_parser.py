"""TensorRT's own parser and builder (those of TensorRT-RTX, which need no GPU), for the tests marked trtrtx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

trt: Any = pytest.importorskip(
    "tensorrt_rtx_bindings", reason="pip install tensorrt-rtx-cu12-bindings tensorrt-rtx-cu12-libs"
)


class _Log(trt.ILogger):  # type: ignore[misc]  # the bindings have no types
    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity: Any, message: str) -> None:
        """Errors are read from the parser."""


def errors(graph: onnx.ModelProto | Path) -> list[str]:
    """What the parser has against a graph; builds an engine for one kind of GPU where it has nothing.

    Args:
        graph: a model, or a file, whose weights may lie in another one beside it.
    """
    builder = trt.Builder(_Log())
    network, found = _parsed(builder, graph)
    if found:
        return found
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    assert builder.build_serialized_network(network, config) is not None
    return []


def refusals_of_the_parser(graph: onnx.ModelProto | Path) -> list[str]:
    """What the parser alone has against a graph: no engine is built."""
    return _parsed(trt.Builder(_Log()), graph)[1]


def _parsed(builder: Any, graph: onnx.ModelProto | Path) -> tuple[Any, list[str]]:
    log = _Log()
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    read = parser.parse_from_file(str(graph)) if isinstance(graph, Path) else parser.parse(graph.SerializeToString())
    return network, [] if read else [parser.get_error(i).desc() for i in range(parser.num_errors)]
