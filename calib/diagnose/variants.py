"""An edge half in which single layers are switched between INT8 and float; both formats have one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from calib.keep_float import operators_of
from calib.observe import quantisable
from export.graph import Graph, members

Real = NDArray[np.float32]

Runner = Callable[[Real], dict[str, Real]]
"""From a normalised image ``[1, c, h, w]`` to what an edge half gives by name: real numbers in the model's layout."""


class Variants(Protocol):
    """The edge half of one split.

    Attributes:
        layers: that the artefact shows, in topological order.
        switchable: those of them that INT8 changes and that can be left in float.
        steps: scale and zero point of the INT8 tensor that a layer makes, where its range belongs to the layer.
        deviation: how far the rebuilt half is off the bundle's, see `calib.diagnose.rebuild.require_same`.
    """

    layers: tuple[str, ...]
    switchable: frozenset[str]
    steps: Mapping[str, tuple[float, int]]
    deviation: float

    def tensors(self, image: Real) -> dict[str, Real]:
        """The artefact's tensors by layer, as real numbers, flat in the model's layout; the image's under its name."""
        ...

    def left_float(self, layers: Collection[str]) -> Runner:
        """The bundle's edge half with some more layers in float."""
        ...

    def int8(self, layer: str) -> Runner:
        """The float edge half with one layer in INT8."""
        ...


def layers_of(graph: Graph, outputs: Collection[str], crossing: Collection[str]) -> tuple[str, ...]:
    """The layers that an edge half needs: tensors that an artefact can hold in INT8, in topological order."""
    made = {name for i in members(graph.needed(outputs)) for name in graph.nodes[i].output}
    return tuple(name for name in quantisable(graph, crossing) if name in made)


def sources_of(graph: Graph, layers: Collection[str], crossing: Collection[str]) -> dict[str, tuple[str, ...]]:
    """What each layer takes: tensors of other layers, or the model's input."""
    found = {}
    for layer in layers:
        inside = operators_of(graph, {layer}, crossing)
        taken = [name for one in inside for name in graph.nodes[graph.producer[one]].input]
        found[layer] = tuple(sorted({name for name in taken if name in graph.shapes and name not in inside}))
    return found
