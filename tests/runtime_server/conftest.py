from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from serving import Running, running_server

from splitboard.contract.bundle import file_sha256, load_bundle, write_manifest

_WIDTH = 1024  # values of the tiny network's image
_ROWS = 512
_LAYERS = 4


@pytest.fixture(scope="module")
def server(tiny_bundle: Path) -> Iterator[Running]:
    with running_server(tiny_bundle) as running:
        yield running


@pytest.fixture(scope="session")
def slow_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, whose remote only also multiplies large matrices: some 10 ms for the same outputs."""
    folder = tmp_path_factory.mktemp("slow") / "tiny"
    shutil.copytree(tiny_bundle, folder)
    bundle = load_bundle(folder)
    path = folder / str(bundle.splits[0].server)
    model = onnx.load(path)
    _burden(model.graph)
    onnx.save(model, path)
    artifacts = tuple(
        dataclasses.replace(one, size_bytes=path.stat().st_size, sha256=file_sha256(path))
        if one.path == bundle.splits[0].server
        else one
        for one in bundle.artifacts
    )
    write_manifest(folder, dataclasses.replace(bundle, artifacts=artifacts))
    return folder


def _burden(graph: onnx.GraphProto) -> None:
    """Adds zero to the first output, and takes long to find out that it is zero."""
    image, first = graph.input[0].name, graph.output[0].name
    for node in graph.node:
        node.output[:] = ["unburdened" if name == first else name for name in node.output]
    weight = np.random.default_rng(2).normal(0, 0.03, (_WIDTH, _WIDTH)).astype(np.float32)
    for name, value in (
        ("burden.shape", np.array([1, _WIDTH])),
        ("burden.rows", np.array([_ROWS, 1])),
        ("burden.weight", weight),
        ("burden.zero", np.zeros((1, 1), np.float32)),
    ):
        graph.initializer.append(numpy_helper.from_array(value, name))
    graph.node.append(helper.make_node("Cast", [image], ["burden.float"], to=onnx.TensorProto.FLOAT))
    graph.node.append(helper.make_node("Reshape", ["burden.float", "burden.shape"], ["burden.row"]))
    graph.node.append(helper.make_node("Tile", ["burden.row", "burden.rows"], ["burden.0"]))
    for number in range(_LAYERS):
        inputs, output = [f"burden.{number}", "burden.weight"], f"burden.{number + 1}"
        graph.node.append(helper.make_node("MatMul", inputs, [output]))
    graph.node.append(helper.make_node("ReduceMax", [f"burden.{_LAYERS}"], ["burden.most"], keepdims=1))
    graph.node.append(helper.make_node("Mul", ["burden.most", "burden.zero"], ["burden.nothing"]))
    graph.node.append(helper.make_node("Add", ["unburdened", "burden.nothing"], [first]))
