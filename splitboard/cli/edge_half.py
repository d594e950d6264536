"""The edge halves of all splits, what a build puts into ``edge/``; for TFLite here, for TensorRT in `onnx_half`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calib.artefact import count_operators, io_specs
from calib.dataset import CalibrationSet
from calib.ranges import RangeTable
from calib.recipe import Choice, Outputs, Prepared, Recipe
from calib.tflite_edge import choose_ranges, float_edge, quantised
from export.graph import Graph
from export.reference import reference_session
from splitboard.contract.bundle import TensorSpec
from splitboard.contract.preprocess import Preprocessing

TFLITE_FILE = "edge/edge.{precision}.tflite"
N_MATCHED = 3
"""Images on which the tensors of the TFLite file are matched with those of the model."""

Step = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


@dataclass(frozen=True)
class EdgeHalf:
    """The edge halves of a bundle.

    Attributes:
        files: content by path.
        paths: the file of each split.
        signatures: of each split, where the format has signatures.
        input: what all of them take.
        outputs: by split and name, what they give.
        table: the ranges that were used.
        choice: why those.
        operators: by split, the number of each operator, read from the files.
        prepared: the float model and its biases.
        keep_float: tensors whose operators were left in float.
        notes: what was changed on the way and is worth knowing.
    """

    files: dict[str, bytes]
    paths: dict[str, str]
    signatures: dict[str, str]
    input: TensorSpec
    outputs: dict[str, dict[str, TensorSpec]]
    table: RangeTable
    choice: Choice
    operators: dict[str, dict[str, int]]
    prepared: Prepared
    keep_float: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Judges:
    """Held-out images, and what the float model answers on them.

    Attributes:
        data: the images; none where there is nothing to choose.
        spec: their preprocessing.
        reference: the float model's outputs.
    """

    data: CalibrationSet
    spec: Preprocessing
    reference: Outputs


def judges(graph: Graph, data: CalibrationSet, spec: Preprocessing) -> Judges:
    """Runs the float model on the held-out images."""
    session = reference_session(graph.model)
    results = [session.run(graph.outputs, {graph.inputs[0]: image}) for image in data.inputs(spec)]
    return Judges(
        data, spec, {name: np.concatenate([one[i] for one in results]) for i, name in enumerate(graph.outputs)}
    )


def tflite_half(
    prepared: Prepared,
    wanted: dict[str, Sequence[str]],
    whole: str,
    samples: Sequence[NDArray[np.float32]],
    recipe: Recipe,
    judging: Judges | None,
    step: Step,
) -> EdgeHalf:
    """One TFLite file with a signature per split.

    Args:
        prepared: the float model and its range tables.
        wanted: tensors that each split's edge half gives, by split id.
        whole: id of the split that is the whole model.
        samples: a few normalised images.
        recipe: how to quantise.
        judging: held-out images where there are several tables.
        step: told about every step.
    """
    step("convert", 0, 1)
    edge = float_edge(prepared, wanted, samples)
    step("convert", 1, 1)
    choice = Choice(next(iter(edge.tables)), {})
    if judging is not None:
        step("choose ranges", 0, 1)
        spec, held_out = judging.spec, judging.data
        choice = choose_ranges(edge, recipe, whole, judging.reference, lambda: list(held_out.inputs(spec)))
        step("choose ranges", 1, 1)
    table = edge.tables[choice.method]
    step("quantise", 0, 1)
    content = quantised(edge, recipe, table)
    step("quantise", 1, 1)
    path = TFLITE_FILE.format(precision=recipe.precision)
    image = prepared.graph.inputs[0]
    specs = {split: io_specs(content, split, image) for split in wanted}
    return EdgeHalf(
        files={path: content},
        paths=dict.fromkeys(wanted, path),
        signatures={split: split for split in wanted},
        input=specs[whole][0],
        outputs={split: dict(outputs) for split, (_, outputs) in specs.items()},
        table=table,
        choice=choice,
        operators=count_operators(content),
        prepared=prepared,
        keep_float=recipe.keep_float,
        notes=edge.notes,
    )
