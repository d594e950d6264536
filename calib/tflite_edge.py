"""The edge half as TFLite: one file, one signature per split."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calib.dead_channels import floor_dead_channels
from calib.interpret import TfliteRun
from calib.observe import quantisable
from calib.quantise import PRECISIONS
from calib.ranges import RangeTable, with_scalar_arithmetic
from calib.recipe import Choice, Outputs, Prepared, Recipe, choose
from export.edge_form import edge_form, sums_into_biases
from export.graph import Graph
from export.tflite import FloatTflite, convert

Image = NDArray[np.float32]


@dataclass(frozen=True)
class FloatEdge:
    """The float file that every precision is made from.

    Attributes:
        floating: the file.
        graph: what was converted: operators written out, sums in biases, dead channels raised.
        tables: range tables by method, with the written-out tensors.
        notes: what was changed on the way and is worth knowing.
    """

    floating: FloatTflite
    graph: Graph
    tables: dict[str, RangeTable]
    notes: tuple[str, ...]


def float_edge(prepared: Prepared, signatures: Mapping[str, Sequence[str]], samples: Sequence[Image]) -> FloatEdge:
    """Converts the edge graphs of all splits.

    Args:
        prepared: from `calib.recipe.prepare`.
        signatures: tensors to return by signature name.
        samples: a few normalised images, each ``[1, c, h, w]``, on which tensors are matched.
    """
    crossing = {name for names in signatures.values() for name in names}
    form = edge_form(prepared.graph)
    tables = {method: with_scalar_arithmetic(form, table) for method, table in prepared.tables.items()}
    graph, floored = floor_dead_channels(sums_into_biases(form, crossing), tables.values())
    names = quantisable(graph, crossing)
    notes = tuple(
        f"{one.channels} dead channels of {one.node} were given a weight that carries their bias" for one in floored
    )
    return FloatEdge(convert(graph, signatures, samples, names), graph, tables, notes)


def choose_ranges(
    edge: FloatEdge, recipe: Recipe, signature: str, reference: Outputs, inputs: Callable[[], Sequence[Image]]
) -> Choice:
    """Chooses a table by what the quantised whole model answers on held-out images.

    Args:
        edge: the float file.
        recipe: what was asked for.
        signature: of the whole model.
        reference: the float model's outputs on the held-out images.
        inputs: gives these images, normalised.
    """

    def run(table: RangeTable) -> Outputs:
        return TfliteRun(quantised(edge, recipe, table), signature).all(inputs())

    return choose(edge.tables, recipe, reference, run)


def quantised(edge: FloatEdge, recipe: Recipe, table: RangeTable) -> bytes:
    """The file in the recipe's precision."""
    return PRECISIONS[recipe.precision](edge.floating, table, written_out(edge.graph, recipe.keep_float))


def written_out(graph: Graph, layers: Collection[str]) -> frozenset[str]:
    """Layers by the tensors that make them up in the file: those of written-out operators have names below theirs."""
    made = (name for node in graph.nodes for name in node.output)
    return frozenset(name for name in made if name in layers or name.rpartition("/")[0] in layers)
