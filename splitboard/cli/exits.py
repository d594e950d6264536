"""From a model folder and labelled images to a model folder with early exits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from calib.exits.fitting import features, fit
from calib.exits.heads import Head, with_heads
from export.choice import choose
from export.exits import find_exits
from export.graph import Graph
from export.metadata import describe
from export.model import MODEL_JSON, MODEL_ONNX, Model, ModelInfo
from export.splits import SplitPoint, list_splits
from splitboard.contract.bundle import file_sha256
from splitboard.contract.decode import to_json
from splitboard.contract.errors import UserError
from splitboard.contract.folder import new_folder
from splitboard.contract.preprocess import normalise, prepare
from splitboard.contract.samples import LABEL_PREFIX, Samples
from splitboard.report.outputs import ExitsOutput, FittedExit

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


@dataclass(frozen=True)
class ExitPlace:
    """Where an exit goes.

    Attributes:
        task: that it answers.
        point: the split whose tensor it takes.
    """

    task: str
    point: SplitPoint

    @property
    def tensor(self) -> str:
        """What it takes."""
        return self.point.crossing[0].name


def places(model: Model, at: str, tasks: str, labelled: Mapping[str, NDArray[np.int64]]) -> list[ExitPlace]:
    """The exits that a request names.

    Args:
        model: that gets them.
        at: comma-separated ids, module scopes or tensors.
        tasks: comma-separated; none means all with labels.
        labelled: labels by task.

    Raises:
        UserError: an unknown place or task, a cut of several tensors, a task without labels or without class scores.
    """
    if len(model.graph.inputs) != 1:
        raise UserError(
            f'model "{model.info.name}" has the inputs "{", ".join(model.graph.inputs)}"; images can feed one',
            ["export the part behind one image"],
        )
    points = [choice.point for choice in choose(model, list_splits(model), at)]
    for point in points:
        if len(point.crossing) != 1:
            raise UserError(
                f'an exit takes one tensor, "{point.id}" has {len(point.crossing)}',
                ["name a split sNN or a module: splitboard splits MODEL --max-tensors 1"],
            )
    scores = [task.name for task in model.info.tasks if len(model.graph.shapes[task.name]) == 2]
    wanted = [name.strip() for name in tasks.split(",") if name.strip()] or [
        name for name in scores if name in labelled
    ]
    for task in wanted:
        if task not in scores:
            raise UserError(
                f'no exit for the task "{task}"', [f"the model's tasks with class scores are: {', '.join(scores)}"]
            )
        if task not in labelled:
            raise UserError(
                f'the data has no labels for the task "{task}"', [f"store {LABEL_PREFIX}{task} in the .npz"]
            )
    if not wanted:
        raise UserError(
            f'the data has labels for none of the tasks "{", ".join(scores)}"',
            [f"store {LABEL_PREFIX}TASK in the .npz"],
        )
    return [ExitPlace(task, point) for point in points for task in dict.fromkeys(wanted)]


def add_exits(
    model: Model, training: Samples, wanted: Sequence[ExitPlace], target: Path, progress: Progress
) -> ExitsOutput:
    """Fits exits and writes a model folder of its own; nothing else of the model changes.

    Args:
        model: the exported model.
        training: labelled source images.
        wanted: from `places`.
        target: folder to write.
        progress: told about every step.

    Raises:
        UserError: labels that do not fit, or an exit that is there already.
        SplitboardError: another output changed.
    """
    spec = model.info.declared()
    pixels, n_images = prepare(training.images, spec), len(training)
    tensors = list(dict.fromkeys(place.tensor for place in wanted))
    inputs = (normalise(pixels[i : i + 1], spec) for i in range(n_images))
    seen = features(model.graph, tensors, inputs, lambda done: progress("features", done, n_images))
    classes = {task.name: task.labels for task in model.info.tasks}
    heads = []
    for done, place in enumerate(wanted):
        progress("fit", done, len(wanted))
        found = fit(seen[place.tensor], training.labels[place.task], classes[place.task], place.task)
        heads.append(Head(place.task, place.point.scope, place.tensor, found))
    progress("fit", len(wanted), len(wanted))
    whole = with_heads(model.whole, heads)
    info = _write(model, whole, training, heads, target)
    return ExitsOutput(
        model=str(target),
        model_sha256=info.model_sha256,
        source_sha256=model.info.model_sha256,
        data_sha256=training.sha256,
        images=n_images,
        exits=tuple(_fitted(place, head) for place, head in zip(wanted, heads, strict=True)),
    )


def _fitted(place: ExitPlace, head: Head) -> FittedExit:
    return FittedExit(
        output=head.output,
        task=head.task,
        split=place.point.id,
        scope=head.scope,
        features=head.fitted.weight.shape[1],
        inverse_penalty=head.fitted.inverse_penalty,
        accuracy=head.fitted.accuracy,
    )


def _write(model: Model, whole: Graph, training: Samples, heads: Sequence[Head], target: Path) -> ModelInfo:
    task_of = {one.output: one.task for one in model.info.exits}
    task_of |= {head.output: head.task for head in heads}
    # A head is a module of its own, called as its output, and so is what heads share.
    new = [tensor for tensor in whole.producer if tensor not in model.whole.producer]
    scopes = model.info.scopes | {tensor: tensor.partition(".")[0] for tensor in new}
    exits = find_exits(whole, model.info.tasks, task_of, scopes, model.info.sequences)
    change = (
        f"exits {', '.join(head.output for head in heads)} fitted for model {model.info.model_sha256} on "
        f"{len(training)} images (sha256 {training.sha256})"
    )
    describe(whole.model, {"exits": json.dumps(task_of)})
    with new_folder(target, MODEL_JSON) as folder:
        onnx.save(whole.model, folder / MODEL_ONNX)
        info = replace(
            model.info,
            model_sha256=file_sha256(folder / MODEL_ONNX),
            changes=(*model.info.changes, change),
            scopes=scopes,
            exits=exits,
            exit_samples=tuple(sorted({*model.info.exit_samples, *training.hashes})),
        )
        (folder / MODEL_JSON).write_text(to_json(info, indent=1) + "\n", encoding="utf-8")
    return info
