"""Server graphs for older parsers: TensorRT 8.5 (JetPack 5) reads opset 17."""

from __future__ import annotations

import onnx
from onnx import ModelProto, version_converter

from splitboard.contract.errors import UserError

OLDEST = 14
"""onnx's converter does not go below it for ordinary arithmetic, and ``HardSwish`` begins here."""

_IR_VERSIONS = {14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}
"""File format of an opset (onnx, ``docs/Versioning.md``); parsers refuse newer files before they look in."""

_AXES_ARE_AN_INPUT = 18
"""Of reductions, from this opset on."""


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
    """Writes a model in an older operator set.

    Args:
        model: float32, shapes fixed.
        opset: `OLDEST` to the model's own.

    Raises:
        UserError: the opset is out of that range, or an operator has no older form.
    """
    check_opset(model, opset)
    try:
        lowered = version_converter.convert_version(model, opset)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f'the model cannot be written in opset "{opset}": {str(error).strip().splitlines()[-1][:200]}',
            [f"a newer one, up to {opset_of(model)}"],
        ) from error
    for node in lowered.graph.node:
        # The converter turns the axes back into an attribute and leaves the one that belongs to the newer form.
        for position, attribute in enumerate(node.attribute):
            if opset < _AXES_ARE_AN_INPUT and attribute.name == "noop_with_empty_axes":
                del node.attribute[position]
                break
    lowered.ir_version = min(model.ir_version, _IR_VERSIONS.get(opset, model.ir_version))
    onnx.checker.check_model(lowered)
    return lowered
