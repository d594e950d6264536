"""Ranges against numpy over ONNX Runtime's plain outputs, and the bad calibration sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import synthetic_images
from onnx import numpy_helper

from calib.dead_channels import floor_dead_channels
from calib.ranges import Range, RangeTable, collect_ranges
from export.graph import Graph
from export.model import Model, load_model
from export.reference import reference_session, relative_error
from export.tflite import _all_values
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import normalise, resize


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def samples(model: Model) -> list[np.ndarray]:
    images = normalise(resize(synthetic_images(6), 32, 32), model.info.preprocessing)
    return [images[i : i + 1] for i in range(len(images))]


def test_ranges_are_the_smallest_and_largest_values(model: Model, samples: list[np.ndarray]) -> None:
    seen: list[int] = []
    table = collect_ranges(model.graph, iter(samples), seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert table.n_samples == 6
    values = [{**_all_values(model.graph, sample), "image": sample} for sample in samples]
    assert table.ranges.keys() == values[0].keys()
    for name, found in table.ranges.items():
        low, high = min(v[name].min() for v in values), max(v[name].max() for v in values)
        assert (found.min, found.max) == (pytest.approx(low, rel=1e-5), pytest.approx(high, rel=1e-5)), name


def test_no_image_is_refused(model: Model) -> None:
    with pytest.raises(UserError, match='"0" images'):
        collect_ranges(model.graph, iter([]), lambda done: None)


def test_a_value_that_is_not_finite_is_refused(model: Model, samples: list[np.ndarray]) -> None:
    spoiled = samples[1].copy()
    spoiled[0, 0, 3, 3] = np.nan
    with pytest.raises(UserError, match="not finite"):
        collect_ranges(model.graph, iter([samples[0], spoiled]), lambda done: None)


def killed(model: Model, channel: int, bias: float) -> tuple[Graph, str]:
    """The model with one output channel of its second convolution dead, and that node's name."""
    made = onnx.ModelProto()
    made.CopyFrom(model.graph.model)
    node = [n for n in made.graph.node if n.op_type == "Conv"][1]
    for tensor in made.graph.initializer:
        value = numpy_helper.to_array(tensor).copy()
        if tensor.name == node.input[1]:
            value[channel] = 1e-12
        elif tensor.name == node.input[2]:
            value[channel] = bias
        else:
            continue
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return Graph(made), node.name


def test_a_dead_channel_gets_a_weight_and_the_function_stays(model: Model, samples: list[np.ndarray]) -> None:
    graph, node = killed(model, channel=2, bias=0.7)
    table = collect_ranges(graph, iter(samples), lambda done: None)
    floored, report = floor_dead_channels(graph, table)
    assert [(one.node, one.channels) for one in report] == [(node, 1)]
    names = graph.outputs
    before, after = reference_session(graph.model), reference_session(floored.model)
    for sample in samples:
        old, new = before.run(names, {"image": sample}), after.run(names, {"image": sample})
        assert max(relative_error(a, b) for a, b in zip(new, old, strict=True)) < 1e-4
    # What the int32 bias will be: bias / (input scale * weight scale).
    conv = next(n for n in floored.nodes if n.name == node)
    found = table.ranges[conv.input[0]]
    scale = (max(found.max, 0) - min(found.min, 0)) / 255 * np.abs(floored.constant(conv.input[1])[2]).max() / 127
    assert abs(0.7 / scale) <= 2**30 * 1.0001


def test_a_living_model_is_left_alone(model: Model, samples: list[np.ndarray]) -> None:
    table = collect_ranges(model.graph, iter(samples), lambda done: None)
    assert floor_dead_channels(model.graph, table) == (model.graph, ())


def test_a_constant_input_has_no_scale_and_is_left_alone(model: Model) -> None:
    flat = RangeTable(1, "minmax", 1, {name: Range(0.0, 0.0) for name in model.graph.shapes})
    assert floor_dead_channels(model.graph, flat)[1] == ()
