"""The multi-task network of MTL-Split: one shared backbone, one head per task (arXiv 2407.05982).

The paper's head flattens the feature map (`Flat`); at 1280x7x7 that head alone weighs 64 MB. Ours pools first
(`Pooled`), which keeps the head and the payload at the last split small; the rest is as in the paper: one hidden layer,
dropout 0.1, ReLU. Early exits are small pooled heads behind modules inside of the backbone, trained with the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Pooled:
    """Heads behind a global average pool.

    Attributes:
        hidden: width of each head's hidden layer.
    """

    hidden: int = 128


@dataclass(frozen=True)
class Flat:
    """The paper's heads, on the flattened feature map. They take images of one size only.

    Attributes:
        hidden: width of each head's hidden layer.
    """

    hidden: int = 256


@dataclass(frozen=True)
class ExitAt:
    """An early exit: pooled heads behind a module of the backbone.

    Attributes:
        at: path of the module inside of the backbone, e.g. ``layer2``.
        weight: of its losses beside those of the last outputs, which have 1.
        hidden: width of each head's hidden layer.
        tasks: that it scores; none named means all.
    """

    at: str
    weight: float = 0.3
    hidden: int = 64
    tasks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The path without dots, as it stands in the names of outputs."""
        return self.at.replace(".", "_")


@dataclass(frozen=True)
class Output:
    """One output of a network.

    Attributes:
        name: its key in what ``forward`` returns.
        task: that it scores.
        weight: of its loss.
    """

    name: str
    task: str
    weight: float = 1.0


class Head(nn.Sequential):
    """One hidden layer and the class scores: ``[n, inputs]`` to ``[n, classes]``, float32."""

    def __init__(self, inputs: int, classes: int, hidden: int) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.Dropout(0.1), nn.ReLU(), nn.Linear(hidden, classes))


@contextmanager
def tapped(backbone: nn.Module, paths: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Collects what modules return while the backbone runs.

    Args:
        backbone: that runs in the block.
        paths: of its modules.

    Yields:
        A dictionary that fills with their outputs by path. Where the next module works in place, as activations often
        do, the output is what that has made of it.
    """
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for path in paths:

            def keep(_module: nn.Module, _given: object, returned: Tensor, path: str = path) -> None:
                found[path] = returned

            hooks.callback(backbone.get_submodule(path).register_forward_hook(keep).remove)
        yield found


class MultiTaskNet(nn.Module):
    """A backbone shared by several task heads.

    Args:
        backbone: maps ``[n, 3, h, w]`` to ``[n, channels, h', w']``.
        channels: inputs of a head: channels of the backbone's output, or all its values where nothing pools them.
        classes: number of classes by task, in the order of the outputs.
        hidden: width of each head's hidden layer.
        pool: what the feature map goes through before it is flattened; ``None`` for the average over its positions.
        exits: early exits, and the channels of the map that each one takes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: int,
        classes: Mapping[str, int],
        hidden: int = 128,
        pool: nn.Module | None = None,
        exits: Mapping[ExitAt, int] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = nn.AdaptiveAvgPool2d(1) if pool is None else pool
        self.flatten = nn.Flatten()
        self.heads = nn.ModuleDict({task: Head(channels, count, hidden) for task, count in classes.items()})
        self.exits_at = tuple(exits or ())
        self.exit_pool = nn.AdaptiveAvgPool2d(1)
        self.exits = nn.ModuleDict(
            {
                one.name: nn.ModuleDict({task: Head(width, classes[task], one.hidden) for task in one.tasks or classes})
                for one, width in (exits or {}).items()
            }
        )

    @property
    def outputs(self) -> tuple[Output, ...]:
        """What ``forward`` returns, in its order: the tasks, then every exit's scores of its tasks."""
        tasks = tuple(self.heads)
        last = [Output(task, task) for task in tasks]
        early = [
            Output(f"{task}_exit_{one.name}", task, one.weight) for one in self.exits_at for task in one.tasks or tasks
        ]
        return (*last, *early)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Returns the class scores (logits) of every output, ``{name: [n, classes]}``."""
        with tapped(self.backbone, tuple(one.at for one in self.exits_at)) as taken:
            features = self.flatten(self.pool(self.backbone(image)))
        scores: dict[str, Tensor] = {task: head(features) for task, head in self.heads.items()}
        for one in self.exits_at:
            early = self.flatten(self.exit_pool(taken[one.at]))
            heads = self.exits.get_submodule(one.name)
            scores |= {f"{task}_exit_{one.name}": head(early) for task, head in heads.named_children()}
        return scores
