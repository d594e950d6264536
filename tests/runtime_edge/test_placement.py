"""Heads on both sides of a split, and several wire tensors, the image among them: board, wire and server together."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import branches
import numpy as np
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from serving import Running, running_server

from runtime_edge.engines.engine import FakeEngine
from runtime_edge.engines.litert import LiteRtEngine
from runtime_edge.link.link import Link
from runtime_edge.link.sender import Sender
from runtime_edge.pipeline import Pipeline
from splitboard.contract.bundle import Bundle, Split, bundle_sha256, load_bundle
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import normalise, prepare
from splitboard.contract.record import SPANS
from splitboard.contract.samples import load_samples

TASKS = list(branches.TASKS)


@pytest.fixture(scope="module")
def bundle(placed_bundle: Path) -> Bundle:
    return load_bundle(placed_bundle)


@pytest.fixture(scope="module")
def images(tiny_samples: Path) -> NDArray[np.uint8]:
    return load_samples(tiny_samples, channels=1).images[:5]


@pytest.fixture(scope="module")
def placed_server(placed_bundle: Path) -> Iterator[Running]:
    with running_server(placed_bundle) as running:
        yield running


def cut(bundle: Bundle, task: str) -> Split:
    """The split at which the board answers this one task."""
    (split,) = (split for split in bundle.splits if split.local_tasks == (task,))
    return split


def quantised(bundle: Bundle, image: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The edge input by ONNX's definition of QuantizeLinear."""
    spec, edge_input = bundle.preprocessing, bundle.edge_input
    real = normalise(prepare(image[None], spec), spec).transpose(0, 2, 3, 1).astype(np.float64)
    stored = np.rint(real / float(edge_input.scale or 0)) + int(edge_input.zero_point or 0)
    return np.clip(stored, -128, 127).astype(np.int8)


def by_interpreter(folder: Path, bundle: Bundle, split: Split, image: NDArray[np.int8]) -> dict[str, Any]:
    """Every output of the edge half as stored, and as real numbers."""
    runner = Interpreter(model_path=str(folder / bundle.edge_files[0])).get_signature_runner(split.edge_signature)
    real = {}
    stored = runner(image=image)
    for name, values in stored.items():
        scale, zero_point = runner.get_output_details()[name]["quantization"]
        real[name] = (values.astype(np.float64) - zero_point) * scale
    return {"stored": stored, "real": real}


def test_what_crosses_has_different_shapes(bundle: Bundle) -> None:
    shapes = {task: [tensor.shape for tensor in cut(bundle, task).tensors] for task in ("size", "shape")}
    assert shapes["size"] == [(1, 32, 32, 3), (1, 8, 8, 12)]
    assert shapes["shape"] == [(1, 32, 32, 3), (1, 16, 16, 8), (1, 12), (1, 2)]
    assert cut(bundle, "size").payload_bytes == 32 * 32 * 3 + 8 * 8 * 12
    assert cut(bundle, "size").tensors[0] == bundle.edge_input


@pytest.mark.parametrize("task", ["size", "shape"])
def test_the_engine_gives_wire_tensors_as_stored_and_scores_as_real_numbers(
    placed_bundle: Path, bundle: Bundle, images: NDArray[np.uint8], task: str
) -> None:
    split, image = cut(bundle, task), quantised(bundle, images[0])
    expected = by_interpreter(placed_bundle, bundle, split, image)
    with LiteRtEngine(placed_bundle, bundle, [split]) as engine:
        found = engine.infer(split.id, image)
    crossing = [tensor.name for tensor in split.tensors if tensor.name != "image"]
    assert found.keys() == {*crossing, task}
    for name in crossing:
        np.testing.assert_array_equal(found[name], expected["stored"][name], strict=True)
    if task not in crossing:
        assert (found[task].shape, found[task].dtype) == ((1, len(branches.TASKS[task])), np.float32)
        np.testing.assert_allclose(found[task], expected["real"][task], rtol=1e-6, atol=1e-9)


def test_the_fake_gives_tensors_of_the_same_names_shapes_and_types(
    placed_bundle: Path, bundle: Bundle, images: NDArray[np.uint8]
) -> None:
    image = quantised(bundle, images[0])
    edge = [split for split in bundle.splits if not split.is_remote]
    with LiteRtEngine(placed_bundle, bundle, edge) as real, FakeEngine(bundle, edge) as fake:
        for split in edge:
            forms = [
                {name: (array.shape, array.dtype) for name, array in engine.infer(split.id, image).items()}
                for engine in (real, fake)
            ]
            assert forms[0] == forms[1], split.id


@pytest.mark.parametrize("task", ["size", "shape"])
def test_every_task_is_answered_by_its_half(
    placed_bundle: Path, bundle: Bundle, placed_server: Running, images: NDArray[np.uint8], task: str
) -> None:
    split = cut(bundle, task)
    server = onnxruntime.InferenceSession(placed_bundle / str(split.server), providers=["CPUExecutionProvider"])
    names = [other for other in TASKS if other != task]
    with LiteRtEngine(placed_bundle, bundle, [split]) as engine, Link(placed_server.url) as link:
        pipeline = Pipeline(bundle, bundle_sha256(placed_bundle), (split,), engine, Sender(link))
        for image in images:
            one = pipeline.infer(split, image)
            edge_input = quantised(bundle, image)
            edge = by_interpreter(placed_bundle, bundle, split, edge_input)
            sent = {"image": edge_input, **edge["stored"]}
            expected = server.run(names, {tensor.name: sent[tensor.name] for tensor in split.tensors})
            assert list(one.scores) == TASKS
            for name, scores in zip(names, expected, strict=True):
                assert one.scores[name] == scores[0].tolist()
            np.testing.assert_allclose(one.scores[task], edge["real"][task][0], rtol=1e-6, atol=1e-9)
            assert one.spans_ns is not None
            assert all((ns == 0) == (span in ("read", "encode")) for span, ns in zip(SPANS, one.spans_ns, strict=True))
            assert sum(one.spans_ns) <= one.total_ns


def test_all_splits_agree_with_the_float_model(
    placed_bundle: Path, bundle: Bundle, placed_server: Running, images: NDArray[np.uint8]
) -> None:
    whole = onnxruntime.InferenceSession(branches.make().SerializeToString(), providers=["CPUExecutionProvider"])
    spec = bundle.preprocessing
    with LiteRtEngine(placed_bundle, bundle, bundle.splits) as engine, Link(placed_server.url) as link:
        pipeline = Pipeline(bundle, bundle_sha256(placed_bundle), bundle.splits, engine, Sender(link))
        for image in images:
            expected = whole.run(TASKS, {"image": normalise(prepare(image[None], spec), spec)})
            for split in bundle.splits:
                scores = pipeline.infer(split, image).scores
                for name, exact in zip(TASKS, expected, strict=True):
                    # Three times what INT8 was off on the golden inputs.
                    np.testing.assert_allclose(scores[name], exact[0], atol=3 * bundle.golden_tolerance[name])


@pytest.mark.parametrize("task", ["size", "shape"])
def test_the_server_offers_the_other_tasks(bundle: Bundle, placed_server: Running, task: str) -> None:
    split = cut(bundle, task)
    connection = http.client.HTTPConnection("127.0.0.1", placed_server.port, timeout=20)
    connection.request("GET", f"/v2/models/branches-{split.id}")
    offered = json.loads(connection.getresponse().read())
    connection.close()
    assert [output["name"] for output in offered["outputs"]] == [other for other in TASKS if other != task]
    assert [tuple(tensor["shape"]) for tensor in offered["inputs"]] == [tensor.shape for tensor in split.tensors]
    assert {tensor["datatype"] for tensor in offered["inputs"]} == {"INT8"}


def test_a_split_that_asks_a_server_for_some_tasks_needs_a_link(bundle: Bundle) -> None:
    split, local = cut(bundle, "size"), bundle.splits[-1]
    with FakeEngine(bundle, bundle.splits) as engine:
        with pytest.raises(UserError, match=f'no server given for "{split.id}"'):
            Pipeline(bundle, "0" * 64, (split, local), engine, None)
        one = Pipeline(bundle, "0" * 64, (local,), engine, None).infer(local, np.zeros((40, 40, 1), np.uint8))
    assert one.scores == {task: [0.0] * len(labels) for task, labels in branches.TASKS.items()}
