"""A multi-task network as data: what `splitboard train` writes beside the weights, and what makes the module again."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from splitboard.contract.errors import UserError
from splitboard.zoo import backbones
from splitboard.zoo.multitask import ExitAt, Flat, MultiTaskNet, Pooled, tapped
from splitboard.zoo.sparsity import Sparsity, sparsify


@dataclass(frozen=True)
class Network:
    """All that determines a network but its weights. Its ``repr`` is a Python expression.

    Attributes:
        backbone: a name that `splitboard.zoo.backbones.make` knows.
        classes: tasks and their numbers of classes, in the order of the outputs.
        size: rows and columns of the images.
        head: of every task.
        exits: early exits, each with a head for every task that it scores.
        sparsity: which weights exist; ``None`` for all.
    """

    backbone: str
    classes: tuple[tuple[str, int], ...]
    size: int
    head: Pooled | Flat = field(default_factory=Pooled)
    exits: tuple[ExitAt, ...] = ()
    sparsity: Sparsity | None = None


def make(network: Network) -> MultiTaskNet:
    """The network with random weights from torch's generator: of the backbone, the heads, the exits, in this order.

    Args:
        network: what is wanted.

    Raises:
        UserError: there is no such backbone, place for an exit or task, it does not run on images of this size, or no
            degrees give a layer its density.
    """
    _check_tasks(network)
    backbone = backbones.make(network.backbone)
    last, taken = _maps(backbone, network)
    flat = isinstance(network.head, Flat)
    net = MultiTaskNet(
        backbone,
        channels=last[1:].numel() if flat else last[1],
        classes=dict(network.classes),
        hidden=network.head.hidden,
        pool=nn.Identity() if flat else None,
        exits={one: taken[one.at][1] for one in network.exits},
    )
    if network.sparsity is not None:
        sparsify(net, network.sparsity)
    return net


def _maps(backbone: nn.Module, network: Network) -> tuple[torch.Size, dict[str, torch.Size]]:
    """Shapes of what the backbone returns and of what the exits take, from a run without numbers."""
    name, paths = network.backbone, tuple(one.at for one in network.exits)
    _check_paths(backbone, name, paths)
    probe = copy.deepcopy(backbone).to("meta").eval()
    try:
        with torch.no_grad(), tapped(probe, paths) as taken:
            last = probe(torch.empty(1, 3, network.size, network.size, device="meta"))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f'the backbone "{name}" does not run on images of "{network.size}x{network.size}": {reason}',
            ["a larger size, such as 224"],
        ) from error
    for path, found in (("", last), *((path, taken.get(path)) for path in paths)):
        if not isinstance(found, Tensor) or found.ndim != 4:
            what = f'"{path}" of the backbone "{name}"' if path else f'the backbone "{name}"'
            raise UserError(f"{what} does not return one feature map [n, c, h, w]", ["name a convolution or a block"])
    return last.shape, {path: found.shape for path, found in taken.items()}


def _check_tasks(network: Network) -> None:
    """Refuses exits and sparse heads of tasks that the network does not have."""
    known = [task for task, _ in network.classes]
    sparse = network.sparsity.tasks if network.sparsity is not None else ()
    for task in (*sparse, *(task for one in network.exits for task in one.tasks)):
        if task not in known:
            raise UserError(f'the network has no task "{task}"', [f"its tasks are: {', '.join(known)}"])


def _check_paths(backbone: nn.Module, name: str, paths: tuple[str, ...]) -> None:
    known = [path for path, _ in backbone.named_modules() if path]
    for path in paths:
        if path not in known:
            near = get_close_matches(path, known, n=3, cutoff=0.4) or [key for key, _ in backbone.named_children()]
            raise UserError(f'the backbone "{name}" has no module "{path}" for an exit', near)
        if paths.count(path) > 1:
            raise UserError(f'two exits at "{path}"', ["one exit at each place"])
