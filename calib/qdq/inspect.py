"""What a Q/DQ graph really holds, read from the graph itself: which operators run in INT8, and whether it is legal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from calib.qdq.plan import WEIGHTED, Plan
from splitboard.contract.errors import SplitboardError

Precision = Literal["int8", "mixed", "float"]
"""Of an operator's data inputs (its bias left out): all come from INT8, some do, or none does.

A residual addition is mixed: its skip is INT8, and the convolution in front hands the rest over in its accumulator.
"""

_QDQ = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Operator:
    """One operator of a graph.

    Attributes:
        output: the model's name of the tensor that it makes.
        op_type: ONNX's name of it.
        precision: in which it runs.
    """

    output: str
    op_type: str
    precision: Precision


def operators(model: ModelProto) -> tuple[Operator, ...]:
    """Every operator but QuantizeLinear and DequantizeLinear, in the graph's order."""
    quantised = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    outputs = {value.name for value in model.graph.output}
    dequantised = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type not in _QDQ:
            # A wire is INT8 under its own name, and what is quantised into it has another.
            wire = quantised.get(node.output[0])
            name = wire if wire is not None and wire in outputs else node.output[0]
            found.append(Operator(name, node.op_type, _precision(node, dequantised, constants)))
    return tuple(found)


def count_operators(models: Mapping[str, ModelProto]) -> dict[str, dict[str, int]]:
    """Number of each operator by split, those in INT8 apart: ``{"s03": {"Conv float": 1, "Conv int8": 7}}``.

    QuantizeLinear and DequantizeLinear are counted under their own names.
    """
    counts = {}
    for split, model in models.items():
        names = [f"{one.op_type} {one.precision}" for one in operators(model)]
        names += [node.op_type for node in model.graph.node if node.op_type in _QDQ]
        counts[split] = dict(sorted(Counter(names).items()))
    return counts


def check_precision(model: ModelProto, planned: Plan) -> None:
    """Compares the precision of every operator and output with the plan.

    Raises:
        SplitboardError: one runs in another precision than planned, or is not there.
    """
    skips = {edge.consumer for edge in planned.edges} - planned.weights.keys()
    found = {one.output: one for one in operators(model)}
    for name in (*planned.weights, *skips):
        if name not in found:
            raise SplitboardError(f'the operator that makes "{name}" is not in the graph, INT8 was planned for it')
    for name, one in found.items():
        expected = "int8" if name in planned.weights else "mixed" if name in skips else "float"
        if one.precision != expected:
            raise SplitboardError(f'operator "{one.op_type}" that makes "{name}" is {one.precision}, not {expected}')
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    for name in planned.outputs:
        if (types.get(name) == TensorProto.INT8) != (name in planned.wires):
            raise SplitboardError(f'output "{name}" is not {"int8" if name in planned.wires else "as in the model"}')


def check_legal(model: ModelProto) -> None:
    """What every TensorRT asks of QuantizeLinear and DequantizeLinear.

    Scales are positive float32 constants and zero points are 0 in int8. What is dequantised was quantised in the same
    graph with the same scale, so there is no int32 bias.

    Raises:
        SplitboardError: names the operator that breaks a rule.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    quantised = {node.output[0]: node for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for node in model.graph.node:
        if node.op_type in _QDQ:
            wrong = _illegal(node, constants)
            source = quantised.get(node.input[0])
            if node.op_type == "DequantizeLinear" and (source is None or source.input[1] != node.input[1]):
                wrong = "does not take what a QuantizeLinear of the same scale gives"
            if wrong:
                raise SplitboardError(f'{node.op_type} that makes "{node.output[0]}" {wrong}')


def _illegal(node: NodeProto, constants: Mapping[str, TensorProto]) -> str | None:
    if len(node.input) < 3 or node.input[1] not in constants or node.input[2] not in constants:
        return "has no constant scale and zero point"
    scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    if scale.dtype != np.float32 or not np.isfinite(scale).all() or not (scale > 0).all():
        return f'has a scale that is not a positive float32: "{scale.min():g}"'
    if zero.dtype != np.int8 or zero.any():
        return f'has a zero point that is not 0 in int8: {zero.dtype} "{zero.max()}"'
    return None


def _precision(node: NodeProto, dequantised: set[str], constants: set[str]) -> Precision:
    if node.op_type in WEIGHTED:
        data = list(node.input[:2])
    else:
        data = [name for name in node.input if name and name not in constants]
    from_int8 = [name in dequantised for name in data]
    if not any(from_int8):
        return "float"
    return "int8" if all(from_int8) else "mixed"
