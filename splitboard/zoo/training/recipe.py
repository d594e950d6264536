"""How a network is trained, as data."""

from __future__ import annotations

from dataclasses import dataclass

from splitboard.contract.preprocess import Preprocessing


@dataclass(frozen=True)
class Stage:
    """Some epochs at one image size; small images first make the same time go further."""

    epochs: int
    size: int


@dataclass(frozen=True)
class Warp:
    """Random changes of every image, in one resampling. Which ones leave the labels true depends on the data.

    Attributes:
        degrees: rotation, up to so many to both sides.
        scale: change of size, up to this share.
        shift: up to this share of half the image.
        flip_columns: whether left and right may change places.
        flip_rows: whether top and bottom may.
        contrast: change, up to this share.
        brightness: change, up to this share of the range of pixels.
    """

    degrees: float
    scale: float
    shift: float
    flip_columns: bool
    flip_rows: bool
    contrast: float
    brightness: float


CELLS = Warp(degrees=5, scale=0.1, shift=0.05, flip_columns=True, flip_rows=True, contrast=0.2, brightness=0.1)
"""For solar cells, which look alike from every side."""

PHOTOGRAPHS = Warp(degrees=0, scale=0.1, shift=0.1, flip_columns=True, flip_rows=False, contrast=0.2, brightness=0.1)
"""For photographs whose labels know no left and right."""


@dataclass(frozen=True)
class Sum:
    """The loss is the plain sum over the tasks (MTL-Split, equation 3)."""


@dataclass(frozen=True)
class Uncertainty:
    """Every task's loss is weighted by an uncertainty that is learnt with the network (arXiv 1705.07115).

    Attributes:
        log_variance: of every task at first; 0 gives each the weight 1.
    """

    log_variance: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        stages: in order; the last one has the size that the model is deployed at.
        batch: images per step.
        learning_rate: peak of a one-cycle cosine schedule (AdamW).
        weight_decay: AdamW's, on weights that are not norms or biases.
        average_decay: decay per step of the exponential moving average whose weights are kept.
        seed: of the order of the images, the augmentation, dropout and, before the model is made, its first weights.
        threads: fixed, since the number of threads changes the order of sums and so the result.
        augmentation: of the training images; ``None`` takes them as they are.
        weighting: of the tasks' losses.
        warm_up: share of the steps in which the learning rate rises.
        mean: per channel of the model's input, subtracted from pixels in 0..1.
        std: per channel of the model's input, divided by.
    """

    stages: tuple[Stage, ...]
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    average_decay: float = 0.995
    seed: int = 0
    threads: int = 2
    augmentation: Warp | None = None
    weighting: Sum | Uncertainty = Sum()
    warm_up: float = 0.15
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def preprocessing(self, source_channels: int) -> Preprocessing:
        """What the model is deployed with: from a source image to its input, at the last stage's size."""
        size = self.stages[-1].size
        return Preprocessing(size, size, source_channels, self.mean, self.std)
