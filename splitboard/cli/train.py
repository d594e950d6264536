"""Trains a reference network of the zoo and evaluates it as it is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import balanced_accuracy_score, recall_score
from torch import Tensor

from splitboard.cli.console import steps
from splitboard.contract.bundle import file_sha256
from splitboard.contract.errors import UserError
from splitboard.contract.folder import check_file
from splitboard.contract.preprocess import Preprocessing, normalise, prepare
from splitboard.report.outputs import TrainedTask, TrainOutput
from splitboard.zoo import elpv
from splitboard.zoo.multitask import MultiTaskNet
from splitboard.zoo.training import predict, train

SPEC_BEGINNING = "# Model spec"
"""Of every model spec that the zoo ships."""


def train_elpv(backbone: str, target: Path | None = None) -> TrainOutput:
    """Trains a network on ELPV and writes a float16 state dict, and beside it the model spec that an export needs.

    Args:
        backbone: key of `elpv.REFERENCES`.
        target: the ``.safetensors`` file to write; ``None`` names it after the network's factory.

    Raises:
        UserError: there is no such backbone, the target has another suffix, or another file is where the spec goes.
    """
    if backbone not in elpv.REFERENCES:
        raise UserError(
            f'no reference network has the backbone "{backbone}"', [f"--backbone {n}" for n in elpv.REFERENCES]
        )
    reference = elpv.REFERENCES[backbone]
    target = target or Path(f"elpv_{reference.make.__name__}.safetensors")
    if target.suffix != ".safetensors":
        raise UserError(f'cannot write a checkpoint to "{target}"', ["give a name that ends in .safetensors"])
    check_file(target.with_suffix(".toml"), SPEC_BEGINNING)
    return train_reference(reference, elpv.load(), target)


def train_reference(reference: elpv.Reference, data: elpv.Elpv, target: Path) -> TrainOutput:
    """Trains on one part, writes checkpoint and model spec, and evaluates what was written on another part."""
    started = time.monotonic()
    model = _trained(reference, data.train)
    seconds = time.monotonic() - started
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(model, target)
    spec, deployed = target.with_suffix(".toml"), reference.preprocessing
    spec.write_bytes((files("splitboard.zoo") / reference.spec).read_bytes())
    return TrainOutput(
        checkpoint=str(target),
        checkpoint_sha256=file_sha256(target),
        checkpoint_bytes=target.stat().st_size,
        seconds=seconds,
        parts={"train": data.train.sha256, "calibration": data.calibration.sha256, "test": data.test.sha256},
        tasks=evaluate(load_shipped(target, reference.make), data.test, deployed),
        export=(
            f"splitboard export {target} --model splitboard.zoo.elpv:{reference.make.__name__} --spec {spec} "
            f"--input 1x{deployed.channels}x{deployed.height}x{deployed.width} -o {target.with_suffix('.model')}"
        ),
    )


def _trained(reference: elpv.Reference, part: elpv.Part) -> MultiTaskNet:
    """The network with its averaged weights. The seed is set before the network is made: it has random weights."""
    torch.manual_seed(reference.recipe.seed)
    model = reference.make()
    if reference.begin is not None:
        reference.begin(model)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (elpv.PREPROCESSING.mean, elpv.PREPROCESSING.std))

    def to_input(pixels: Tensor) -> Tensor:
        return (pixels - mean) / std

    with steps("splitboard train") as show:
        train(
            model,
            part.images,
            elpv.soft_targets(part),
            to_input,
            reference.recipe,
            lambda done, total, loss: show(f"train loss {loss:.3f}", done, total),
        )
    return model


def _write(model: MultiTaskNet, target: Path) -> None:
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    beside = target.with_name(target.name + ".part")
    save_file({name: value.contiguous() for name, value in state.items()}, beside)
    beside.replace(target)


def load_shipped(checkpoint: Path, make: Callable[[], MultiTaskNet] = elpv.lite0) -> MultiTaskNet:
    """A network, the demo's if no other factory is given, with the weights of a checkpoint, float32."""
    model = make()
    model.load_state_dict(load_file(checkpoint))
    return model.eval()


def evaluate(model: MultiTaskNet, part: elpv.Part, spec: Preprocessing = elpv.PREPROCESSING) -> dict[str, TrainedTask]:
    """Accuracy, balanced accuracy and recall per class on one part, by task."""
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
