"""A machine checks itself: golden inputs through the local signature, compared with the float model's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Dict

import numpy as np

from runtime_edge.engines.engine import Engine
from splitboard.contract.bundle import Bundle, Split
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import edge_image


@dataclass(frozen=True)
class SelfCheck:
    """Outcome of a self-check.

    Attributes:
        error: by task, max |INT8 - float| over the golden inputs.
        tolerance: by task, what the bundle allows.
        n_inputs: golden inputs.
    """

    error: Dict[str, float]
    tolerance: Dict[str, float]
    n_inputs: int

    @property
    def passed(self) -> bool:
        """Whether every task is within its tolerance; an error that is not a number is not."""
        return all(self.error[task] <= self.tolerance[task] for task in self.error)


def local_split(bundle: Bundle) -> Split:
    """The split that sends nothing.

    Raises:
        UserError: the bundle has none.
    """
    for split in bundle.splits:
        if split.is_local:
            return split
    raise UserError(f'bundle "{bundle.name}" has no local only split', ["build the bundle again with it"])


def selfcheck(folder: Path, bundle: Bundle, engine: Engine) -> SelfCheck:
    """Runs the golden inputs, which are prepared images.

    Args:
        folder: the bundle.
        bundle: its manifest.
        engine: entered, and made for `local_split`.

    Raises:
        UserError: the golden file lacks a task or has images that are not prepared, or the bundle lacks a tolerance.
    """
    split, table = local_split(bundle), bundle.input_table()
    with np.load(folder / bundle.golden, allow_pickle=False) as golden:
        arrays = {name: golden[name] for name in golden}
    needed = ["images", *(task.name for task in bundle.tasks)]
    for name in needed:
        if name not in arrays:
            raise UserError(f'"{bundle.golden}" has no array "{name}"', ["build the bundle again"])
    images, spec = arrays["images"], bundle.preprocessing
    if images.dtype != np.uint8 or images.shape[1:] != (spec.height, spec.width, spec.source_channels):
        raise UserError(
            f'"{bundle.golden}" has {images.dtype} images of "{list(images.shape[1:])}"', ["build the bundle again"]
        )
    error = {task.name: 0.0 for task in bundle.tasks}
    for i, image in enumerate(images):
        scores = engine.infer(split.id, edge_image(image[None], table))
        for task in error:
            off = np.abs(scores[task][0].astype(np.float64) - arrays[task][i])
            error[task] = float(np.maximum(error[task], off.max()))  # np.maximum keeps nan, max() may drop it
    for task in error:
        if task not in bundle.golden_tolerance:
            raise UserError(f'the bundle has no golden tolerance for task "{task}"', ["build the bundle again"])
    return SelfCheck(error, bundle.golden_tolerance, len(images))
