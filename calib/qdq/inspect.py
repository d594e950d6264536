"""What a Q/DQ graph really holds, read from the graph itself: which operators run in INT8."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from onnx import ModelProto, NodeProto, TensorProto

from calib.qdq.half import FP16
from calib.qdq.legal import check_legal as check_legal  # for those who know it from here
from calib.qdq.plan import WEIGHTED, Plan
from splitboard.contract.errors import SplitboardError

Precision = Literal["int8", "mixed", "fp16", "float"]
"""Of an operator's data inputs (its bias left out): all come from INT8, some do, or none does; fp16 if it takes that.

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
    """Every operator but QuantizeLinear, DequantizeLinear and the Cast to and from fp16, in the graph's order."""
    quantised = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    outputs = {value.name for value in model.graph.output}
    dequantised = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    halves = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    found = []
    for node in model.graph.node:
        is_half = any(name in halves for name in node.input)
        if _is_border(node, is_half=is_half):
            halves.update(node.output if not is_half and node.op_type == "Cast" else ())
            continue
        halves.update(node.output if is_half else ())
        # A wire is INT8 under its own name, and what is quantised into it has another.
        wire = quantised.get(node.output[0])
        name = wire if wire is not None and wire in outputs else node.output[0].removesuffix(FP16)
        found.append(Operator(name, node.op_type, "fp16" if is_half else _precision(node, dequantised, constants)))
    return tuple(found)


def _is_border(node: NodeProto, *, is_half: bool) -> bool:
    """Whether a node only changes the type of real numbers."""
    to_half = node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16
    return node.op_type in _QDQ or to_half or (node.op_type == "Cast" and is_half)


def count_operators(models: Mapping[str, ModelProto]) -> dict[str, dict[str, int]]:
    """Number of each operator by split, those in INT8 apart: ``{"s03": {"Conv float": 1, "Conv int8": 7}}``.

    QuantizeLinear, DequantizeLinear and the Cast to and from fp16 are counted under their own names.
    """
    counts = {}
    for split, model in models.items():
        found = operators(model)
        names = [f"{one.op_type} {one.precision}" for one in found]
        names += [node.op_type for node in model.graph.node if node.op_type in _QDQ]
        n_casts = len(model.graph.node) - len(names)
        names += ["Cast"] * n_casts
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
        expected = "fp16" if name in planned.fp16 else expected
        if one.precision != expected:
            raise SplitboardError(f'operator "{one.op_type}" that makes "{name}" is {one.precision}, not {expected}')
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    for name in planned.outputs:
        if (types.get(name) == TensorProto.INT8) != (name in planned.wires):
            raise SplitboardError(f'output "{name}" is not {"int8" if name in planned.wires else "as in the model"}')


def _precision(node: NodeProto, dequantised: set[str], constants: set[str]) -> Precision:
    if node.op_type in WEIGHTED:
        data = list(node.input[:2])
    else:
        data = [name for name in node.input if name and name not in constants]
    from_int8 = [name in dequantised for name in data]
    if not any(from_int8):
        return "float"
    return "int8" if all(from_int8) else "mixed"
