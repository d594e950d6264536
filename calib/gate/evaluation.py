"""The evaluation set: labelled, of the model's classes, and disjoint from the images that the ranges come from."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calib.gate.config import Rule
from calib.gate.metrics import NUMERIC, Array, Kind, kind_of
from splitboard.contract.bundle import Bundle, Task
from splitboard.contract.errors import UserError
from splitboard.contract.samples import Samples

CALIBRATION_HASHES = "calibration/samples.txt"


@dataclass(frozen=True)
class EvaluationSet:
    """Different images with what is true of them.

    Attributes:
        samples: each image once.
        truth: labels by task, in the model's order; tasks without are missing.
        n_repeated: images that were there again and were left out.
    """

    samples: Samples
    truth: dict[str, Array]
    n_repeated: int

    @property
    def kinds(self) -> dict[str, Kind]:
        """What the labels of each task are."""
        return {task: kind_of(values) for task, values in self.truth.items()}


def evaluation_set(folder: Path, bundle: Bundle, samples: Samples) -> EvaluationSet:
    """Checks samples against the bundle.

    Args:
        folder: the bundle.
        bundle: its manifest.
        samples: with labels of at least one task.

    Raises:
        UserError: no labels, labels of an unknown task, or images that calibrated the bundle.
    """
    names = [task.name for task in bundle.tasks]
    found = {**samples.labels, **samples.targets}
    for task in found:
        if task not in names:
            near = difflib.get_close_matches(task, names, n=1)
            raise UserError(
                f'the data has labels for task "{task}", which the model does not have',
                [f'"{near[0]}" is the nearest' if near else f"its tasks: {', '.join(names)}"],
            )
    if not found:
        raise UserError(
            f'the data has no labels for any of "{", ".join(names)}"',
            [f"store labels.{names[0]} in the .npz", "or one folder of images per class of the one labelled task"],
        )
    _check_disjoint(folder, samples)
    rows = _first_rows(samples)
    once = samples if len(rows) == len(samples) else samples.rows(rows)
    truth = {task: (once.labels | once.targets)[task] for task in names if task in found}
    return EvaluationSet(once, truth, len(samples) - len(rows))


def _first_rows(samples: Samples) -> list[int]:
    """The first row of every image: a repetition is no further evidence."""
    first: dict[str, int] = {}
    for row, digest in enumerate(samples.hashes):
        first.setdefault(digest, row)
    return list(first.values())


def _check_disjoint(folder: Path, samples: Samples) -> None:
    known = set((folder / CALIBRATION_HASHES).read_text(encoding="utf-8").split())
    shared = [digest for digest in samples.hashes if digest in known]
    if shared:
        raise UserError(
            f'{len(set(shared))} of the images are in "{CALIBRATION_HASHES}": they calibrated this bundle and cannot '
            f'judge it; the first has the sha256 "{shared[0]}"',
            ["evaluate on images that the build has not seen"],
        )


def labels_of_folders(names: tuple[str, ...], tasks: tuple[Task, ...]) -> dict[str, Array]:
    """Labels from subfolders that are named like the classes of exactly one task.

    Args:
        names: the subfolder of each image, empty for none.
        tasks: of the model.

    Returns:
        The labels by task; empty where the subfolders name no classes.

    Raises:
        UserError: they name the classes of several tasks, or some that no task has.
    """
    found = set(names)
    near = max(tasks, key=lambda task: len(found & set(task.labels)))
    if not found & set(near.labels):
        return {}
    if odd := sorted(found - set(near.labels)):
        raise UserError(
            f'the subfolder "{odd[0] or "."}" is no class of task {near.name}, others are',
            [f"its classes: {', '.join(near.labels)}", "one folder of images per class and none beside"],
        )
    matching = [task for task in tasks if found <= set(task.labels)]
    if len(matching) > 1:
        raise UserError(
            f'the subfolders name classes of the tasks "{", ".join(task.name for task in matching)}"',
            ["store the labels of each task in an .npz: images, labels.TASK"],
        )
    return {near.name: np.asarray([near.labels.index(name) for name in names], np.int64)}


def check_labels(truth: Mapping[str, Array], rules: Mapping[str, Rule], tasks: tuple[Task, ...]) -> None:
    """Refuses labels that cannot judge their task.

    Args:
        truth: labels by task.
        rules: by task.
        tasks: of the model.

    Raises:
        UserError: a class that the model does not have, one class only, or numbers that are none.
    """
    for task in tasks:
        if task.name in truth:
            _check_task(task, truth[task.name], rules[task.name])


def _check_task(task: Task, values: Array, rule: Rule) -> None:
    if rule.metric.name in NUMERIC:
        _check_numbers(task, values)
    if values.dtype.kind != "f" and rule.metric.name not in NUMERIC:
        _check_classes(task, values)


def check_outputs(task: str, values: Array, outputs: Array) -> None:
    """Refuses outputs that cannot be compared with the labels.

    Args:
        task: name.
        values: labels, ``[n, ...]``.
        outputs: what a model gives, ``[n, ...]``.

    Raises:
        UserError: they hold NaN, or maps of another size than the labels.
    """
    if not np.isfinite(outputs).all():
        bad = outputs[~np.isfinite(outputs)].ravel()[0]
        raise UserError(f'the model gives "{bad}" for task {task}', ["build the bundle again: splitboard build"])
    if kind_of(values) == "maps" and outputs.shape[2:] != values.shape[1:]:
        raise UserError(
            f'the labels of task "{task}" are maps of "{"x".join(map(str, values.shape[1:]))}", the model gives '
            f"{'x'.join(map(str, outputs.shape[2:])) or 'one class'} per image",
            ["bring the maps to the size of the model's output"],
        )


def _check_numbers(task: Task, values: Array) -> None:
    n_values = math.prod(values.shape[1:])
    if n_values != len(task.labels):
        raise UserError(
            f'the labels of task "{task.name}" hold "{n_values}" numbers per sample, the model gives '
            f"{len(task.labels)}",
            [f"store labels.{task.name} as real numbers [{len(values)}, {len(task.labels)}]"],
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = values[~np.isfinite(values)].ravel()[0]
        raise UserError(f'the labels of task "{task.name}" hold "{bad}"', ["store finite numbers"])


def _check_classes(task: Task, values: Array) -> None:
    classes = len(task.labels)
    odd = values[(values < 0) | (values >= classes)]
    if odd.size:
        raise UserError(
            f'the labels of task "{task.name}" hold the class "{odd.ravel()[0]}", the model has {classes}: '
            f"0 to {classes - 1}",
            [f"its classes: {', '.join(task.labels)}", "store numbers that are no classes as floats"],
        )
    if len(np.unique(values)) == 1:
        only = task.labels[int(values.ravel()[0])]
        raise UserError(
            f'all {len(values)} samples have the one class "{only}" in task "{task.name}": any constant answer would '
            "pass",
            ["add samples of other classes"],
        )
