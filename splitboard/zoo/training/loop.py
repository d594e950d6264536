"""Joint training of a multi-task network, deterministic, and resumed to the bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from splitboard.contract.errors import UserError
from splitboard.zoo.data.dataset import DataSet, Part
from splitboard.zoo.multitask import MultiTaskNet
from splitboard.zoo.training import checkpoints
from splitboard.zoo.training.allocator import keep_freed_memory
from splitboard.zoo.training.augmentation import resized, warped
from splitboard.zoo.training.checkpoints import Checkpoints
from splitboard.zoo.training.evaluation import accuracies
from splitboard.zoo.training.losses import JointLoss
from splitboard.zoo.training.reading import remembered
from splitboard.zoo.training.recipe import Recipe

Log = Callable[[str, float, int], None]
"""Takes the name of a number, the number, and the steps done."""


@dataclass(frozen=True)
class Device:
    """Where to train and in which precision.

    Attributes:
        name: torch's name of it.
        autocast: type of most of the network's arithmetic; weights, loss and optimiser stay float32. ``None`` for all
            float32.
    """

    name: str = "cpu"
    autocast: torch.dtype | None = None


def best_device() -> Device:
    """The GPU where there is one, in the 16-bit type that it has; else the CPU in float32."""
    if not torch.cuda.is_available():
        return Device()
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return Device("cuda", torch.bfloat16 if native else torch.float16)


def fit(
    model: MultiTaskNet,
    data: DataSet,
    recipe: Recipe,
    on_step: Callable[[int, int, float], None],
    keep: Checkpoints | None = None,
    log: Log | None = None,
    device: Device | None = None,
) -> None:
    """Trains in place and leaves the averaged weights in the model, which is on the CPU again.

    Args:
        model: its tasks are trained; the data may have more.
        data: the train part is trained on; the validation part is only looked at for the log, the test part not at all.
        recipe: how to train.
        on_step: called after every step with (steps done, steps in all, loss). An interruption that it raises is kept.
        keep: where the state is kept; where there is one already, the training goes on from it.
        log: takes the losses of every step, and after every epoch the accuracies of the averaged weights.
        device: where; ``None`` for the best there is.

    Raises:
        UserError: there is not one whole batch of images, what was kept is of another training, or the loss is not
            finite.
    """
    keep_freed_memory()
    torch.set_num_threads(recipe.threads)
    torch.backends.cudnn.deterministic = True
    torch.manual_seed(recipe.seed)
    run = _Run(model, data.train, recipe, device or best_device())
    about = {**keep.about, **run.about()} if keep is not None else {}
    if keep is not None and keep.path.exists():
        run.restore(checkpoints.read(keep.path, about))
    while run.done < run.total:
        joint, each = run.step()
        loss = float(joint)
        if not math.isfinite(loss):
            raise UserError(
                f'the loss is "{loss}" after {run.done} of {run.total} steps',
                [f"a lower learning rate than {recipe.learning_rate:g}"],
            )
        if keep is not None and run.done % keep.every_steps == 0 and run.done < run.total:
            checkpoints.write(keep.path, about, run.state())
        if log is not None:
            _log_step(log, run, loss, each)
            if run.done % run.per_epoch == 0 and len(data.validation.images):
                _log_epoch(log, run, data, recipe)
        try:
            on_step(run.done, run.total, loss)
        except KeyboardInterrupt:
            if keep is not None:
                checkpoints.write(keep.path, about, run.state())
            raise
    model.load_state_dict(run.average)
    model.to("cpu").eval()


class _Run:
    """A training between two steps: all that the next step depends on."""

    def __init__(self, model: MultiTaskNet, part: Part, recipe: Recipe, device: Device) -> None:
        self.per_epoch = len(part.images) // recipe.batch
        if self.per_epoch == 0:
            raise UserError(
                f'"{len(part.images)}" training images are less than one batch of "{recipe.batch}"',
                ["a smaller batch", "more images"],
            )
        self._part, self._recipe, self._device = part, recipe, device
        self._images = remembered(part.images)
        self._sizes = [stage.size for stage in recipe.stages for _ in range(stage.epochs)]
        self.total = self.per_epoch * len(self._sizes)
        self.done = 0
        # Tensor cores want channels last, and so do oneDNN's depthwise convolutions (benchmarks/training_step.py).
        # torch declares memory_format on the tensor overload only.
        self.model: MultiTaskNet = model.to(device.name, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self._loss = JointLoss(model.outputs, recipe.weighting).to(device.name)
        self._targets = {one.task: torch.from_numpy(part.targets[one.task]) for one in model.outputs}
        self._mean, self._std = (
            torch.tensor(values).view(1, -1, 1, 1).to(device.name) for values in (recipe.mean, recipe.std)
        )
        self.optimiser = _optimiser(model, self._loss, recipe)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, recipe.learning_rate, self.total, pct_start=recipe.warm_up
        )
        # float16 has few small numbers: the loss is scaled up for its gradients. Does nothing where it is not enabled.
        self._scaler = torch.amp.GradScaler(device.name, enabled=device.autocast == torch.float16)
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self._order = torch.empty(0, dtype=torch.int64)
        self.average = {name: value.clone() for name, value in model.state_dict().items()}

    def step(self) -> tuple[Tensor, Tensor]:
        """Trains on the next batch; returns the joint loss and the cross-entropy of every output."""
        images, targets = self._next_batch()
        with torch.autocast(self._device.name, self._device.autocast, enabled=self._device.autocast is not None):
            logits = self.model(images)
        loss, each = self._loss(logits, targets)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.step(self.optimiser)
        self._scaler.update()
        self._schedule.step()
        self.done += 1
        # A short memory at first, so that the average is not held back by the untrained heads.
        _average(self.average, self.model, min(self._recipe.average_decay, (1 + self.done) / (10 + self.done)))
        return loss.detach(), each

    def _next_batch(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Normalised images of the epoch's size, and targets by task."""
        epoch, position = divmod(self.done, self.per_epoch)
        if position == 0:
            self._order = torch.randperm(len(self._images), generator=self._generator)
        chosen = self._order[position * self._recipe.batch : (position + 1) * self._recipe.batch]
        read = torch.from_numpy(self._images.read(chosen.numpy()))
        pixels = read.to(self._device.name).permute(0, 3, 1, 2).float() / 255
        size, warp = self._sizes[epoch], self._recipe.augmentation
        pixels = resized(pixels, size) if warp is None else warped(pixels, size, warp, self._generator)
        images = ((pixels - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        return images, {task: values[chosen].to(self._device.name) for task, values in self._targets.items()}

    def about(self) -> dict[str, str]:
        """What this training is of, so that it is not mistaken for another."""
        facts = {f"the recipe's {one.name}": repr(getattr(self._recipe, one.name)) for one in fields(self._recipe)}
        weights = {name: str(list(value.shape)) for name, value in self.model.state_dict().items()}
        exits = {f"the loss weight of {one.name}": str(one.weight) for one in self.model.outputs}
        return {**facts, "the training part": self._part.sha256, "the device": repr(self._device), **exits, **weights}

    def state(self) -> dict[str, Any]:
        """All that changes while training."""
        return {
            "done": self.done,
            "order": self._order,
            "model": self.model.state_dict(),
            "loss": self._loss.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "generator": self._generator.get_state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if self._device.name == "cuda" else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a state of this training."""
        self.done, self._order = state["done"], state["order"]
        self.model.load_state_dict(state["model"])
        self._loss.load_state_dict(state["loss"])
        self.average = {name: value.to(self._device.name) for name, value in state["average"].items()}
        self.optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        self._generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"])


def _optimiser(model: nn.Module, loss: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; norms, biases and what the loss learns are not decayed."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in (*model.parameters(), *loss.parameters()) if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)


def _average(kept: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Moves the kept state (weights and batch-norm statistics) towards the model's, in place."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            kept[name].lerp_(value, 1 - decay)
        else:
            kept[name].copy_(value)


def _log_step(log: Log, run: _Run, loss: float, each: Tensor) -> None:
    log("loss", loss, run.done)
    log("learning_rate", float(run.optimiser.param_groups[0]["lr"]), run.done)
    for output, value in zip(run.model.outputs, each.tolist(), strict=True):
        log(f"loss/{output.name}", value, run.done)


def _log_epoch(log: Log, run: _Run, data: DataSet, recipe: Recipe) -> None:
    """Logs how well the averaged weights do on the validation part. Nothing is chosen by it."""
    averaged = copy.deepcopy(run.model)
    averaged.load_state_dict(run.average)
    for name, value in accuracies(averaged, data.validation, recipe.preprocessing(data.source_channels)).items():
        log(f"validation/{name}", value, run.done)
