"""Accuracy per task of what was deployed, paired with the float model image by image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.errors import UserError
from splitboard.contract.record import RunRecord


@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy on the images of one true class.

    Attributes:
        label: name of the class, its number where no bundle names it.
        n: images of this class.
        float_: share that the float model gets right, from 0 to 1; ``None`` without a float reference.
        int8: share that the deployed path gets right.
    """

    label: str
    n: int
    float_: float | None
    int8: float


@dataclass(frozen=True)
class TaskComparison:
    """One task on one path, against the float model on the same images.

    Attributes:
        split: id.
        task: name.
        n: different images; an image that was run several times counts once.
        n_right: images that the deployed path gets right.
        float_right: images that the float model gets right; ``None`` without a float reference.
        n_disagree: images on which the two name different classes, right or wrong; ``None`` as above.
        n_lost: images that only the float model gets right; ``None`` as above.
        n_gained: images that only the deployed path gets right; ``None`` as above.
        balanced_float: mean over classes of the float model's accuracy, from 0 to 1; ``None`` as above.
        balanced_int8: the same of the deployed path.
        classes: per true class, those that occur.
    """

    split: str
    task: str
    n: int
    n_right: int
    float_right: int | None
    n_disagree: int | None
    n_lost: int | None
    n_gained: int | None
    balanced_float: float | None
    balanced_int8: float
    classes: tuple[ClassAccuracy, ...]

    @property
    def int8(self) -> float:
        """Accuracy of the deployed path, from 0 to 1."""
        return self.n_right / self.n

    @property
    def float_(self) -> float | None:
        """Accuracy of the float model, from 0 to 1."""
        return None if self.float_right is None else self.float_right / self.n

    @property
    def drop_points(self) -> float | None:
        """Percentage points lost by deploying; negative where deploying gained."""
        return None if self.float_right is None else 100.0 * (self.float_right - self.n_right) / self.n


def compare(
    record: RunRecord, reference: RunRecord | None, class_names: dict[str, tuple[str, ...]]
) -> tuple[TaskComparison, ...]:
    """Compares every labelled task of a record with the float reference, matched by sample id.

    Args:
        record: of a deployed path.
        reference: the float model's outputs, where there are any.
        class_names: by task, in the order of the scores; missing tasks get numbers.

    Raises:
        UserError: the two hold different images or different tasks.
    """
    first = _first_rows(record)
    partner = None if reference is None else _matching_rows(record, first, reference)
    compared = []
    for task in record.labels:
        if not first:
            continue
        truth = np.asarray(record.labels[task])[list(first.values())]
        deployed = _answers(record, task)[list(first.values())]
        exact = None if reference is None or partner is None else _answers(reference, task)[partner]
        names = class_names.get(task) or tuple(str(i) for i in range(len(record.outputs[task][0])))
        compared.append(_compare_task(record.split, task, truth, deployed, exact, names))
    return tuple(compared)


def _first_rows(record: RunRecord) -> dict[str, int]:
    """Row of the first run of every image: repetitions add timings, not evidence about accuracy."""
    rows: dict[str, int] = {}
    for row, sample in enumerate(record.sample_ids):
        rows.setdefault(sample, row)
    return rows


def _matching_rows(record: RunRecord, first: dict[str, int], reference: RunRecord) -> list[int]:
    """The reference's row for every image of the record."""
    known = _first_rows(reference)
    if known.keys() != first.keys():
        odd = sorted(known.keys() ^ first.keys())
        raise UserError(
            f'split "{record.split}" and the float reference ran on different images: {len(odd)} are not in both, '
            f'the first is "{odd[0]}"',
            ["bench all splits and the float reference on the same data in one run"],
        )
    missing = sorted(record.labels.keys() - reference.outputs.keys())
    if missing:
        raise UserError(
            f'the float reference has no outputs for task "{missing[0]}"', [f"it has: {', '.join(reference.outputs)}"]
        )
    return [known[sample] for sample in first]


def _answers(record: RunRecord, task: str) -> NDArray[np.intp]:
    """The class with the highest score, per sample."""
    answers: NDArray[np.intp] = np.argmax(np.asarray(record.outputs[task], dtype=np.float64), axis=1)
    return answers


def _compare_task(
    split: str,
    task: str,
    truth: NDArray[np.int64],
    deployed: NDArray[np.intp],
    exact: NDArray[np.intp] | None,
    names: tuple[str, ...],
) -> TaskComparison:
    right = deployed == truth
    float_right = None if exact is None else exact == truth
    classes = []
    for index in np.unique(truth):
        chosen = truth == index
        float_share = None if float_right is None else float(float_right[chosen].mean())
        classes.append(ClassAccuracy(names[index], int(chosen.sum()), float_share, float(right[chosen].mean())))
    float_shares = [one.float_ for one in classes if one.float_ is not None]
    return TaskComparison(
        split=split,
        task=task,
        n=len(truth),
        n_right=int(right.sum()),
        float_right=None if float_right is None else int(float_right.sum()),
        n_disagree=None if exact is None else int((exact != deployed).sum()),
        n_lost=None if float_right is None else int((float_right & ~right).sum()),
        n_gained=None if float_right is None else int((right & ~float_right).sum()),
        balanced_float=float(np.mean(float_shares)) if float_shares else None,
        balanced_int8=float(np.mean([one.int8 for one in classes])),
        classes=tuple(classes),
    )
