"""Graphs of a batch of one, run for several requests at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from serving import start_server

from runtime_server.batching import check_batch, open_batch
from runtime_server.models import load_models
from splitboard.contract.bundle import TensorSpec, load_bundle
from splitboard.contract.errors import EXIT_USER_ERROR, UserError
from splitboard.contract.interface import Interface
from splitboard.contract.wire import Request


def test_every_server_half_answers_three_requests_as_it_answers_each(tiny_bundle: Path) -> None:
    models = load_models([tiny_bundle], threads=1, max_batch=3)
    bundle, random = load_bundle(tiny_bundle), np.random.default_rng(8)
    assert len(models) == 3
    for model in models.values():
        ((spec),) = model.interface.inputs
        tensors = [random.integers(0, 100, spec.shape).astype(spec.dtype) for _ in range(3)]
        found = model.run([Request({spec.name: tensor}, ("colour", "shape")) for tensor in tensors])
        path = tiny_bundle / str(bundle.split(model.interface.split).server)
        single = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for tensor, answer in zip(tensors, found, strict=True):
            for name, expected in zip(
                ("colour", "shape"), single.run(["colour", "shape"], {spec.name: tensor}), strict=True
            ):
                np.testing.assert_allclose(answer[name], expected, rtol=1e-5, atol=1e-6)


def graph_of(tmp_path: Path, node: onnx.NodeProto) -> Path:
    """A file of one operator from x to y, both [1, 4]."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y"))
    constants = [
        helper.make_tensor("shape", TensorProto.INT64, [2], [1, 4]),
        helper.make_tensor("one", TensorProto.FLOAT, [1, 1], [1.0]),
    ]
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y], constants), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (helper.make_node("Softmax", ["x"], ["y"], axis=0), 'gives another "y" in a batch of 2'),
        (helper.make_node("Reshape", ["x", "shape"], ["y"]), None),
        (helper.make_node("MatMul", ["one", "x"], ["y"]), "cannot be run with a batch above 1"),
    ],
)
def test_a_graph_that_mixes_its_rows_is_refused(tmp_path: Path, node: onnx.NodeProto, words: str | None) -> None:
    path = graph_of(tmp_path, node)
    values = TensorSpec("x", (1, 4), "float32", "NC")
    offered = Interface("m-s01", "ab" * 32, "s01", (values,), (TensorSpec("y", (1, 4), "float32", "NC"),))
    providers = ["CPUExecutionProvider"]
    opened = onnxruntime.InferenceSession(open_batch(path), providers=providers)
    single = onnxruntime.InferenceSession(path, providers=providers)
    if words is None:
        check_batch(opened, single, offered)
        return
    with pytest.raises(UserError, match=words):
        check_batch(opened, single, offered)


def test_the_server_batches_on_request(tiny_bundle: Path) -> None:
    process = start_server(0, tiny_bundle, max_batch=0)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, 'max-batch is "0"' in errors) == (EXIT_USER_ERROR, True)
