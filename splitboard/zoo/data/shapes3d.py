"""``shapes3d``: the publisher's 3D Shapes, read from ``3dshapes.h5`` piece by piece.

C. Burgess and H. Kim, "3D Shapes Dataset", 2018, github.com/google-deepmind/3d-shapes, Apache 2.0. 480,000 images, one
for each combination of the factors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.errors import UserError
from splitboard.zoo.data.dataset import DataSet, Part, identity, labelled
from splitboard.zoo.data.factors import FACTORS, TASKS, classes_of, is_test, labels_of, partition

_IMAGE = (64, 64, 3)
_VALIDATION_SHARE = 0.10
_TOLERANCE = 1e-6
"""Of a factor's value in the file."""


@dataclass(frozen=True)
class Hdf5Images:
    """Images of the file, which is open only while they are read.

    Attributes:
        path: of the file.
        rows: index in the file of each image, ``[n]``.
    """

    path: Path
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """``[len(indices), 64, 64, 3]``.

        The file is compressed in chunks of many images. Each chunk that is needed is read once, in the order of the
        file; so few large reads are much faster than many small ones.
        """
        wanted, back = np.unique(self.rows[indices], return_inverse=True)
        found = np.empty((len(wanted), *_IMAGE), np.uint8)
        with _opened(self.path) as file:
            images = file["images"]
            chunk = wanted // (images.chunks[0] if images.chunks else 1)
            for places in np.split(np.arange(len(wanted)), np.flatnonzero(np.diff(chunk)) + 1):
                if len(places):
                    first, last = int(wanted[places[0]]), int(wanted[places[-1]])
                    found[places] = images[first : last + 1][wanted[places] - first]
        return found[back.reshape(-1)]


def load(
    path: Path,
    n_train: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    tasks: tuple[str, ...] = TASKS,
    seed: int = 0,
) -> DataSet:
    """The publisher's images, with the compositional split of MTL-Split as `splitboard.zoo.data.shapes.load` has it.

    The factors of an image are what ``labels`` says, so a file with a selection of the images will do as well.

    Args:
        path: ``3dshapes.h5``.
        n_train: images; all that are left if not given.
        n_validation: images; a tenth of those that are not tested on if not given.
        n_test: images; all with an unseen pairing of floor and wall hue if not given.
        tasks: names of factors.
        seed: of the choice of images.

    Raises:
        UserError: the file is missing, of another layout, or has a value that is none of its factor's; a number of
            images or a task that there is not; h5py is not installed.
    """
    classes = classes_of(tasks)
    factors = _factors(path)
    unseen = int(is_test(factors).sum())
    seen = len(factors) - unseen
    if unseen < 1 or seen < 2:
        raise UserError(
            f'"{path}" has "{seen}" images to train and validate on and "{unseen}" to test on',
            ["use the publisher's file"],
        )
    validation = max(1, round(seen * _VALIDATION_SHARE)) if n_validation is None else n_validation
    train = seen - validation if n_train is None else n_train
    rows = partition(factors, train, validation, unseen if n_test is None else n_test, seed)
    contents = _sha256(path)

    def part(chosen: NDArray[np.int64]) -> Part:
        sha256 = identity([b"shapes3d", contents, ",".join(tasks).encode(), chosen.astype("<i8").tobytes()])
        return labelled(Hdf5Images(path, chosen), labels_of(factors[chosen], tasks), classes, sha256)

    return DataSet("shapes3d", classes, 3, part(rows.train), part(rows.validation), part(rows.test))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise UserError('3D Shapes is read with "h5py", which is not installed', ["pip install h5py"]) from error
    if not path.is_file():
        missing = f'"{path}" is a folder' if path.is_dir() else f'there is no file "{path}"'
        raise UserError(missing, ["name 3dshapes.h5 of github.com/google-deepmind/3d-shapes"])
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise UserError(f'cannot read "{path}" as HDF5: {error}', ["download 3dshapes.h5 again"]) from error


def _factors(path: Path) -> NDArray[np.int64]:
    """The factors of all images of the file, ``[n, 6]``, after a check of its layout."""
    with _opened(path) as file:
        for name in ("images", "labels"):
            if name not in file or not hasattr(file[name], "dtype"):
                raise UserError(f'"{path}" has no dataset "{name}"', ["3dshapes.h5 has images and labels"])
        images, labels = file["images"], file["labels"]
        for name, dataset, shape, kind in (
            ("labels", labels, (len(FACTORS),), np.float64),
            ("images", images, _IMAGE, np.uint8),
        ):
            if not dataset.ndim or dataset.shape[1:] != shape or dataset.dtype != kind:
                wanted = "x".join(("N", *map(str, shape)))
                raise UserError(
                    f'"{name}" of "{path}" is "{"x".join(map(str, dataset.shape)) or "one value"} {dataset.dtype}"',
                    [f"3dshapes.h5 has {wanted} {np.dtype(kind)}, one row of labels for each image"],
                )
        if len(images) != len(labels):
            raise UserError(
                f'"{path}" has "{len(images)}" images and "{len(labels)}" rows of labels',
                ["3dshapes.h5 has one row of labels for each image"],
            )
        values = np.asarray(labels[:], np.float64)
    return np.stack([_indices(values[:, column], column, path) for column in range(len(FACTORS))], axis=1)


def _indices(values: NDArray[np.float64], column: int, path: Path) -> NDArray[np.int64]:
    """Which of its factor's values each one is."""
    factor = FACTORS[column]
    distance = np.abs(values[:, None] - np.array(factor.values))
    wrong = np.flatnonzero(~(distance.min(axis=1) <= _TOLERANCE))  # so written, a NaN is wrong too
    if len(wrong):
        raise UserError(
            f'row {wrong[0]} of "labels" of "{path}" has {factor.name} "{values[wrong[0]]:g}"',
            [f"its values: {', '.join(f'{value:g}' for value in factor.values)}"],
        )
    return np.asarray(distance.argmin(axis=1), np.int64)


def _sha256(path: Path) -> bytes:
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            whole.update(piece)
    return whole.digest()
