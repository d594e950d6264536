"""The edge halves of all splits, in the format of the board: what a build puts into ``edge/``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.artefact import count_operators as count_tflite
from calib.artefact import io_specs
from calib.dataset import CalibrationSet
from calib.keep_float import operators_of
from calib.qdq.emit import emit
from calib.qdq.inspect import check_precision
from calib.qdq.inspect import count_operators as count_onnx
from calib.qdq.plan import plan, wire_specs
from calib.ranges import RangeTable
from calib.recipe import Choice, Outputs, Prepared, Recipe, choose
from calib.tflite_edge import choose_ranges, float_edge, quantised
from export.graph import Graph
from export.reference import reference_session
from splitboard.contract.bundle import TensorSpec
from splitboard.contract.errors import SplitboardError
from splitboard.contract.preprocess import Preprocessing

TFLITE_FILE = "edge/edge.{precision}.tflite"
ONNX_FILE = "edge/{split}.{precision}.op{opset}.onnx"
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
        operators=count_tflite(content),
        prepared=prepared,
        keep_float=recipe.keep_float,
        notes=edge.notes,
    )


def onnx_half(
    prepared: Prepared,
    wanted: dict[str, Sequence[str]],
    whole: str,
    recipe: Recipe,
    judging: Judges | None,
    step: Step,
) -> EdgeHalf:
    """One explicit Q/DQ graph per split; the arguments are those of `tflite_half`."""
    graph = prepared.graph
    if recipe.precision != "int8":
        raise SplitboardError(f'no "{recipe.precision}" form of an ONNX edge half')
    crossing = {name for names in wanted.values() for name in names}
    keep_float = operators_of(graph, recipe.keep_float, crossing)
    choice = Choice(next(iter(prepared.tables)), {})
    if judging is not None:
        step("choose ranges", 0, 1)
        choice = choose(
            prepared.tables,
            recipe,
            judging.reference,
            lambda table: _outputs(emit(graph, plan(graph, wanted[whole], table, keep_float)), wanted[whole], judging),
        )
        step("choose ranges", 1, 1)
    table = prepared.tables[choice.method]
    models: dict[str, onnx.ModelProto] = {}
    outputs: dict[str, dict[str, TensorSpec]] = {}
    for done, (split, names) in enumerate(wanted.items()):
        step("quantise", done, len(wanted))
        planned = plan(graph, names, table, keep_float)
        models[split] = emit(graph, planned)
        check_precision(models[split], planned)
        outputs[split] = {spec.name: spec for spec in wire_specs(graph, planned, names)}
    step("quantise", len(wanted), len(wanted))
    opset = graph.model.opset_import[0].version
    paths = {split: ONNX_FILE.format(split=split, precision=recipe.precision, opset=opset) for split in wanted}
    image = graph.inputs[0]
    return EdgeHalf(
        files={paths[split]: model.SerializeToString() for split, model in models.items()},
        paths=paths,
        signatures={},
        input=TensorSpec(image, graph.shapes[image], "float32", "NCHW"),
        outputs=outputs,
        table=table,
        choice=choice,
        operators=count_onnx(models),
        prepared=prepared,
        keep_float=recipe.keep_float,
        notes=(),
    )


def _outputs(model: onnx.ModelProto, tasks: Sequence[str], judging: Judges) -> Outputs:
    """What a Q/DQ graph answers on the held-out images."""
    session, image = reference_session(model), model.graph.input[0].name
    results = [session.run(tasks, {image: one}) for one in judging.data.inputs(judging.spec)]
    return {name: np.concatenate([one[i] for one in results]) for i, name in enumerate(tasks)}
