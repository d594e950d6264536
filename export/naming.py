"""Names: the module that computed a tensor, as the user knows it, and what outputs are called as tasks."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from onnx import GraphProto, ModelProto, NodeProto

from splitboard.contract.errors import UserError

_TORCH_SCOPES = "pkg.torch.onnx.name_scopes"
_CALLS = ("StatefulPartitionedCall", "PartitionedCall")
"""What TensorFlow puts around a saved model, and no part of the user's names."""

_TASK = re.compile(r"[A-Za-z0-9_.-]+")
_TRIES = [
    "all outputs in order: --tasks defect,cell_type",
    "or some of them: --tasks output_0=defect",
]


def node_scope(node: NodeProto) -> str:
    """The module scope of a node, ``layer1.0.conv1``; empty for the model itself or where nothing is known.

    torch's exporter writes it to the node. Others make the node's name from it: ``/layer1/layer1.0/conv1/Conv`` (older
    torch), ``model/block_1/expand/Conv2D`` (tf2onnx, which joins several such names by semicolons where it fuses).
    """
    for entry in node.metadata_props:
        if entry.key == _TORCH_SCOPES:
            return str(ast.literal_eval(entry.value)[-2])  # the last entry is the operation
    *modules, _ = node.name.partition(";")[0].split("/")
    scope: list[str] = []
    for part in modules:
        if scope and part.startswith(f"{scope[-1]}."):
            scope[-1] = part  # torch repeats a sequence's name before its element's number
        elif part and part not in _CALLS:
            scope.append(part)
    return ".".join(scope)


def module_scopes(model: ModelProto) -> dict[str, str]:
    """Module scope by tensor, and by constant the scope of the node that takes it first."""
    found: dict[str, str] = {}
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        scope = node_scope(node)
        found.update({name: scope for name in node.output if name})
        for name in node.input:
            if name in constants:
                found.setdefault(name, scope)
    return found


def numbered_sequences(scopes: Iterable[str]) -> tuple[str, ...]:
    """Scopes whose elements have numbers for names: where module classes are not known, these are the sequences."""
    parents = set()
    for scope in scopes:
        parts = scope.split(".")
        parents |= {".".join(parts[:i]) for i, part in enumerate(parts) if part.isdecimal()}
    return tuple(sorted(parents))


def task_names(outputs: Sequence[str], tasks: str) -> dict[str, str]:
    """The task of each output.

    Args:
        outputs: of the model.
        tasks: what ``--tasks`` says; empty to keep the names.

    Raises:
        UserError: an unknown output, a name twice, or one that cannot name a served output.
    """
    names = {name: name for name in outputs}
    if tasks:
        names |= _renamed(outputs, tasks)
    for name in names.values():
        if _TASK.fullmatch(name) is None:
            raise UserError(f'"{name}" cannot name a task: use letters, digits, _ - and .', _TRIES)
        if list(names.values()).count(name) > 1:
            raise UserError(f'two outputs would be called "{name}"', _TRIES)
    return names


def _renamed(outputs: Sequence[str], tasks: str) -> dict[str, str]:
    entries = [entry.strip() for entry in tasks.split(",")]
    known = f"the model's outputs are: {', '.join(outputs)}"
    if not all(entries):
        raise UserError(f'--tasks "{tasks}" has an empty name', [*_TRIES, known])
    pairs = [entry.rpartition("=") for entry in entries]
    if not any(equals for _, equals, _ in pairs):
        if len(entries) != len(outputs):
            raise UserError(f'--tasks "{tasks}" names {len(entries)} of {len(outputs)} outputs', [*_TRIES, known])
        return dict(zip(outputs, entries, strict=True))
    for old, equals, _ in pairs:
        if not equals or old not in outputs or [one for one, _, _ in pairs].count(old) > 1:
            raise UserError(f'--tasks "{tasks}" does not say which one output is to be renamed', [*_TRIES, known])
    return {old: new for old, _, new in pairs}


def rename_outputs(model: ModelProto, names: Mapping[str, str]) -> None:
    """Renames outputs, in place; inner tensors that have one of the new names make way.

    Args:
        model: without functions.
        names: the new name of every output.

    Raises:
        UserError: an input has one of the names.
    """
    for value in model.graph.input:
        if value.name in names.values():
            raise UserError(f'an input and a task are both called "{value.name}"', _TRIES)
    taken = {name for node in model.graph.node for name in [*node.input, *node.output]} - names.keys()
    taken |= {tensor.name for tensor in model.graph.initializer}
    changed = {old: new for old, new in names.items() if old != new}
    for name in taken & set(names.values()):
        changed[name] = next(new for i in itertools.count() if (new := f"{name}/inner{i}") not in taken)
    if changed:
        _rename(model.graph, changed)


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    for value in [*graph.initializer, *graph.value_info, *graph.output]:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                _rename(inner, names)
