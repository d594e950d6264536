"""Trains a network of the zoo, writes it so that it exports, and evaluates it as it is written."""

from __future__ import annotations

import importlib
import importlib.util
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from splitboard.cli.console import steps
from splitboard.cli.train_files import FACTORY_BEGINNING, SPEC_BEGINNING, factory_text, spec_text
from splitboard.cli.train_options import Training, TrainRequest, network_name, training
from splitboard.contract.bundle import file_sha256
from splitboard.contract.errors import UserError
from splitboard.contract.folder import check_file, write_whole
from splitboard.contract.preprocess import Preprocessing
from splitboard.report.outputs import TrainedTask, TrainOutput
from splitboard.zoo import backbones, elpv, networks
from splitboard.zoo.data.dataset import Part
from splitboard.zoo.multitask import MultiTaskNet
from splitboard.zoo.training import Checkpoints, fit, predict
from splitboard.zoo.training.loop import Log

CHECKPOINT_STEPS = 100
"""How often the state of a training is kept. An interruption by Ctrl-C is kept in any case."""

STALE_SHARE = 0.05
"""Largest share that running statistics may have kept of where they began."""


def train_network(
    request: TrainRequest, target: Path | None = None, resume: bool = False, log: Path | None = None
) -> TrainOutput:
    """Trains a network and writes a float16 state dict, and beside it the model spec and the factory for its export.

    Args:
        request: the options.
        target: the ``.safetensors`` file to write; ``None`` names it after data set and backbone.
        resume: go on with the training that was interrupted.
        log: folder for TensorBoard; ``None`` for none.

    Raises:
        UserError: an option is wrong, the data are, or something that is not ours is where a file goes.
    """
    target = target or Path(f"{network_name(request)}.safetensors")
    check_target(target)
    kept = target.with_suffix(".checkpoint")
    if resume and not kept.is_file():
        raise UserError(f'there is no checkpoint "{kept}" to resume', ["leave --resume out", "the same -o as before"])
    if not resume and kept.exists():
        raise UserError(f'"{kept}" is of a training that was interrupted', ["--resume", f"remove {kept} to start anew"])
    if log is not None:
        _check_log(log)
    return train_and_write(training(request), target, kept, log)


def check_target(target: Path) -> None:
    """Refuses names that cannot be written to, or that Python cannot import beside them.

    Raises:
        UserError: with what is wrong.
    """
    if target.suffix != ".safetensors":
        raise UserError(f'cannot write a checkpoint to "{target}"', ["give a name that ends in .safetensors"])
    check_file(target.with_suffix(".toml"), SPEC_BEGINNING)
    check_file(target.with_suffix(".py"), FACTORY_BEGINNING)
    name, file = target.stem, target.with_suffix(".py")
    found = importlib.util.find_spec(name) if name.isidentifier() and name not in sys.modules else None
    taken = name in sys.modules or (found is not None and Path(found.origin or "").resolve() != file.resolve())
    if not name.isidentifier() or taken:
        reason = "is another module's name" if taken else "is no name of a Python module"
        raise UserError(
            f'"{name}" {reason}, and "{file}" will be one', ["letters, digits and _: -o my_net.safetensors"]
        )


def train_and_write(asked: Training, target: Path, kept: Path, log: Path | None = None) -> TrainOutput:
    """Trains on one part, writes weights, spec and factory, and evaluates what was written on another part.

    Args:
        asked: what to train.
        target: the ``.safetensors`` file.
        kept: where the state is kept meanwhile, and where it goes on from.
        log: folder for TensorBoard; ``None`` for none.
    """
    started = time.monotonic()
    model = _trained(asked, kept, log)
    seconds = time.monotonic() - started
    _warn_of_stale_statistics(model, asked)
    deployed = asked.recipe.preprocessing(asked.data.source_channels)
    spec, factory = target.with_suffix(".toml"), target.with_suffix(".py")
    write_whole(spec, spec_text(deployed, asked.classes, model.outputs))
    write_whole(factory, factory_text(asked.network))
    _write(model, target)
    kept.unlink(missing_ok=True)
    path = "" if target.parent == Path() else f"--path {shlex.quote(str(target.parent))} "
    quoted = {one: shlex.quote(str(one)) for one in (target, spec, target.with_suffix(".model"))}
    return TrainOutput(
        checkpoint=str(target),
        checkpoint_sha256=file_sha256(target),
        checkpoint_bytes=target.stat().st_size,
        spec=str(spec),
        factory=str(factory),
        network=repr(asked.network),
        recipe=repr(asked.recipe),
        seconds=seconds,
        parts={name: getattr(asked.data, name).sha256 for name in ("train", "validation", "test")},
        tasks=evaluate(load_trained(target, networks.make(asked.network)), asked.data.test, deployed, asked.classes),
        export=(
            f"splitboard export {quoted[target]} --model {target.stem}:make {path}--spec {quoted[spec]} "
            f"--input 1x{deployed.channels}x{deployed.height}x{deployed.width} "
            f"-o {quoted[target.with_suffix('.model')]}"
        ),
    )


def _trained(asked: Training, kept: Path, log: Path | None) -> MultiTaskNet:
    """The network with its averaged weights. The seed is set before the network is made: it has random weights."""
    torch.manual_seed(asked.recipe.seed)
    model = networks.make(asked.network)
    begun = _begin(model, asked)
    keep = Checkpoints(kept, CHECKPOINT_STEPS, {"the network": repr(asked.network), "the first weights": begun})
    done = [0, 0]
    try:
        with _interruptible() as check, _scalars(log) as scalars, steps("splitboard train") as show:

            def on_step(now: int, total: int, loss: float) -> None:
                done[:] = now, total
                show(f"train loss {loss:.3f}", now, total)
                check()

            fit(model, asked.data, asked.recipe, on_step, keep, scalars)
    except KeyboardInterrupt:
        if kept.is_file():
            sys.stderr.write(
                f'Stopped after {done[0]} of {done[1]} steps, kept in "{kept}".\nTry: the same command with --resume\n'
            )
        raise
    return model


def _warn_of_stale_statistics(model: MultiTaskNet, asked: Training) -> None:
    """Batch normalisation infers with running means, which follow slowly: by 1 % a step in MobileNetV3."""
    per_epoch = len(asked.data.train.images) // asked.recipe.batch
    n_steps = per_epoch * sum(one.epochs for one in asked.recipe.stages)
    momenta = [one.momentum for one in model.modules() if isinstance(one, torch.nn.BatchNorm2d) and one.momentum]
    slowest = min(momenta, default=1.0)
    left = (1 - slowest) ** n_steps
    if left > STALE_SHARE and asked.weights is None:
        needed = math.ceil(math.log(STALE_SHARE) / math.log1p(-slowest) / per_epoch)
        sys.stderr.write(
            f"warning: {n_steps} steps leave {left:.0%} of batch normalisation's statistics as they were at first "
            f"(momentum {slowest:g}), and the answers are wrong for it\nTry: --epochs {needed} or more\n"
        )


def _begin(model: MultiTaskNet, asked: Training) -> str:
    """Fills the backbone with published weights where there are some; returns what they were."""
    if asked.weights is not None:
        backbones.load_weights(model.backbone, _load(asked.weights), str(asked.weights))
        return file_sha256(asked.weights)
    sparse = asked.network.sparsity is not None and asked.network.sparsity.backbone != 1
    if asked.data.name == "elpv" and asked.network.backbone == "efficientnet-lite0" and not sparse:
        elpv.load_imagenet(model)
        return "ImageNet"
    return "random"


def _load(weights: Path) -> dict[str, Tensor]:
    try:
        return load_file(weights)
    except (OSError, SafetensorError) as error:
        raise UserError(f'"{weights}" is not a readable .safetensors file: {error}', ["--weights FILE"]) from error


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Ctrl-C waits for the end of a step, when the state can be kept; the second one does not.

    Yields:
        A function to call after every step; it raises KeyboardInterrupt if one is due.
    """
    due: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        if due:
            raise KeyboardInterrupt
        due.append(number)

    def check() -> None:
        if due:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_log(folder: Path) -> None:
    """Refuses a log that cannot be written, before hours of training."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f'cannot log to "{folder}": it is a file', ["--log FOLDER"])
    try:
        importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise UserError(
            f'--log "{folder}" needs the package tensorboard', ["pip install tensorboard", "leave --log out"]
        ) from error


@contextmanager
def _scalars(folder: Path | None) -> Iterator[Log | None]:
    """What writes numbers for TensorBoard into a folder."""
    if folder is None:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter

    try:
        writer: Any = SummaryWriter(str(folder))
    except OSError as error:
        raise UserError(f'cannot log to "{folder}": {error.strerror}', ["--log FOLDER", "leave --log out"]) from error
    try:
        yield writer.add_scalar
    finally:
        writer.close()


def _write(model: MultiTaskNet, target: Path) -> None:
    beside = target.with_name(target.name + ".part")
    try:
        save_file({name: _stored(value) for name, value in model.state_dict().items()}, beside)
        beside.chmod(0o644)  # safetensors makes it private, a result is not
        beside.replace(target)
    except (OSError, SafetensorError) as error:
        raise UserError(f'cannot write "{target}": {error}', ["name another file with -o"]) from error


def _stored(value: Tensor) -> Tensor:
    """In float16, or as it is where float16 has no such number or the values are whole."""
    if not value.is_floating_point():
        return value.contiguous()
    half = value.half()
    return (half if bool(half.isfinite().all()) else value).contiguous()


def load_trained(checkpoint: Path, model: MultiTaskNet) -> MultiTaskNet:
    """Fills a network with the weights of a checkpoint, in float32, ready to infer."""
    model.load_state_dict(load_file(checkpoint))
    return model.eval()


def evaluate(
    model: MultiTaskNet, part: Part, spec: Preprocessing, classes: Mapping[str, tuple[str, ...]]
) -> dict[str, TrainedTask]:
    """Accuracy, balanced accuracy and recall per class on one part, by output."""
    logits = predict(model, part.images, spec)
    return {
        one.name: _result(part.labels[one.task], logits[one.name].argmax(axis=1), classes[one.task])
        for one in model.outputs
    }


def _result(truth: NDArray[np.int64], guess: NDArray[np.int64], names: tuple[str, ...]) -> TrainedTask:
    n = np.bincount(truth, minlength=len(names))
    right = np.bincount(truth[truth == guess], minlength=len(names))
    recall = {name: float(hits / count) for name, hits, count in zip(names, right, n, strict=True) if count}
    return TrainedTask(
        accuracy=float(np.mean(truth == guess)),
        balanced_accuracy=float(np.mean(list(recall.values()))),
        recall=recall,
        n={name: int(count) for name, count in zip(names, n, strict=True)},
    )
