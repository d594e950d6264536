"""A clean graph: constants and batch norms folded, nothing left that does nothing, forms that boards are fast at.

The work is done by two libraries, the optimiser of onnxscript, which keeps the names of tensors when it folds, and
onnxsim, which computes what does not depend on the inputs; `export.rewrites` does what they leave. What happened is
told from the graphs before and after, not from what was asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass

import onnx
import onnxscript.optimizer
import onnxsim
from onnx import ModelProto, shape_inference

from export import rewrites
from export.naming import module_scopes
from splitboard.contract.errors import UserError


@dataclass(frozen=True)
class Cleaned:
    """A graph after cleaning.

    Attributes:
        model: checked, shapes inferred.
        scopes: module scope by tensor.
        changes: what was done, one line each, with counts by operator.
    """

    model: ModelProto
    scopes: Mapping[str, str]
    changes: tuple[str, ...]


def clean(raw: ModelProto) -> Cleaned:
    """Cleans a graph.

    Args:
        raw: without functions, its inputs' dimensions fixed; not changed.

    Raises:
        UserError: a library cannot work on the graph.
    """
    scopes = module_scopes(raw)
    before = operators(raw)
    try:
        model = onnxscript.optimizer.optimize(raw)
        model, _ = onnxsim.simplify(model)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f'the graph cannot be simplified: "{_last_line(error)}"', ["check it with onnx.checker.check_model"]
        ) from error
    rewrites.lift_constants(model)
    model = inferred(model)
    turned = [
        _turned(model, scopes, rewrites.scale_and_shift, "BatchNormalization", "Mul and Add"),
        _turned(model, scopes, rewrites.average_globally, "ReduceMean", "GlobalAveragePool", " over H,W"),
    ]
    rewrites.drop_no_ops(model, scopes)
    rewrites.convolve_flattened(model, scopes)
    rewrites.drop_unused_constants(model)
    model = inferred(model)
    onnx.checker.check_model(model)
    found = surviving_scopes(model, scopes)
    return Cleaned(model, found, tuple(_changes(before, operators(model), [one for one in turned if one is not None])))


def operators(model: ModelProto) -> Counter[str]:
    """Number of nodes by operator; constants are values and no operations."""
    return Counter(node.op_type for node in model.graph.node if node.op_type != "Constant")


def inferred(model: ModelProto) -> ModelProto:
    """A model with the shapes of all its tensors that follow from those of the inputs.

    Raises:
        UserError: they contradict one another.
    """
    try:
        return shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError as error:
        raise UserError(
            f'the shapes of the graph contradict one another: "{_last_line(error)}"',
            ["check it with onnx.checker.check_model(model, full_check=True)", "give the right --input"],
        ) from error


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].replace('"', "'")[:200] if lines else type(error).__name__


@dataclass(frozen=True)
class _Turned:
    """One kind of rewrite.

    Attributes:
        source: the operator that was replaced.
        count: how often.
        line: for the user.
    """

    source: str
    count: int
    line: str


def _turned(
    model: ModelProto,
    scopes: MutableMapping[str, str],
    rewrite: Callable[[ModelProto, MutableMapping[str, str]], None],
    source: str,
    target: str,
    note: str = "",
) -> _Turned | None:
    before = operators(model)[source]
    rewrite(model, scopes)
    count = before - operators(model)[source]
    return _Turned(source, count, f"{source}{note} to {target}: {count}") if count else None


def _changes(before: Counter[str], after: Counter[str], turned: list[_Turned]) -> list[str]:
    """What happened to the operators, one line each."""
    gone = before - after
    for one in turned:
        gone[one.source] -= one.count
    lines = []
    for verb, names in (
        ("folded", ("BatchNormalization",)),
        ("removed", ("Identity", "Dropout", "AveragePool", "MaxPool")),
    ):
        lines += [f"{verb} {gone[name]} {name}" for name in names if gone[name] > 0]
        for name in names:
            del gone[name]
    lines += [one.line for one in turned]
    others = sorted((+gone).items(), key=lambda item: (-item[1], item[0]))
    if others:
        lines.append(f"computed or fused: {', '.join(f'{count} {name}' for name, count in others)}")
    lines.append(f"nodes {before.total()} to {after.total()}")
    return lines


def surviving_scopes(model: ModelProto, scopes: Mapping[str, str]) -> dict[str, str]:
    """Module scope by tensor of a simplified graph.

    A tensor that the simplification made has the scope of the weights that its node takes, else of its first input.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    found: dict[str, str] = {}
    for node in model.graph.node:
        weights = (scopes[name] for name in node.input if name in constants and scopes.get(name))
        inherited = next(weights, next((found[name] for name in node.input if name in found), ""))
        for name in node.output:
            found[name] = scopes.get(name, inherited)
    return found
