"""Split points: ids, scopes and marks as a user reads them, and costs against torch's own counters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert.schema_py_generated import SubGraphT
from ai_edge_litert.tools import flatbuffer_utils
from graphs import made_of
from onnx import helper
from torch.utils.flop_counter import FlopCounterMode

from export.choice import choose
from export.model import Model, load_model
from export.scopes import module_ends
from export.splits import Splits, list_splits
from export.tflite import convert


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def splits(model: Model) -> Splits:
    return list_splits(model)


def test_ids_scopes_and_ends(splits: Splits) -> None:
    single = [point for point in splits.points if len(point.crossing) < 2]
    multi = [point for point in splits.points if len(point.crossing) > 1]
    assert [point.id for point in single] == [f"s{i:02d}" for i in range(len(single))]
    assert [point.id for point in multi] == [f"m{i:02d}" for i in range(1, len(multi) + 1)]
    assert (splits.remote, splits.local) == (single[0], single[-1])
    assert (splits.remote.scope, splits.local.scope) == ("remote", "local")
    assert set(splits.cuts) == {point.id for point in splits.proper}
    scopes = [point.scope for point in splits.points]
    for module in ("stem", "blocks.0", "blocks.1", "blocks.2"):
        assert module in scopes
    assert scopes.index("blocks.0") < scopes.index("blocks.1") < scopes.index("blocks.2")


def test_costs_are_torchs(model: Model, splits: Splits) -> None:
    import tiny  # type: ignore[import-not-found, unused-ignore]

    net = tiny.make().eval()
    image = torch.zeros(1, 3, 32, 32)
    with FlopCounterMode(display=False) as whole:
        net(image)
    with FlopCounterMode(display=False) as edge:
        net.blocks[:2](net.stem(image))
    macs = whole.get_total_flops() // 2
    cut = next(point for point in splits.points if point.scope == "blocks.1")
    assert cut.edge_macs == edge.get_total_flops() // 2
    assert cut.edge_share == pytest.approx(edge.get_total_flops() / whole.get_total_flops())
    assert all(point.edge_macs + point.server_macs == macs for point in splits.points)
    # Batch norm is folded: per channel its two trained and two running values become the convolution's bias.
    folded = sum(m.num_features for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)) * 2
    total = sum(p.numel() for p in net.parameters()) - folded
    unbiased = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.bias is not None]
    assert unbiased  # the tiny net's convolutions have biases of their own, so folding adds none
    assert splits.local.edge_parameters == total == splits.remote.server_parameters
    assert all(point.edge_parameters + point.server_parameters == total for point in splits.points)


def test_bytes_and_natural_bottlenecks(splits: Splits) -> None:
    for point in splits.proper:
        values = sum(int(np.prod(one.shape)) for one in point.crossing)
        assert (point.fp32_bytes, point.int8_bytes) == (4 * values, values)
        assert point.natural == (values < 3 * 32 * 32)
    assert splits.remote.int8_bytes == 32 * 32
    assert splits.local.int8_bytes == 0


def most_alive(graph: SubGraphT) -> int:
    """Bytes of activations that are alive at once in one signature of a TFLite file, operators in the file's order."""
    size = {i: 4 * int(np.prod(tensor.shape)) for i, tensor in enumerate(graph.tensors)}
    made = {graph.inputs[0]: 0} | {i: step for step, op in enumerate(graph.operators) for i in op.outputs}
    last = {i: step for step, op in enumerate(graph.operators) for i in op.inputs if i in made}
    last |= dict.fromkeys([*graph.inputs, *graph.outputs], len(graph.operators))
    return max(
        sum(size[i] for i, born in made.items() if born <= step <= last[i]) for step in range(len(graph.operators))
    )


def test_the_memory_estimate_is_the_converted_files(model: Model, splits: Splits) -> None:
    """Fused activations and separate paddings as the converter made them; float, so four times the bytes of INT8."""
    chosen = choose(model, splits, "stem,blocks.0,blocks.1,blocks")
    signatures = {choice.point.id: choice.cut.crossing for choice in chosen}
    content = convert(
        model.graph, signatures, [np.full((1, 3, 32, 32), 0.1, np.float32)], list(model.graph.producer)
    ).content
    file = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    found = {one.signatureKey.decode(): most_alive(file.subgraphs[one.subgraphIndex]) for one in file.signatureDefs}
    for choice in chosen:
        assert 4 * choice.point.edge_peak_bytes == pytest.approx(found[choice.point.id], rel=0.02)


def test_the_scope_of_a_cut_is_the_outermost_module_that_ends_there() -> None:
    graph = made_of([helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])])
    ends = module_ends(graph, {"a": "net.blocks.4.project.1", "y": "net.blocks.5.expand"})
    assert ends["a"] == ("net.blocks.4", "net.blocks.4.project", "net.blocks.4.project.1")
    ends = module_ends(graph, {"a": "net.blocks.4.project.1", "y": "net.blocks.4.project.2"})
    assert ends["a"] == ("net.blocks.4.project.1",)
    assert module_ends(graph, {"a": "net.final", "y": "head"})["a"] == ("net", "net.final")


def test_a_list_of_modules_does_not_end_where_one_of_them_does() -> None:
    """An encoder whose stages are all taken by a decoder: no tensor is the encoder's output."""
    graph = made_of(
        [
            helper.make_node("Relu", ["x"], ["e0"]),
            helper.make_node("Relu", ["e0"], ["e1"]),
            helper.make_node("Relu", ["e1"], ["d1"]),
            helper.make_node("Add", ["d1", "e0"], ["y"]),
        ]
    )
    ends = module_ends(graph, {"e0": "encoder.0.1", "e1": "encoder.1.1", "d1": "decoder.0", "y": "decoder.1"})
    assert ends["e0"] == ("encoder.0", "encoder.0.1")
    assert ends["e1"] == ("encoder.1", "encoder.1.1")


def test_a_module_that_is_called_twice_ends_twice() -> None:
    graph = made_of(
        [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Neg", ["a"], ["b"]),
            helper.make_node("Relu", ["b"], ["c"]),
            helper.make_node("Neg", ["c"], ["y"]),
        ]
    )
    ends = module_ends(graph, {"a": "mix.1", "b": "down", "c": "mix.1", "y": "head"})
    assert ends["a"] == ends["c"] == ("mix", "mix.1")
