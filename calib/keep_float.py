"""What a user names to stay in float, as tensors of the graph.

A name is a module scope of the user's model (``features.4.1``: all layers inside) or a tensor of ``model.onnx``. A
layer and the activation behind it are one operator on a board, so they stay in float together.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence

from calib.observe import quantisable
from export.graph import Graph
from splitboard.contract.errors import UserError


def resolve(
    graph: Graph, scopes: Mapping[str, str], names: Sequence[str], crossing: Collection[str]
) -> tuple[str, ...]:
    """The tensors whose operators stay in float.

    Args:
        graph: the whole float model.
        scopes: module scope by tensor.
        names: what the user typed.
        crossing: tensors that cross a cut.

    Returns:
        Names as in `calib.observe.quantisable`, in topological order.

    Raises:
        UserError: a name that is neither a scope nor a tensor; the nearest is named.
    """
    layers = [name for name in quantisable(graph, crossing) if name in graph.producer]
    behind = {name: _fused_into(graph, name, set(layers)) for node in graph.nodes for name in node.output}
    found: set[str] = set()
    for wanted in names:
        members = [behind[one] for one, scope in scopes.items() if one in behind and _inside(scope, wanted)]
        if wanted in behind:
            members = [behind[wanted]]
        if not members:
            known = [*_with_parents(scopes.values()), *layers]
            near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.4)
            raise UserError(
                f'"{wanted}" is neither a module nor a tensor of the model',
                [
                    *(f'"{one}" is the nearest' for one in near),
                    "splitboard diagnose BUNDLE --model MODEL names the layers",
                ],
            )
        found.update(members)
    return tuple(name for name in layers if name in found)


def _with_parents(scopes: Iterable[str]) -> list[str]:
    """Every module scope and the modules that it lies in, each once."""
    parts = (scope.split(".") for scope in scopes)
    return list(dict.fromkeys(".".join(names[: i + 1]) for names in parts for i in range(len(names))))


def _inside(scope: str, wanted: str) -> bool:
    return scope == wanted or scope.startswith(wanted + ".")


def _fused_into(graph: Graph, tensor: str, layers: Collection[str]) -> str:
    """The tensor that the operator gives which computes this one."""
    while tensor not in layers and len(graph.consumers.get(tensor, [])) == 1:
        (taker,) = graph.consumers[tensor]
        tensor = graph.nodes[taker].output[0]
    return tensor


def operators_of(graph: Graph, layers: Collection[str], crossing: Collection[str]) -> frozenset[str]:
    """What the single operators of some layers make: the layers' own tensors, and those of the operators fused in."""
    known = set(quantisable(graph, crossing))
    made = (name for node in graph.nodes for name in node.output)
    return frozenset(name for name in made if _fused_into(graph, name, known) in layers)
