"""Both halves together are the whole, on floats, on the wire's INT8 and from pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import synthetic_images
from onnx import numpy_helper

from export.cut import cut as halves
from export.cut import remote_graph, server_graph, wire_server_graph
from export.cuts import Cut, place
from export.graph import Graph
from export.model import Model, load_model
from export.reference import reference_session
from export.splits import list_splits
from export.verify import LIMIT, verify_all, verify_cut
from splitboard.contract.bundle import TensorSpec
from splitboard.contract.errors import SplitboardError
from splitboard.contract.preprocess import Preprocessing, normalise, prepare


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model)


def inputs(model: Model) -> np.ndarray:
    return normalise(prepare(synthetic_images(4), model.info.preprocessing), model.info.preprocessing)


def samples(model: Model) -> list[dict[str, np.ndarray]]:
    return [{model.graph.inputs[0]: image[None]} for image in inputs(model)]


def test_every_split_of_the_model_is_equal_to_the_whole(model: Model) -> None:
    splits = list_splits(model)
    assert splits.cuts
    for cut in splits.cuts.values():
        errors = verify_cut(model.graph, cut, samples(model))
        assert list(errors) == ["shape", "colour"]
        assert max(errors.values()) <= LIMIT


def test_all_cuts_at_once_give_the_same_errors_as_one_by_one(model: Model) -> None:
    cuts, seen = list_splits(model).cuts, []
    errors = verify_all(model.graph, cuts, samples(model)[0], seen.append)
    assert errors == {name: verify_cut(model.graph, cut, samples(model)[:1]) for name, cut in cuts.items()}
    assert seen == list(range(1, len(cuts) + 1))


def spoiled(graph: Graph, where: Cut) -> onnx.ModelProto:
    """The server half with one weight a thousandth too large."""
    server = server_graph(graph, where)
    weight = next(t for t in server.graph.initializer if len(t.dims) > 1 and t.HasField("raw_data"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.001), weight.name))
    return server


def test_a_half_that_differs_is_found(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = {"s03": list_splits(model).cuts["s03"]}
    monkeypatch.setattr("export.cut.server_graph", spoiled)
    with pytest.raises(SplitboardError, match="changes output"):
        verify_cut(model.graph, cuts["s03"], samples(model))
    monkeypatch.setattr("export.verify.server_graph", spoiled)
    with pytest.raises(SplitboardError, match="changes output"):
        verify_all(model.graph, cuts, samples(model)[0])


def test_an_edge_half_that_lacks_a_node_is_found(model: Model) -> None:
    cut = list_splits(model).cuts["s03"]
    lacking = Cut(cut.edge ^ (1 << 0), cut.crossing)
    with pytest.raises(SplitboardError, match="lacks nodes"):
        verify_all(model.graph, {"s03": lacking}, samples(model)[0])


def test_a_task_on_the_edge_is_answered_there(model: Model) -> None:
    splits = list_splits(model)
    pooled = next(point for point in splits.proper if point.local_tasks and point.id[0] == "s")
    cut = place(model.graph, splits.cuts[pooled.id], ["colour"])
    edge, server = halves(model.graph, cut)
    assert [value.name for value in edge.graph.output] == [*cut.crossing, "colour"]
    assert [value.name for value in server.graph.output] == ["shape"]
    errors = verify_cut(model.graph, cut, samples(model))
    assert list(errors) == ["shape", "colour"]
    assert max(errors.values()) <= LIMIT


@pytest.mark.parametrize(("channels", "order"), [(1, "RGB"), (3, "RGB"), (3, "BGR")])
def test_remote_only_from_pixels_has_the_bits_of_the_float_model(model: Model, channels: int, order: str) -> None:
    means, stds = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    spec = Preprocessing(32, 32, channels, means, stds, resize_shorter=36, channel_order=order)
    pixels = prepare(synthetic_images(3, channels=channels), spec)
    names = model.graph.outputs
    whole, remote = reference_session(model.graph.model), reference_session(remote_graph(model.graph, spec))
    for image in pixels:
        expected = whole.run(names, {model.graph.inputs[0]: normalise(image[None], spec)})
        for ours, theirs in zip(remote.run(names, {model.graph.inputs[0]: image[None]}), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("zero_point", [-11, 0])
def test_the_server_graph_dequantises_the_wire_tensor(model: Model, zero_point: int) -> None:
    splits = list_splits(model)
    point = next(point for point in splits.points if point.scope == "blocks.0")
    cut, (crossing,) = splits.cuts[point.id], point.crossing
    n, c, h, w = crossing.shape
    spec = TensorSpec(crossing.name, (n, h, w, c), "int8", "NHWC", scale=0.05, zero_point=zero_point)
    stored = np.random.default_rng(0).integers(-128, 128, spec.shape, dtype=np.int8)
    real = ((stored.astype(np.float32) - np.float32(zero_point)) * np.float32(0.05)).transpose(0, 3, 1, 2)
    wire = wire_server_graph(model.graph, cut, [spec])
    shifted = ["Sub"] if zero_point else []
    begun = ["DequantizeLinear", *shifted, "Transpose"]
    assert [node.op_type for node in wire.graph.node[: len(begun)]] == begun
    # TensorRT's parser refuses any other zero point.
    zero = next(t for t in wire.graph.initializer if t.name == wire.graph.node[0].input[2])
    assert not numpy_helper.to_array(zero).any()
    names = model.graph.outputs
    expected = reference_session(server_graph(model.graph, cut)).run(names, {crossing.name: np.ascontiguousarray(real)})
    actual = reference_session(wire).run(names, {crossing.name: stored})
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
