"""Joint training of a multi-task network: the loss is the sum of the tasks' cross-entropies (MTL-Split, equation 3)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """Some epochs at one image size; small images first make the same time go further."""

    epochs: int
    size: int


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        stages: in order; the last one has the size that the model is deployed at.
        batch: images per step.
        learning_rate: peak of a one-cycle cosine schedule (AdamW).
        weight_decay: AdamW's, on weights that are not norms or biases.
        average_decay: decay per step of the exponential moving average whose weights are kept.
        seed: of the order of the images, the augmentation, dropout and the heads' first weights.
        threads: fixed, since the number of threads changes the order of sums and so the result.
    """

    stages: tuple[Stage, ...] = (Stage(16, 160), Stage(8, 224))
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    average_decay: float = 0.995
    seed: int = 0
    threads: int = 2


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of handing it back to the kernel after every layer.

    With the default allocator a good part of a training step on the CPU is page faults: the system time goes down, by
    how much depends on the machine (`benchmarks/training_allocator.py`). Elsewhere than glibc: no effect.
    """
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 512 * 2**20)


def augment(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Random flips, shift, scale, small rotation, brightness and contrast, in one resampling.

    Args:
        images: ``[n, 1, h, w]``, float32 in 0..1.
        size: rows and columns wanted.
        generator: source of all randomness.

    Returns:
        ``[n, 1, size, size]``, float32.
    """
    n = images.shape[0]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    angle, scale = uniform(-5.0, 5.0) * math.pi / 180, uniform(0.90, 1.10)
    flip_x, flip_y = torch.sign(uniform(-1, 1)), torch.sign(uniform(-1, 1))
    theta = torch.stack(
        [
            torch.stack([scale * angle.cos() * flip_x, -scale * angle.sin() * flip_y, uniform(-0.05, 0.05)], 1),
            torch.stack([scale * angle.sin() * flip_x, scale * angle.cos() * flip_y, uniform(-0.05, 0.05)], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n, 1, size, size], align_corners=False)
    warped = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    contrast, brightness = uniform(0.8, 1.2), uniform(-0.1, 0.1)
    mean = warped.mean(dim=(1, 2, 3))
    return (
        (warped - mean[:, None, None, None]) * contrast[:, None, None, None] + (mean + brightness)[:, None, None, None]
    ).clamp(0, 1)


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def _average(kept: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Moves the kept state (weights and batch-norm statistics) towards the model's, in place."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            kept[name].lerp_(value, 1 - decay)
        else:
            kept[name].copy_(value)


def train(
    model: nn.Module,
    images: NDArray[np.uint8],
    targets: Mapping[str, NDArray[np.float32]],
    normalise: Callable[[Tensor], Tensor],
    recipe: Recipe,
    on_step: Callable[[int, int, float], None],
) -> None:
    """Trains in place and leaves the averaged weights in the model.

    Args:
        model: maps float images to ``{task: logits}``.
        images: ``[n, h, w, 1]``, uint8.
        targets: class probabilities by task, ``[n, classes]``; soft where the annotators were unsure.
        normalise: maps ``[n, 1, h, w]`` in 0..1 to the model's input.
        recipe: how to train.
        on_step: called after every step with (steps done, steps in all, loss).
    """
    keep_freed_memory()
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    wanted = {task: torch.from_numpy(np.asarray(value, dtype=np.float32)) for task, value in targets.items()}
    # torch declares memory_format on the tensor overload only.
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = _optimiser(model, recipe)
    per_epoch = len(pixels) // recipe.batch
    total = per_epoch * sum(stage.epochs for stage in recipe.stages)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total, pct_start=0.15)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    done = 0
    for size in [stage.size for stage in recipe.stages for _ in range(stage.epochs)]:
        order = torch.randperm(len(pixels), generator=generator)
        for chosen in order[: per_epoch * recipe.batch].view(per_epoch, recipe.batch):
            batch = augment(pixels[chosen].float() / 255, size, generator)
            logits = model(normalise(batch).to(memory_format=torch.channels_last))
            loss = torch.stack([F.cross_entropy(logits[task], wanted[task][chosen]) for task in wanted]).sum()
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            done += 1
            # A short memory at first, so that the average is not held back by the untrained heads.
            _average(kept, model, min(recipe.average_decay, (1 + done) / (10 + done)))
            on_step(done, total, float(loss.detach()))
    model.load_state_dict(kept)
    model.eval()


@torch.no_grad()
def predict(model: nn.Module, inputs: NDArray[np.float32], batch: int = 64) -> dict[str, NDArray[np.float32]]:
    """Logits of all tasks, ``{task: [n, classes]}``, for normalised inputs ``[n, c, h, w]``."""
    model.eval()
    parts = [model(torch.from_numpy(inputs[i : i + batch])) for i in range(0, len(inputs), batch)]
    return {task: torch.cat([part[task] for part in parts]).numpy() for task in parts[0]}
