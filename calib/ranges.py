"""Value ranges of every tensor, from one pass over the float ONNX graph: one table for all formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.graph import Graph
from splitboard.contract.errors import UserError

SCHEMA_VERSION = 1
METHOD = "minmax"


@dataclass(frozen=True)
class Range:
    """Smallest and largest real value of one tensor over the calibration set."""

    min: float
    max: float


@dataclass(frozen=True)
class RangeTable:
    """``calibration/ranges.json``.

    Attributes:
        schema_version: of this file.
        method: how a range is derived from the values.
        n_samples: images seen.
        ranges: by tensor name of ``model.onnx``, the model's input included.
    """

    schema_version: int
    method: str
    n_samples: int
    ranges: dict[str, Range]


def collect_ranges(graph: Graph, inputs: Iterable[NDArray[np.float32]], on_sample: Callable[[int], None]) -> RangeTable:
    """Runs the float model over the calibration images and keeps each tensor's smallest and largest value.

    The reductions run inside the graph, so only two numbers per tensor and image leave it and memory does not grow.

    Args:
        graph: the whole float model.
        inputs: normalised images, each ``[1, c, h, w]``.
        on_sample: called with the number of images done.

    Raises:
        UserError: no image, or a tensor that is not finite.
    """
    names = [*graph.inputs, *(name for node in graph.nodes for name in node.output if name)]
    session = _session(_with_reductions(graph, names))
    wanted = [output.name for output in session.get_outputs()]
    lowest: NDArray[np.float64] = np.full(len(names), np.inf)
    highest: NDArray[np.float64] = np.full(len(names), -np.inf)
    count = 0
    for count, sample in enumerate(inputs, 1):
        found = np.array(session.run(wanted, {graph.inputs[0]: sample}), dtype=np.float64)
        # fmin and fmax would drop a NaN; these keep it, to be refused below.
        lowest, highest = np.minimum(lowest, found[0::2]), np.maximum(highest, found[1::2])
        on_sample(count)
    if count == 0:
        raise UserError('the calibration set holds "0" images', ["give real images with --calib"])
    for name, low, high in zip(names, lowest, highest, strict=True):
        if not np.isfinite([low, high]).all():
            raise UserError(f'tensor "{name}" is not finite on the calibration images', ["check the weights for NaN"])
    ranges = {name: Range(float(low), float(high)) for name, low, high in zip(names, lowest, highest, strict=True)}
    return RangeTable(SCHEMA_VERSION, METHOD, count, ranges)


def _with_reductions(graph: Graph, names: list[str]) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    for name in names:
        for kind in ("ReduceMin", "ReduceMax"):
            output = f"{name}/{kind}"
            model.graph.node.append(helper.make_node(kind, [name], [output], keepdims=0))
            model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    return model


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # Fusing would remove the tensors in between; they are outputs here, and their values must be the plain ones.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
