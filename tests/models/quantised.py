"""Networks and range tables for the tests of Q/DQ graphs."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import families  # type: ignore[import-not-found, unused-ignore]
import numpy as np
import onnx
import torch
from graphs import made_of
from numpy.typing import NDArray
from onnx import TensorProto, helper

from calib.ranges import SCHEMA_VERSION, Range, RangeTable
from export.exported import ExportRequest
from export.exporter import export_model
from export.graph import Graph
from export.model import load_model
from export.reference import reference_session

Image = NDArray[np.float32]
node = helper.make_node

STEPS = {"x": 2**-6, "r1": 2**-5, "sum": 2**-4, "pool": 2**-4, "flat": 2**-4}
"""Scales of the quantised tensors of `whole_numbers`."""


@cache
def exported(name: str) -> Graph:
    """A network of `families`, once for all tests: from torch's older, fast exporter, then cleaned."""
    model = getattr(families, name)()
    inputs = {key: torch.zeros(shape) for key, shape in families.INPUTS[name].items()}
    with tempfile.TemporaryDirectory() as folder, families.unhurried(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter says that it is the older one
        returned = model(*inputs.values())
        tasks = [*returned] if isinstance(returned, dict) else [f"output_{i}" for i in range(len(returned))]
        names = {"input_names": [*inputs], "output_names": tasks}
        path, target = Path(folder) / f"{name}.onnx", Path(folder) / name
        torch.onnx.export(model, (*inputs.values(),), str(path), dynamo=False, opset_version=18, **names)
        export_model(ExportRequest(path, name), target)
        return load_model(target).graph


def images(graph: Graph, count: int, seed: int = 11) -> list[Image]:
    """Random images with smooth and fine parts, near those that the batch norms of `families` saw; batches of one."""
    random, (_, channels, height, width) = np.random.default_rng(seed), graph.shapes[graph.inputs[0]]
    coarse = random.normal(size=(count, channels, 4, 4))
    smooth = np.kron(coarse, np.ones((1, 1, height // 4, width // 4)))
    made = (0.3 + 0.1 * smooth + random.normal(scale=0.3, size=smooth.shape)).astype(np.float32)
    return [made[i : i + 1] for i in range(count)]


def observed(graph: Graph, samples: Sequence[Image]) -> RangeTable:
    """Min/max ranges of all float tensors."""
    names = [name for name in graph.shapes if graph.is_float(name) and name in graph.producer]
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, graph.shapes[n]) for n in names)
    session, (image,) = reference_session(model), graph.inputs
    low, high = dict.fromkeys([image, *names], 0.0), dict.fromkeys([image, *names], 0.0)
    for sample in samples:
        for name, value in zip([image, *names], [sample, *session.run(names, {image: sample})], strict=True):
            low[name], high[name] = min(low[name], float(value.min())), max(high[name], float(value.max()))
    return table_of({name: (low[name], high[name]) for name in low})


def table_of(limits: dict[str, tuple[float, float]]) -> RangeTable:
    """A table of given limits."""
    ranges = {name: Range(low, high, max(abs(low), abs(high))) for name, (low, high) in limits.items()}
    return RangeTable(SCHEMA_VERSION, "minmax", 1, ranges)


def even_table(graph: Graph, magnitude: float = 1.0) -> RangeTable:
    """One range for every tensor."""
    return table_of(dict.fromkeys(graph.shapes, (-magnitude, magnitude)))


def weights(seed: int, *shape: int) -> NDArray[np.float32]:
    """Normal, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def concatenated() -> Graph:
    """Two concatenations, one in the other: what reaches them are a convolution, a pooled and a transposed tensor.

    ========  ======================================
    ``a``     Conv(x)
    ``b``     MaxPool(Conv(x)) = MaxPool(``b0``)
    ``c``     Conv(x) reshaped there and back, ``c0`` and ``c1``
    ``ab``    Concat(a, b)
    ``abc``   Concat(ab, c)
    ``y``     Conv(abc) + Conv(a)
    ========  ======================================
    """
    nodes = [
        node("Conv", ["x", "wa"], ["a"]),
        node("Conv", ["x", "wb"], ["b0"]),
        node("MaxPool", ["b0"], ["b"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Conv", ["x", "wc"], ["c0"]),
        node("Reshape", ["c0", "flat"], ["c1"]),
        node("Reshape", ["c1", "image"], ["c"]),
        node("Concat", ["a", "b"], ["ab"], axis=1),
        node("Concat", ["ab", "c"], ["abc"], axis=1),
        node("Conv", ["abc", "wd"], ["d"]),
        node("Conv", ["a", "we"], ["e"]),
        node("Relu", ["d"], ["dr"]),
        node("Relu", ["e"], ["er"]),
        node("Sub", ["dr", "er"], ["y"]),
    ]
    constants = {
        **{f"w{letter}": weights(i, 4, 3, 1, 1) for i, letter in enumerate("abc")},
        "wd": weights(8, 5, 12, 1, 1),
        "we": weights(9, 5, 4, 1, 1),
        "flat": np.array([1, 4, 64]),
        "image": np.array([1, 4, 8, 8]),
    }
    return made_of(nodes, constants=constants, shape=(1, 3, 8, 8))


def linear_gate() -> Graph:
    """Squeeze-excite of linear layers, as some backbones write it, between two convolutions."""
    nodes = [
        node("Conv", ["x", "wa"], ["a"]),
        node("GlobalAveragePool", ["a"], ["pool"]),
        node("Flatten", ["pool"], ["flat"]),
        node("Gemm", ["flat", "w1"], ["squeezed"]),
        node("Relu", ["squeezed"], ["hidden"]),
        node("Gemm", ["hidden", "w2"], ["excited"]),
        node("Sigmoid", ["excited"], ["gate"]),
        node("Reshape", ["gate", "plane"], ["weights"]),
        node("Mul", ["weights", "a"], ["weighted"]),
        node("Conv", ["weighted", "wb"], ["y"]),
    ]
    constants = {
        "wa": weights(1, 4, 3, 1, 1),
        "w1": weights(2, 4, 2),
        "w2": weights(3, 2, 4),
        "wb": weights(4, 4, 4, 1, 1),
        "plane": np.array([1, 4, 1, 1]),
    }
    return made_of(nodes, constants=constants, shape=(1, 3, 8, 8))


def shortcut(*, shortcut_first: bool) -> Graph:
    """A block with a convolution in its shortcut, ``s``; the body ends in ``b``; the sum is ``sum``."""
    side = [node("Conv", ["x", "ws"], ["s"])]
    body = [node("Conv", ["x", "w1"], ["b1"]), node("Relu", ["b1"], ["r"]), node("Conv", ["r", "w2"], ["b"])]
    nodes = [*side, *body] if shortcut_first else [*body, *side]
    nodes += [node("Add", ["s", "b"], ["sum"]), node("Relu", ["sum"], ["y"])]
    constants = {"ws": weights(1, 4, 3, 1, 1), "w1": weights(2, 4, 3, 1, 1), "w2": weights(3, 4, 4, 1, 1)}
    return made_of(nodes, constants=constants, shape=(1, 3, 8, 8))


def whole_numbers(seed: int) -> tuple[Graph, RangeTable]:
    """A residual network in which float32 is exact, since all weights, biases and scales are small powers of two apart.

    The block's end ``sum`` can cross. ``y`` is the task.
    """
    random = np.random.default_rng(seed)

    def whole(step: float, *shape: int) -> NDArray[np.float32]:
        values = random.integers(-127, 128, shape).astype(np.float32)
        values.reshape(shape[0], -1)[:, 0] = 127  # the largest of each channel, so that its scale is the step
        return values * np.float32(step)

    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2", "b2"], ["c2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Add", ["r1", "c2"], ["sum"]),
        node("MaxPool", ["sum"], ["pool"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["pool", "w3"], ["c3"]),
        node("GlobalAveragePool", ["c3"], ["mean"]),
        node("Flatten", ["mean"], ["flat"]),
        node("Gemm", ["flat", "w4", "b4"], ["y"], transB=1),
    ]
    constants = {
        "w1": whole(2**-7, 6, 3, 3, 3),
        "b1": random.integers(-99, 99, 6).astype(np.float32) * np.float32(2**-8),
        "w2": whole(2**-8, 6, 6, 3, 3),
        "b2": random.integers(-99, 99, 6).astype(np.float32) * np.float32(2**-8),
        "w3": whole(2**-7, 5, 6, 1, 1),
        "w4": whole(2**-6, 3, 5),
        "b4": random.integers(-99, 99, 3).astype(np.float32) * np.float32(2**-6),
    }
    graph = made_of(nodes, constants=constants, shape=(1, 3, 8, 8))
    return graph, table_of({name: (-127 * step, 127 * step) for name, step in STEPS.items()})
