"""Trains the demo's checkpoint and evaluates it as it is shipped."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import balanced_accuracy_score, recall_score
from torch import Tensor

from splitboard.cli.console import steps
from splitboard.contract.bundle import file_sha256
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import normalise, prepare
from splitboard.report.outputs import TrainedTask, TrainOutput
from splitboard.zoo import elpv
from splitboard.zoo.multitask import MultiTaskNet
from splitboard.zoo.training import Recipe, predict, train


def train_elpv(target: Path, recipe: Recipe = elpv.RECIPE) -> TrainOutput:
    """Trains EfficientNet-Lite0 on ELPV from ImageNet weights and writes a float16 state dict.

    Args:
        target: the ``.safetensors`` file to write.
        recipe: how to train.

    Raises:
        UserError: the target has another suffix.
    """
    if target.suffix != ".safetensors":
        raise UserError(f'cannot write a checkpoint to "{target}"', ["give a name that ends in .safetensors"])
    data = elpv.load()
    torch.manual_seed(recipe.seed)
    model = elpv.lite0()
    elpv.load_imagenet(model)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (elpv.PREPROCESSING.mean, elpv.PREPROCESSING.std))

    def to_input(pixels: Tensor) -> Tensor:
        return (pixels - mean) / std

    started = time.monotonic()
    with steps("splitboard train") as show:
        train(
            model,
            data.train.images,
            elpv.soft_targets(data.train),
            to_input,
            recipe,
            lambda done, total, loss: show(f"train loss {loss:.3f}", done, total),
        )
    seconds = time.monotonic() - started
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(target.name + ".part")
    save_file({name: value.contiguous() for name, value in state.items()}, beside)
    beside.replace(target)
    return TrainOutput(
        checkpoint=str(target),
        checkpoint_sha256=file_sha256(target),
        checkpoint_bytes=target.stat().st_size,
        seconds=seconds,
        parts={"train": data.train.sha256, "calibration": data.calibration.sha256, "test": data.test.sha256},
        tasks=evaluate(load_shipped(target), data.test),
    )


def load_shipped(checkpoint: Path) -> MultiTaskNet:
    """The demo's model with the weights of a checkpoint, float32."""
    model = elpv.lite0()
    model.load_state_dict(load_file(checkpoint))
    return model.eval()


def evaluate(model: MultiTaskNet, part: elpv.Part) -> dict[str, TrainedTask]:
    """Accuracy, balanced accuracy and recall per class on one part, by task."""
    spec = elpv.PREPROCESSING
    logits = predict(model, normalise(prepare(part.images, spec), spec))
    results = {}
    for task, names in elpv.TASKS.items():
        truth, guess = part.labels[task], logits[task].argmax(axis=1)
        recall = recall_score(truth, guess, average=None)
        results[task] = TrainedTask(
            accuracy=float(np.mean(truth == guess)),
            balanced_accuracy=float(balanced_accuracy_score(truth, guess)),
            recall={name: float(value) for name, value in zip(names, recall, strict=True)},
            n={name: int(np.sum(truth == index)) for index, name in enumerate(names)},
        )
    return results
