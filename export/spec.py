"""What a checkpoint cannot tell: preprocessing and class names, declared in a small TOML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from export.toml import read_toml
from splitboard.contract.preprocess import Preprocessing

_TRIES = [
    "[preprocessing] has height, width, source_channels (3 for RGB images, 1 for grey ones), mean and std",
    "it may also have resize_shorter and channel_order; [labels] may have the class names of each task",
    '[exits] may name outputs that are early heads of a task: defect_early = "defect"',
]


@dataclass(frozen=True)
class ModelSpec:
    """The declared part of a model.

    Attributes:
        preprocessing: from a source image to the model's input.
        labels: class names by task; tasks that are not named here get numbered classes.
        exits: task by output, for outputs that are early heads of it.
    """

    preprocessing: Preprocessing
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    exits: dict[str, str] = field(default_factory=dict)


def read_spec(path: Path) -> ModelSpec:
    """Reads a model spec.

    Raises:
        UserError: the file is missing, is not TOML, or has keys that do not belong.
    """
    return read_toml(ModelSpec, path, "model spec", _TRIES)
