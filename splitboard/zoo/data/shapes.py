"""``shapes``: images of the factors of 3D Shapes that are rendered here when they are read; no file is needed."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.errors import UserError
from splitboard.zoo.data import noise as noises
from splitboard.zoo.data.dataset import DataSet, Part, identity, labelled
from splitboard.zoo.data.factors import GRID, TASKS, classes_of, factors_at, labels_of, partition
from splitboard.zoo.data.noise import Noise
from splitboard.zoo.data.render import VERSION, Renderer

_SIZES = range(8, 1025)


@dataclass(frozen=True)
class RenderedImages:
    """Images of the grid, rendered when they are read.

    Attributes:
        renderer: at the size wanted.
        grid: index in the grid of each image, ``[n]``.
        noise: what is put on them, if any.
        seed: of the noise, which is the same whenever and in whichever part an image is read.
    """

    renderer: Renderer
    grid: NDArray[np.int64]
    noise: Noise | None
    seed: int

    def __len__(self) -> int:
        return len(self.grid)

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """``[len(indices), size, size, 3]``."""
        chosen = self.grid[indices]
        images = self.renderer.render(factors_at(chosen))
        if self.noise is not None:
            for image, index in zip(images, chosen, strict=True):
                noises.add(image, self.noise, self.seed, int(index))
        return images


def load(
    size: int = 64,
    n_train: int = 8000,
    n_validation: int = 2000,
    n_test: int = 4000,
    noise: Noise | None = None,
    tasks: tuple[str, ...] = TASKS,
    seed: int = 0,
) -> DataSet:
    """The rendered data set, with the compositional split of MTL-Split.

    Test images have a floor and a wall hue of the upper five each, a pairing that the other parts never show.

    Args:
        size: rows and columns of the images, 8 to 1024.
        n_train: images; with ``n_validation`` at most 360,000.
        n_validation: images, none of them in training.
        n_test: images, at most 120,000.
        noise: put on the images of all parts.
        tasks: names of factors.
        seed: of the choice of images and of the noise.

    Raises:
        UserError: a size, number of images or task that there is not.
    """
    if size not in _SIZES:
        raise UserError(f'"{size}" is not a size of images', [f"ask for {_SIZES.start} to {_SIZES.stop - 1} pixels"])
    if not 0 <= seed < 2**64:
        raise UserError(f'"{seed}" is not a seed', ["give a whole number, 0 or more"])
    classes = classes_of(tasks)
    rows = partition(factors_at(np.arange(GRID)), n_train, n_validation, n_test, seed)
    renderer = Renderer(size)

    def part(grid: NDArray[np.int64]) -> Part:
        images = RenderedImages(renderer, grid, noise, seed)
        facts = json.dumps({"renderer": VERSION, "size": size, "noise": repr(noise), "seed": seed, "tasks": tasks})
        sha256 = identity([facts.encode(), grid.astype("<i8").tobytes()])
        return labelled(images, labels_of(factors_at(grid), tasks), classes, sha256)

    return DataSet(
        name="shapes",
        classes=classes,
        source_channels=3,
        train=part(rows.train),
        validation=part(rows.validation),
        test=part(rows.test),
    )
