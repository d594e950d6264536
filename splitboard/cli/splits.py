"""What ``splits`` shows and ``build`` takes: filters, proofs, choices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from export.choice import Choice, check_tasks, choose, choose_automatically, place_tasks
from export.model import Model
from export.splits import SplitPoint, Splits
from export.verify import verify_all
from splitboard.cli.console import steps
from splitboard.contract.errors import UserError

AUTO = "auto"
_SEED = 0
_BYTES_ON_THE_WIRE = {"int8": 1, "int16x8": 2, "fp16": 4, "fp32": 4}
"""Of a real number, by the precision of the edge half; half-precision graphs begin and end in float32."""


def shown_points(splits: Splits, *, natural: bool, blocks: bool, max_tensors: int | None) -> tuple[SplitPoint, ...]:
    """The split points that all given filters let through. The two ends are neither natural nor blocks."""
    return tuple(
        point
        for point in splits.points
        if (point.natural or not natural)
        and (point.block or not blocks)
        and (max_tensors is None or len(point.crossing) <= max_tensors)
    )


def prove(model: Model, splits: Splits, shown: Sequence[SplitPoint]) -> dict[str, dict[str, float]]:
    """Verifies the cuts shown on one seeded input: by split id and output, how far server(edge(x)) is off."""
    cuts = {point.id: splits.cuts[point.id] for point in shown if point.id in splits.cuts}
    with steps("splitboard") as show:
        return verify_all(model.graph, cuts, seeded_inputs(model), lambda done: show("verify", done, len(cuts)))


def seeded_inputs(model: Model) -> dict[str, NDArray[np.generic]]:
    """One reproducible input per model input: normal real numbers, and 0 or 1 where whole numbers are asked for."""
    random, graph = np.random.default_rng(_SEED), model.graph
    return {
        name: random.normal(size=graph.shapes[name]).astype(graph.dtypes[name])
        if graph.is_float(name)
        else random.integers(0, 2, graph.shapes[name]).astype(graph.dtypes[name])
        for name in graph.inputs
    }


def choose_for_build(model: Model, splits: Splits, wanted: str, local: str, precision: str) -> list[Choice]:
    """The cuts of a build, some task heads placed on the edge.

    Raises:
        UserError: what is asked for does not exist or does not go together.
    """
    tasks = [task.strip() for task in local.split(",") if task.strip()]
    check_tasks(model, splits, tasks)
    named = [part.strip() for part in wanted.split(",")]
    if AUTO in named and len(named) > 1:
        others = ",".join(part for part in named if part != AUTO)
        raise UserError(f'"{AUTO}" chooses by itself, found "{wanted}"', [f"--split {AUTO}", f"--split {others}"])
    if named == [AUTO]:
        chosen = choose_automatically(splits, tasks, _BYTES_ON_THE_WIRE[precision])
    else:
        chosen = choose(model, splits, wanted)
    return place_tasks(model, splits, chosen, tasks) if tasks else chosen
