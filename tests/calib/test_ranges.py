"""What is observed, and the ranges that follow, against numpy over ONNX Runtime's plain outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import synthetic_images
from onnx import numpy_helper

from calib.dead_channels import floor_dead_channels
from calib.methods import METHODS, make_table
from calib.observe import Observations, Observed, observe, quantisable
from calib.ranges import Range, RangeTable
from export.graph import Graph
from export.model import Model, load_model
from export.reference import reference_session, relative_error
from splitboard.contract.errors import SplitboardError, UserError
from splitboard.contract.preprocess import normalise, resize


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def samples(model: Model) -> list[np.ndarray]:
    images = normalise(resize(synthetic_images(6), 32, 32), model.info.preprocessing)
    return [images[i : i + 1] for i in range(len(images))]


@pytest.fixture(scope="module")
def values(model: Model, samples: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor on all samples, ``[n, ...]``, by ONNX Runtime without its optimiser."""
    everything = onnx.ModelProto()
    everything.CopyFrom(model.graph.model)
    names = [name for node in model.graph.nodes for name in node.output]
    del everything.graph.output[:]
    everything.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = reference_session(everything)
    results = [session.run(names, {"image": sample}) for sample in samples]
    made = {name: np.concatenate([one[i] for one in results]) for i, name in enumerate(names)}
    return {"image": np.concatenate(samples), **made}


@pytest.fixture(scope="module")
def seen(model: Model, samples: list[np.ndarray]) -> Observations:
    return observe(model.graph, quantisable(model.graph, ()), iter(samples), lambda done: None)


def test_limits_are_the_smallest_and_largest_values(
    model: Model, samples: list[np.ndarray], values: dict[str, np.ndarray]
) -> None:
    numbers: list[int] = []
    names = [name for name in values if name in model.graph.shapes]
    found = observe(model.graph, names, iter(samples), numbers.append)
    assert numbers == [1, 2, 3, 4, 5, 6]
    assert found.n_samples == 6
    assert found.tensors.keys() == values.keys()
    for name, one in found.tensors.items():
        assert one.min == pytest.approx(values[name].min(), rel=1e-5, abs=1e-6), name
        assert one.max == pytest.approx(values[name].max(), rel=1e-5, abs=1e-6), name


def test_the_histogram_has_every_value_of_a_small_tensor_to_one_part_in_128(
    seen: Observations, values: dict[str, np.ndarray]
) -> None:
    for name, one in seen.tensors.items():
        expected = values[name].reshape(-1)
        if expected[: len(expected) // 6].size > 4096:
            continue  # larger ones are sampled
        assert one.counts.sum() == expected.size, name
        for percent in (1, 25, 50, 75, 99):
            exact = np.percentile(expected, percent, method="inverted_cdf")
            ranked = _histogram_percentile(one, percent)
            assert abs(ranked - exact) <= abs(exact) / 64 + 1e-6, (name, percent)


def _histogram_percentile(one: Observed, percent: float) -> float:
    used = np.flatnonzero(one.counts)
    middles = (used.astype(np.uint32) << 16 | 0x8000).view(np.float32)
    order = np.argsort(middles)
    place = np.searchsorted(np.cumsum(one.counts[used][order]), percent / 100 * one.counts.sum())
    return float(middles[order][place])


def test_a_large_tensor_is_sampled_evenly() -> None:
    """Rows of a 128x128 map are told apart, so no column may be looked at more often than another."""
    from calib.observe import _Statistics

    values = np.broadcast_to(np.arange(1, 129, dtype=np.float32), (1, 8, 128, 128))
    statistics = _Statistics(values.shape)
    for sample in range(64):
        statistics.take(np.ascontiguousarray(values), sample)
    counts = statistics.result("x", 64).counts
    per_column = counts[np.flatnonzero(counts)]
    assert len(per_column) == 128  # whole numbers up to 128 have bins of their own
    assert per_column.max() - per_column.min() <= 0.02 * per_column.mean()


def test_channel_means_are_means(seen: Observations, values: dict[str, np.ndarray]) -> None:
    for name, one in seen.tensors.items():
        if values[name].ndim == 4:
            expected = values[name].astype(np.float64).mean(axis=(0, 2, 3))
            assert one.channel_mean == pytest.approx(expected, rel=1e-4, abs=1e-6), name


def test_a_fused_layers_own_output_is_left_out_unless_it_crosses(model: Model) -> None:
    graph = model.graph
    clip = next(node for node in graph.nodes if node.op_type == "Clip")
    assert clip.output[0] in quantisable(graph, ())
    assert clip.input[0] not in quantisable(graph, ())
    assert clip.input[0] in quantisable(graph, [clip.input[0]])


def test_no_image_is_refused(model: Model) -> None:
    with pytest.raises(UserError, match='"0" images'):
        observe(model.graph, ["image"], iter([]), lambda done: None)


def test_a_value_that_is_not_finite_is_refused(model: Model, samples: list[np.ndarray]) -> None:
    spoiled = samples[1].copy()
    spoiled[0, 0, 3, 3] = np.nan
    with pytest.raises(UserError, match="not finite"):
        observe(model.graph, model.graph.outputs, iter([samples[0], spoiled]), lambda done: None)


def test_an_error_while_reading_images_reaches_the_caller(model: Model, samples: list[np.ndarray]) -> None:
    def images() -> object:
        yield samples[0]
        raise UserError('"x.png" is not a readable image')

    with pytest.raises(UserError, match="not a readable image"):
        observe(model.graph, model.graph.outputs, images(), lambda done: None)  # type: ignore[arg-type]


def observed(values: np.ndarray) -> Observed:
    """The statistics of some values, counted here."""
    stored = np.ascontiguousarray(values, np.float32)
    counts = np.bincount(stored.view(np.uint32) >> 16, minlength=1 << 16).astype(np.int64)
    return Observed(float(stored.min()), float(stored.max()), counts, np.zeros(1))


def test_percentiles_are_numpys() -> None:
    values = np.random.default_rng(0).standard_t(3, 200_000).astype(np.float32)
    for name, percent in (("p99.99", 99.99), ("p99.999", 99.999)):
        found = METHODS[name](observed(values))
        beyond = (100 - percent) / 2
        assert found.magnitude == pytest.approx(np.percentile(np.abs(values), percent), rel=0.02)
        assert found.min == pytest.approx(np.percentile(values, beyond), rel=0.03)
        assert found.max == pytest.approx(np.percentile(values, 100 - beyond), rel=0.03)


def _squared_error(values: np.ndarray, low: float, high: float) -> float:
    scale = (high - low) / 255
    zero = np.rint(-128 - low / scale)
    stored = np.clip(np.rint(values / scale) + zero, -128, 127)
    return float(((((stored - zero) * scale) - values) ** 2).sum())


def test_mse_clips_an_outlier_and_beats_the_limits_on_the_values_themselves() -> None:
    random = np.random.default_rng(1)
    values = np.append(random.normal(0, 1, 20_000), [30.0]).astype(np.float32)
    found = METHODS["mse"](observed(values))
    assert found.max < 30
    clipped = _squared_error(values, found.min, found.max)
    assert clipped < _squared_error(values, float(values.min()), float(values.max()))
    # No pair of limits on a grid of our own is better by more than the histogram's resolution.
    best = min(_squared_error(values, low, high) for low in np.linspace(-5, -1, 21) for high in np.linspace(3, 30, 55))
    assert clipped <= 1.05 * best


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["positive", "negative", "both", "one value", "zeros mostly"])
def test_every_method_gives_a_usable_range_within_what_was_seen(method: str, kind: str) -> None:
    random = np.random.default_rng(2)
    values = {
        "positive": random.gamma(2, 1, 5000),
        "negative": -random.gamma(2, 1, 5000),
        "both": random.normal(0, 1, 5000),
        "one value": np.full(5000, 2.5),
        "zeros mostly": np.append(np.zeros(99_999), 1.0),
    }[kind].astype(np.float32)
    found = METHODS[method](observed(values))
    assert min(values.min(), 0) <= found.min <= 0 <= found.max <= max(values.max(), 0)
    assert 0 < found.magnitude <= np.abs(values).max() * 1.000001
    assert found.asymmetric_scale > 0


def test_a_tensor_of_zeros_has_no_scale_and_is_refused(seen: Observations) -> None:
    nothing = Observations(1, {**seen.tensors, "dead": observed(np.zeros(100))})
    table = make_table(nothing, "minmax")
    with pytest.raises(UserError, match='"dead" is constantly "0"'):
        table.of("dead")
    with pytest.raises(SplitboardError, match='"other" has no range'):
        table.of("other")


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
    table = make_table(observe(graph, quantisable(graph, ()), iter(samples), lambda done: None), "minmax")
    floored, report = floor_dead_channels(graph, [table])
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


def test_a_living_model_is_left_alone(model: Model, seen: Observations) -> None:
    assert floor_dead_channels(model.graph, [make_table(seen, "minmax")]) == (model.graph, ())


def test_the_narrowest_of_several_tables_decides(model: Model, seen: Observations) -> None:
    wide = make_table(seen, "minmax")
    narrow = {name: Range(one.min / 1e9, one.max / 1e9, one.magnitude / 1e9) for name, one in wide.ranges.items()}
    assert floor_dead_channels(model.graph, [wide, RangeTable(2, "narrow", 1, narrow)])[1]
