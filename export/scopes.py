"""Tensors and the modules that they are the output of, as the user knows the model (``features.4.1``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from export.graph import Graph


def module_ends(graph: Graph, scopes: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The modules that end with each tensor, outermost first.

    A module ends with a tensor where all tensors that leave the module come from one and the same place inside of it:
    ``blocks`` and ``blocks.3`` and ``blocks.3.project`` may all end with the same tensor, while a list of modules whose
    elements all have takers elsewhere (the encoder of a U-Net) ends with none of them.

    Args:
        graph: the whole model.
        scopes: by tensor, the module that computed it; missing or empty for the model itself.
    """
    leaving: dict[str, list[str]] = {}
    for tensor in graph.producer:
        takers = [scopes.get(graph.nodes[i].output[0], "") for i in graph.consumers.get(tensor, [])]
        for module in _modules(scopes.get(tensor, "")):
            if tensor in graph.outputs or not all(is_inside(taker, module) for taker in takers):
                leaving.setdefault(module, []).append(tensor)
    ends: dict[str, tuple[str, ...]] = {}
    for module in sorted(leaving, key=len):
        if len({scopes.get(tensor, "") for tensor in leaving[module]}) == 1:
            for tensor in leaving[module]:
                ends[tensor] = (*ends.get(tensor, ()), module)
    return ends


def _modules(scope: str) -> Iterator[str]:
    """A scope and all scopes around it, the model itself left out, outermost first."""
    parts = scope.split(".") if scope else []
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def is_inside(scope: str, module: str) -> bool:
    """Whether a scope is a module or lies in it."""
    return scope == module or scope.startswith(f"{module}.")
