"""The factors of 3D Shapes: what varies from image to image, in the order and with the values of its publisher.

H. Kim and A. Mnih, "Disentangling by Factorising", ICML 2018; github.com/google-deepmind/3d-shapes. Every combination
of the six factors is one image, so an image is named by its index in the grid: the last factor runs fastest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.errors import UserError


@dataclass(frozen=True)
class Factor:
    """One thing that varies.

    Attributes:
        name: as the publisher has it; also the name of the task of recognising it.
        values: in ascending order, as they stand in ``labels`` of ``3dshapes.h5``.
        classes: names of the values.
    """

    name: str
    values: tuple[float, ...]
    classes: tuple[str, ...]


def _linear(name: str, low: float, high: float, count: int) -> Factor:
    values = tuple(low + (high - low) * i / (count - 1) for i in range(count))
    return Factor(name, values, tuple(f"{value:.2f}" for value in values))


FACTORS = (
    _linear("floor_hue", 0.0, 0.9, 10),
    _linear("wall_hue", 0.0, 0.9, 10),
    _linear("object_hue", 0.0, 0.9, 10),
    _linear("scale", 0.75, 1.25, 8),
    Factor("shape", (0.0, 1.0, 2.0, 3.0), ("cube", "cylinder", "sphere", "capsule")),
    _linear("orientation", -30.0, 30.0, 15),
)
"""In the order of the grid. A hue is a fraction of the colour circle, an orientation is in degrees."""

COUNTS = tuple(len(factor.values) for factor in FACTORS)

GRID = int(np.prod(COUNTS))
"""480,000 combinations."""

FLOOR_HUE, WALL_HUE, OBJECT_HUE, SCALE, SHAPE, ORIENTATION = range(len(FACTORS))
"""Columns of a table of factors."""

TASKS = ("scale", "shape")
"""The two that MTL-Split learns: object size (8 classes) and object type (4)."""

_UNSEEN_HUE = 5
"""Floor hue and wall hue from here on never meet in training."""


def classes_of(tasks: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Class names by task.

    Raises:
        UserError: no task, one that is not a factor, or one twice.
    """
    known = {factor.name: factor.classes for factor in FACTORS}
    unknown = [task for task in tasks if task not in known]
    if unknown or not tasks or len(set(tasks)) < len(tasks):
        wrong = unknown[0] if unknown else ",".join(tasks)
        raise UserError(
            f'"{wrong}" is not a choice of the tasks of 3D Shapes', [f"choose from {', '.join(known)}, each once"]
        )
    return {task: known[task] for task in tasks}


def factors_at(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """The factors of images of the grid: ``[n]`` to ``[n, 6]``, each the index of a value."""
    return np.stack(np.unravel_index(indices, COUNTS), axis=1).astype(np.int64)


def labels_of(factors: NDArray[np.int64], tasks: tuple[str, ...]) -> dict[str, NDArray[np.int64]]:
    """The columns of a table of factors by task."""
    columns = {factor.name: column for column, factor in enumerate(FACTORS)}
    return {task: np.ascontiguousarray(factors[:, columns[task]]) for task in tasks}


def is_test(factors: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The compositional split of MTL-Split: floor and wall both of the upper five hues, a pairing new to the model."""
    return np.asarray((factors[:, FLOOR_HUE] >= _UNSEEN_HUE) & (factors[:, WALL_HUE] >= _UNSEEN_HUE))


@dataclass(frozen=True)
class Rows:
    """A partition: rows of a table of factors, each part in random order.

    Attributes:
        train: rows that are not `is_test`.
        validation: others of these.
        test: rows that are.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def partition(factors: NDArray[np.int64], n_train: int, n_validation: int, n_test: int, seed: int) -> Rows:
    """Draws the parts without replacement.

    The order depends on the seed and the number of rows alone. The test part and the validation part are each the first
    of their order and the training part follows the validation part, so a larger part holds the smaller ones.

    Args:
        factors: ``[n, 6]``.
        n_train: images wanted, from 1 on; so are the next two.
        n_validation: drawn before the training part.
        n_test: drawn from the pairings of hues that training never sees.
        seed: of the order.

    Raises:
        UserError: fewer rows than wanted, or none wanted.
    """
    # The bits of a generator are the same in every version of numpy; what `permutation` makes of them need not be.
    order = np.argsort(np.random.Philox(key=seed).random_raw(len(factors)), kind="stable").astype(np.int64)
    unseen = is_test(factors)[order]
    seen_rows, test_rows = order[~unseen], order[unseen]
    for wanted, most, what in (
        (n_train, len(seen_rows) - n_validation, "training"),
        (n_validation, len(seen_rows), "validation"),
        (n_test, len(test_rows), "test"),
    ):
        if not 1 <= wanted <= most:
            raise UserError(f'"{wanted}" {what} images cannot be drawn', [f"ask for 1 to {max(most, 1)}"])
    return Rows(
        train=seen_rows[n_validation : n_validation + n_train],
        validation=seen_rows[:n_validation],
        test=test_rows[:n_test],
    )
