"""The range table: what every tensor's values lie between. One table feeds all formats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.graph import Graph
from splitboard.contract.errors import SplitboardError, UserError

SCHEMA_VERSION = 2

TFLITE_STEPS = 255
SYMMETRIC_STEPS = 127


@dataclass(frozen=True)
class Range:
    """What of a tensor's values is quantised; what lies beyond is clipped.

    Attributes:
        min: lower limit of asymmetric INT8 (TFLite), at most 0.
        max: its upper limit, at least 0.
        magnitude: limit of the absolute value in symmetric INT8 (Q/DQ for TensorRT).
    """

    min: float
    max: float
    magnitude: float

    @property
    def asymmetric_scale(self) -> float:
        """Real value of one step between `min` and `max` (TFLite's INT8 specification)."""
        return (self.max - self.min) / TFLITE_STEPS

    @property
    def symmetric_scale(self) -> float:
        """Real value of one step of symmetric INT8, -127 to 127."""
        return self.magnitude / SYMMETRIC_STEPS


@dataclass(frozen=True)
class RangeTable:
    """``calibration/ranges.json``.

    Attributes:
        schema_version: of this file.
        method: how a range is derived from the values, a name of `calib.methods.METHODS`.
        n_samples: images seen.
        ranges: by tensor name of ``model.onnx``, the model's input included.
    """

    schema_version: int
    method: str
    n_samples: int
    ranges: dict[str, Range]

    def of(self, tensor: str) -> Range:
        """The range of a tensor.

        Raises:
            SplitboardError: it was not observed.
            UserError: it holds nothing but zeros, which no scale can tell apart.
        """
        if tensor not in self.ranges:
            raise SplitboardError(f'tensor "{tensor}" has no range')
        found = self.ranges[tensor]
        if found.asymmetric_scale <= 0.0 or found.magnitude <= 0.0:
            raise UserError(
                f'tensor "{tensor}" is constantly "0" on the calibration images, so its scale would be 0',
                ["calibrate with more, and more different, images", "take the dead part out of the model"],
            )
        return found


def with_scalar_arithmetic(graph: Graph, table: RangeTable) -> RangeTable:
    """Adds the tensors that scalar arithmetic makes from observed ones, by interval arithmetic.

    These are the parts of written-out operators (`export.edge_form`): sums with, products with and clips to a scalar.

    Args:
        graph: with the written-out operators.
        table: of the graph that it was made from.
    """
    ranges = dict(table.ranges)
    for node in graph.nodes:
        name = node.output[0]
        if name in ranges or node.input[0] not in ranges:
            continue
        scalars = [
            float(graph.constant(one)) for one in node.input[1:] if one in graph.constants and _scalar(graph, one)
        ]
        if not scalars or len(scalars) != len(node.input) - 1:
            continue
        ends = np.array([ranges[node.input[0]].min, ranges[node.input[0]].max])
        if node.op_type == "Add":
            ends = ends + scalars[0]
        elif node.op_type == "Mul":
            ends = ends * scalars[0]
        elif node.op_type == "Clip":
            ends = np.clip(ends, scalars[0], scalars[1])
        else:
            continue
        low, high = min(0.0, float(ends.min())), max(0.0, float(ends.max()))
        ranges[name] = Range(low, high, max(-low, high))
    return RangeTable(table.schema_version, table.method, table.n_samples, ranges)


def _scalar(graph: Graph, name: str) -> bool:
    return graph.constant(name).size == 1
