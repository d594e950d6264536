"""How an edge half is quantised, and what both formats start from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calib.bias import corrected_biases, with_biases
from calib.equalise import equalise
from calib.keep_float import operators_of
from calib.methods import METHODS, make_table
from calib.observe import observe, quantisable
from calib.ranges import RangeTable
from export.graph import Graph
from splitboard.contract.errors import UserError

AUTO = "auto"
CANDIDATES = ("minmax", "p99.999", "p99.99", "mse")
"""What ``auto`` chooses from. Entropy is not among them: it destroys networks with long tails."""

_REFERENCE = "minmax"
_MUST_NOT_LOSE = ("entropy",)
"""Methods that are used only where they are measured to be no worse than the reference."""

_WITHOUT_RANGES = ("fp16", "fp32")
"""Precisions in which nothing is rounded to integers, so there is neither a range to choose nor a bias to correct."""

Outputs = Mapping[str, NDArray[np.float32]]
"""By task, ``[n, ...]``, float32."""


@dataclass(frozen=True)
class Recipe:
    """What the user asks for.

    Attributes:
        precision: of the edge half, a name of `calib.quantise.PRECISIONS`.
        ranges: a name of `calib.methods.METHODS`, or ``auto``.
        equalise: whether channels of layers in a row are scaled to equal ranges first.
        correct_bias: whether the mean error of rounded weights is taken out of the biases.
        keep_float: tensors whose operators stay in float.
    """

    precision: str = "int8"
    ranges: str = AUTO
    equalise: bool = False
    correct_bias: bool = True
    keep_float: tuple[str, ...] = ()

    @property
    def candidates(self) -> tuple[str, ...]:
        """Methods to make tables with; if there are several, held-out images decide."""
        if self.precision in _WITHOUT_RANGES:
            return (_REFERENCE,)
        if self.ranges == AUTO:
            return CANDIDATES
        return (_REFERENCE, self.ranges) if self.ranges in _MUST_NOT_LOSE else (self.ranges,)


@dataclass(frozen=True)
class Prepared:
    """What both formats start from.

    Attributes:
        graph: the float model, its weights and biases prepared.
        tables: range tables by method.
        equalised: pairs of layers that were equalised.
        biases: corrected ones, by the name of the tensor that the layer makes.
    """

    graph: Graph
    tables: dict[str, RangeTable]
    equalised: int
    biases: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Choice:
    """Which table is used, and why.

    Attributes:
        method: its name.
        errors: by method and task, the root of the summed squared error of the outputs over that of the outputs
            themselves, on held-out images; empty where there was nothing to choose.
    """

    method: str
    errors: dict[str, dict[str, float]]


def check_ranges(name: str) -> None:
    """Refuses an unknown method.

    Raises:
        UserError: it is none.
    """
    if name != AUTO and name not in METHODS:
        raise UserError(f'unknown ranges "{name}"', [f"one of: {', '.join((AUTO, *METHODS))}"])


def prepare(
    graph: Graph,
    crossing: Collection[str],
    inputs: Iterable[NDArray[np.float32]],
    recipe: Recipe,
    on_sample: Callable[[int], None],
) -> Prepared:
    """Equalises where asked, observes every tensor in one pass, corrects biases.

    Args:
        graph: the float model.
        crossing: tensors that cross one of the cuts; they keep their values.
        inputs: normalised calibration images, each ``[1, c, h, w]``.
        recipe: what is asked for.
        on_sample: called with the number of images done.

    Raises:
        UserError: no image, or a tensor that is not finite.
    """
    balanced, pairs = equalise(graph, crossing) if recipe.equalise else (graph, 0)
    seen = observe(balanced, quantisable(balanced, crossing), inputs, on_sample)
    tables = {method: make_table(seen, method) for method in recipe.candidates}
    rounds = recipe.precision not in _WITHOUT_RANGES
    biases = corrected_biases(balanced, seen) if recipe.correct_bias and rounds else {}
    exact = operators_of(balanced, recipe.keep_float, crossing)  # their weights are not rounded
    biases = {name: bias for name, bias in biases.items() if name not in exact}
    return Prepared(with_biases(balanced, biases), tables, pairs, biases)


def choose(
    tables: Mapping[str, RangeTable], recipe: Recipe, reference: Outputs, run: Callable[[RangeTable], Outputs]
) -> Choice:
    """Takes the table with which the worst task's outputs are nearest to the float model's.

    Args:
        tables: the candidates by method.
        recipe: what was asked for.
        reference: the float model's outputs on held-out images.
        run: quantises with a table and gives the artefact's outputs on the same images.

    Raises:
        UserError: a method was asked for that is worse than min/max here and is known to be dangerous.
    """
    if len(tables) == 1:
        return Choice(next(iter(tables)), {})
    errors = {method: _errors(reference, run(table)) for method, table in tables.items()}
    best = min(errors, key=lambda method: max(errors[method].values()))
    if recipe.ranges != AUTO and best != recipe.ranges:
        worst = {method: max(found.values()) for method, found in errors.items()}
        raise UserError(
            f'ranges "{recipe.ranges}" are worse than {best} on held-out images: the worst task is off by '
            f"{worst[recipe.ranges]:.3f} of its outputs instead of {worst[best]:.3f}",
            ["--ranges auto", f"--ranges {best}"],
        )
    return Choice(best, errors)


def _errors(reference: Outputs, outputs: Outputs) -> dict[str, float]:
    return {
        task: float(np.linalg.norm(outputs[task] - expected) / (np.linalg.norm(expected) or 1.0))
        for task, expected in reference.items()
    }
