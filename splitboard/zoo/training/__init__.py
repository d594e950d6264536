"""Joint training of multi-task networks (MTL-Split, arXiv 2407.05982)."""

from splitboard.zoo.training.allocator import keep_freed_memory
from splitboard.zoo.training.checkpoints import Checkpoints
from splitboard.zoo.training.evaluation import accuracies, predict
from splitboard.zoo.training.loop import Device, best_device, fit
from splitboard.zoo.training.recipe import CELLS, PHOTOGRAPHS, Recipe, Stage, Sum, Uncertainty, Warp

__all__ = [
    "CELLS",
    "PHOTOGRAPHS",
    "Checkpoints",
    "Device",
    "Recipe",
    "Stage",
    "Sum",
    "Uncertainty",
    "Warp",
    "accuracies",
    "best_device",
    "fit",
    "keep_freed_memory",
    "predict",
]
