"""From a model folder and training images to a model folder whose weights have learnt to be INT8."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.finetune import FineTuning, finetune
from calib.methods import minmax
from calib.observe import observe, quantisable
from calib.ranges import SCHEMA_VERSION, RangeTable
from export.edge_form import edge_form
from export.graph import Graph
from export.metadata import describe
from export.model import MODEL_JSON, MODEL_ONNX, Model
from splitboard.contract.bundle import file_sha256
from splitboard.contract.decode import to_json
from splitboard.contract.errors import UserError
from splitboard.contract.folder import new_folder
from splitboard.contract.preprocess import normalise, prepare
from splitboard.contract.samples import LABEL_PREFIX, Samples
from splitboard.report.outputs import FinetuneOutput
from splitboard.zoo.training import keep_freed_memory

RANGES = "minmax"
"""The method of the ranges that the weights are tuned for: it clips nothing."""

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


def finetune_model(
    model: Model, training: Samples, calibration: Samples, settings: FineTuning, target: Path, progress: Progress
) -> FinetuneOutput:
    """Fine-tunes a model and writes a model folder of its own.

    Args:
        model: the exported model; one image in.
        training: source images; tasks with labels learn from them as well, all learn from the float model.
        calibration: source images for the ranges.
        settings: how to fine-tune.
        target: folder to write.
        progress: told about every step.

    Raises:
        UserError: the model or the labels do not fit, or the loss is not finite.
    """
    labels = usable_labels(model, training)
    spec = model.info.declared()
    table = calibrated(model, calibration, progress)
    pixels = prepare(training.images, spec)

    def images(chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        return normalise(pixels[chosen], spec)

    keep_freed_memory()
    tuned, losses = finetune(
        model.whole,
        table,
        images,
        len(pixels),
        labels,
        settings,
        lambda done, total, loss: progress(f"finetune loss {loss:.4f}", done, total),
    )
    sha256 = _write(model, tuned, training, _change(model, training, settings, labels), target)
    return FinetuneOutput(
        model=str(target),
        model_sha256=sha256,
        source_sha256=model.info.model_sha256,
        data_sha256=training.sha256,
        images=len(training),
        labelled=tuple(labels),
        losses=losses,
    )


def usable_labels(model: Model, training: Samples) -> dict[str, NDArray[np.int64]]:
    """The labels of the model's tasks.

    Raises:
        UserError: there are labels, but of other tasks; or a label that a task does not have.
    """
    graph = model.graph
    if len(graph.inputs) != 1:
        raise UserError(
            f'model "{model.info.name}" has the inputs "{", ".join(graph.inputs)}"; images can feed one',
            ["export the part behind one image"],
        )
    scores = {task.name: len(task.labels) for task in model.info.tasks if len(graph.shapes[task.name]) == 2}
    if training.labels and not training.labels.keys() & scores.keys():
        raise UserError(
            f'the data labels the task "{sorted(training.labels)[0]}"',
            [f"the model's tasks with class scores are: {', '.join(scores) or 'none'}", _without_labels()],
        )
    known = {task: values for task, values in training.labels.items() if task in scores}
    for task, values in known.items():
        strange = values[(values < 0) | (values >= scores[task])]
        if len(strange):
            raise UserError(
                f'task "{task}" has no class "{strange[0]}", which {len(strange)} labels name',
                [f"classes of {task} are numbered from 0 to {scores[task] - 1}"],
            )
    return known


def _without_labels() -> str:
    return f"leave out all {LABEL_PREFIX}* to learn from the float model alone"


def calibrated(model: Model, calibration: Samples, progress: Progress) -> RangeTable:
    """Min/max ranges of every tensor that the edge file rounds."""
    spec, graph = model.info.declared(), edge_form(model.whole)
    inputs = normalise(prepare(calibration.images, spec), spec)
    seen = observe(
        graph,
        quantisable(graph, ()),
        (inputs[i : i + 1] for i in range(len(inputs))),
        lambda done: progress("calibrate", done, len(inputs)),
    )
    ranges = {name: minmax(found) for name, found in seen.tensors.items()}
    return RangeTable(SCHEMA_VERSION, RANGES, seen.n_samples, ranges)


def _change(model: Model, training: Samples, settings: FineTuning, labels: Iterable[str]) -> str:
    """What is said of it in ``model.json``."""
    return (
        f"fine-tuned for INT8 from model {model.info.model_sha256}: {settings.epochs} epochs on {len(training)} images "
        f"(sha256 {training.sha256}), labels of {', '.join(labels) or 'no task'}, "
        f"learning rate {settings.learning_rate:g}, batch {settings.batch}, seed {settings.seed}"
    )


def _write(model: Model, tuned: Graph, training: Samples, change: str, target: Path) -> str:
    """Writes the folder; returns the sha256 of its ``model.onnx``."""
    describe(tuned.model, {"fine_tuned": change})
    with new_folder(target, MODEL_JSON) as folder:
        onnx.save(tuned.model, folder / MODEL_ONNX)
        sha256 = file_sha256(folder / MODEL_ONNX)
        # The parity was the old weights'; these are no longer what was exported.
        info = replace(model.info, model_sha256=sha256, changes=(*model.info.changes, change), parity={})
        if info.exits:  # their heads have learnt from these images too
            info = replace(info, exit_samples=tuple(sorted({*info.exit_samples, *training.hashes})))
        (folder / MODEL_JSON).write_text(to_json(info, indent=1) + "\n", encoding="utf-8")
    return sha256
