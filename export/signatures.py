"""Several signatures cut out of one subgraph of a TFLite file, so that the whole model is converted only once.

A converter takes seconds per signature, and all edge halves are beginnings of one model. So the model is converted with
every wanted tensor as an output, and each signature keeps the operators that its own outputs need. Buffers are not
touched: every signature refers to the same weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from ai_edge_litert.schema_py_generated import OperatorT, SignatureDefT, SubGraphT, TensorMapT

_ABSENT = -1
"""Index of an optional operand that is left out."""


def cut_out(source: SubGraphT, outputs: Sequence[int], name: str) -> SubGraphT:
    """The part of a subgraph that some of its tensors need.

    Args:
        source: with one input.
        outputs: tensor indices, in order.
        name: of the part, which its tensors' names begin with: a file's names must differ.

    Returns:
        A subgraph with tensors of its own, the input and these outputs.
    """
    operators = _needed(source, outputs)
    used = {index for one in operators for index in (*one.inputs, *one.outputs) if index != _ABSENT}
    kept = sorted(used | set(source.inputs) | set(outputs))
    place = {index: position for position, index in enumerate(kept)} | {_ABSENT: _ABSENT}
    made = copy.copy(source)
    made.name = name.encode()
    made.tensors = [copy.copy(source.tensors[index]) for index in kept]
    for tensor in made.tensors:
        tensor.name = f"{name}/{tensor.name.decode()}".encode()
    made.operators = [_renumbered(one, place) for one in operators]
    made.inputs = [place[index] for index in source.inputs]
    made.outputs = [place[index] for index in outputs]
    return made


def _needed(source: SubGraphT, outputs: Sequence[int]) -> list[OperatorT]:
    wanted, found = set(outputs), []
    for operator in reversed(source.operators):
        if wanted & set(operator.outputs):
            wanted |= set(operator.inputs)
            found.append(operator)
    return found[::-1]


def _renumbered(operator: OperatorT, place: dict[int, int]) -> OperatorT:
    made = copy.copy(operator)
    made.inputs = [place[index] for index in operator.inputs]
    made.outputs = [place[index] for index in operator.outputs]
    return made


def signature(
    key: str, subgraph: SubGraphT, number: int, inputs: Sequence[str], outputs: Sequence[str]
) -> SignatureDefT:
    """The definition of a subgraph's signature, with names for what it takes and gives."""
    made = SignatureDefT()
    made.signatureKey, made.subgraphIndex = key.encode(), number
    made.inputs = [_named(name, index) for name, index in zip(inputs, subgraph.inputs, strict=True)]
    made.outputs = [_named(name, index) for name, index in zip(outputs, subgraph.outputs, strict=True)]
    return made


def _named(name: str, index: int) -> TensorMapT:
    made = TensorMapT()
    made.name, made.tensorIndex = name.encode(), index
    return made
