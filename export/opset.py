"""Graphs for older parsers: TensorRT 8.5 (JetPack 5) reads opset 17, TensorRT 8.2 (JetPack 4) opset 13."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, version_converter

from splitboard.contract.errors import UserError

OLDEST = 13
"""In which QuantizeLinear can have one scale per channel, and the oldest that any supported parser needs."""

NEWEST_IR_VERSION = 8
"""File format of an edge graph at most: TensorRT 8 refuses newer files before it looks in."""

_IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}
"""File format of an opset (onnx, ``docs/Versioning.md``); parsers refuse newer files before they look in."""

_AXES_ARE_AN_INPUT = 18
"""Of reductions, from this opset on; so is the number of a Split's outputs an attribute."""

_LOWEST_OF_CONVERTER = 14
"""onnx's converter does not go below it for ordinary arithmetic."""

_SAME_IN_13 = ("Add", "CumSum", "Div", "Identity", "Mul", "Relu", "Reshape", "Sub")
"""Operators that opset 14 gave more types, and Reshape an attribute, and nothing else (onnx, ``docs/Changelog.md``)."""

_Written = tuple[list[NodeProto], list[TensorProto]]
"""Nodes, and the constants that they take."""


def opset_of(model: ModelProto) -> int:
    """Version of ONNX's own operator set that a model is written in."""
    return next(int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx"))


def check_opset(model: ModelProto, opset: int) -> None:
    """Refuses an opset that a model cannot be written in.

    Raises:
        UserError: it is older than `OLDEST` or newer than the model's own.
    """
    own = opset_of(model)
    if not OLDEST <= opset <= own:
        raise UserError(f'opset "{opset}" cannot be written', [f"this model can have {OLDEST} to {own}"])


def lower_opset(model: ModelProto, opset: int) -> ModelProto:
    """Writes a model in an older operator set; every tensor keeps its name.

    Args:
        model: float32, shapes fixed.
        opset: `OLDEST` to the model's own.

    Raises:
        UserError: the opset is out of that range, or an operator has no older form.
    """
    check_opset(model, opset)
    written = _without_newer_operators(model, opset)
    try:
        lowered = version_converter.convert_version(written, max(opset, _LOWEST_OF_CONVERTER))
    except (RuntimeError, ValueError) as error:
        raise _no_older_form(
            model, opset, str(error).strip().splitlines()[-1].rpartition("failed: ")[2][:200]
        ) from error
    for node in lowered.graph.node:
        # The converter turns the axes back into an attribute and leaves the one that belongs to the newer form.
        if opset < _AXES_ARE_AN_INPUT:
            _drop_attribute(node, "noop_with_empty_axes")
    if opset < _LOWEST_OF_CONVERTER:
        _relabel_as_13(lowered, model)
    lowered.ir_version = min(model.ir_version, _IR_VERSIONS.get(opset, model.ir_version))
    onnx.checker.check_model(lowered)
    return lowered


def _no_older_form(model: ModelProto, opset: int, why: str) -> UserError:
    return UserError(
        f'the model cannot be written in opset "{opset}": {why}', [f"a newer one, up to {opset_of(model)}"]
    )


def _relabel_as_13(lowered: ModelProto, model: ModelProto) -> None:
    """Opset 14 to 13, in place: the operators that are there in both mean the same.

    Raises:
        UserError: one of them is not.
    """
    for node in lowered.graph.node:
        if node.op_type == "Reshape":
            _drop_attribute(node, "allowzero")  # shapes are fixed, so no 0 stands for a size
        newest = onnx.defs.get_schema(node.op_type, _LOWEST_OF_CONVERTER, node.domain).since_version
        if newest == _LOWEST_OF_CONVERTER and node.op_type not in _SAME_IN_13:
            raise _no_older_form(model, OLDEST, f"No Previous Version of {node.op_type}")
    for one in lowered.opset_import:
        if one.domain in ("", "ai.onnx"):
            one.version = OLDEST


def _drop_attribute(node: NodeProto, name: str) -> None:
    for position, attribute in enumerate(node.attribute):
        if attribute.name == name:
            del node.attribute[position]
            return


def _without_newer_operators(model: ModelProto, opset: int) -> ModelProto:
    """The model with those operators written out that onnx's converter has no older form of, and that we know."""
    writers = {op_type: write for op_type, (since, write) in _WRITERS.items() if opset < since}
    if not any(node.op_type in writers for node in model.graph.node):
        return model
    inferred = onnx.shape_inference.infer_shapes(model)
    values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    shapes = {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in values}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        made, constants = writers[node.op_type](node, shapes) if node.op_type in writers else ([node], [])
        nodes += made
        inferred.graph.initializer.extend(constants)
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del inferred.graph.node[:]
    inferred.graph.node.extend(kept)
    return inferred


def _slices(node: NodeProto, shapes: Mapping[str, list[int]]) -> _Written:
    """``Split`` as one ``Slice`` per output, which is what TensorRT makes of it."""
    axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
    nodes, constants, start = [], [], 0
    for name in node.output:
        end = start + shapes[name][axis]
        ends = {"start": start, "end": end, "axis": axis}
        constants += [numpy_helper.from_array(np.array([at], np.int64), f"{name}/{key}") for key, at in ends.items()]
        inputs = [node.input[0], *(f"{name}/{key}" for key in ends)]
        nodes.append(helper.make_node("Slice", inputs, [name], name=f"{node.name}/{name}"))
        start = end
    return nodes, constants


def _hard_swish(node: NodeProto, _shapes: Mapping[str, list[int]]) -> _Written:
    """``HardSwish`` by its definition, ``x * HardSigmoid(x)`` with a slope of 1/6 (onnx.ai, HardSwish-14)."""
    (x,), (y,) = node.input, node.output
    gate = helper.make_node("HardSigmoid", [x], [f"{y}/gate"], name=f"{node.name}/gate", alpha=1 / 6, beta=0.5)
    return [gate, helper.make_node("Mul", [x, f"{y}/gate"], [y], name=node.name)], []


_WRITERS: Mapping[str, tuple[int, Callable[[NodeProto, Mapping[str, list[int]]], _Written]]] = {
    "HardSwish": (14, _hard_swish),
    "Split": (18, _slices),
}
"""By operator, the opset below which it is written out, and how."""
