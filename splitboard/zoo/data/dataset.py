"""What every data set is, whoever published it: three disjoint parts, tasks with fixed classes, images read lazily."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Images(Protocol):
    """Images of one size that are read when they are asked for."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Reads some of them.

        Args:
            indices: ``[n]``, 0 to ``len - 1``, in any order, also repeated.

        Returns:
            ``[n, h, w, c]``, c 1 or 3, in the order of ``indices``. The same index always gives the same image.
        """
        ...


@dataclass(frozen=True)
class StoredImages:
    """Images that are in memory already.

    Attributes:
        pixels: ``[n, h, w, c]``.
    """

    pixels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """``[len(indices), h, w, c]``."""
        return self.pixels[indices]


@dataclass(frozen=True)
class Part:
    """One part of a data set.

    Attributes:
        images: all of one size.
        labels: class indices by task, ``[n]``.
        targets: class probabilities to train on by task, ``[n, classes]``; one-hot unless something softer is known.
        sha256: the part's identity: the hash of its contents, or of what determines them.
    """

    images: Images
    labels: Mapping[str, NDArray[np.int64]]
    targets: Mapping[str, NDArray[np.float32]]
    sha256: str

    def __post_init__(self) -> None:
        """Raises ValueError where labels or targets are not one for each image."""
        lengths = {len(self.images), *map(len, self.labels.values()), *map(len, self.targets.values())}
        if len(lengths) > 1 or self.labels.keys() != self.targets.keys():
            raise ValueError(
                f"images, labels and targets differ: {sorted(lengths)}, {[*self.labels]}, {[*self.targets]}"
            )


@dataclass(frozen=True)
class DataSet:
    """A data set with its partition.

    Attributes:
        name: what reports call it.
        classes: class names by task, in the order of a model's outputs; the same for all parts, whichever occur.
        source_channels: of the images, 1 or 3.
        train: what weights are fitted on.
        validation: what choices are made on (when to stop, thresholds); never taken from the test part.
        test: what results are reported on.
    """

    name: str
    classes: Mapping[str, tuple[str, ...]]
    source_channels: int
    train: Part
    validation: Part
    test: Part


def one_hot(labels: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Certain targets: ``[n]`` class indices to ``[n, classes]`` probabilities."""
    return np.eye(classes, dtype=np.float32)[labels]


def labelled(
    images: Images, labels: Mapping[str, NDArray[np.int64]], classes: Mapping[str, Sequence[str]], sha256: str
) -> Part:
    """A part whose labels are certain: its targets are one-hot."""
    targets = {task: one_hot(labels[task], len(names)) for task, names in classes.items()}
    return Part(images=images, labels={task: labels[task] for task in classes}, targets=targets, sha256=sha256)


def identity(pieces: Iterable[bytes]) -> str:
    """The sha256 of several pieces; pieces that are divided otherwise have another one."""
    whole = hashlib.sha256()
    for piece in pieces:
        whole.update(len(piece).to_bytes(8, "little"))
        whole.update(piece)
    return whole.hexdigest()
