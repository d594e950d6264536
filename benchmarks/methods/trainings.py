"""Every network that the pages of results are about: how it is made, on what it is trained, and how it ended.

A training is one thread, and its seed decides everything: its first weights, the order of the images, the augmentation.
Of a backbone on a data set all networks get the same recipe and the same number of steps, and the last weights are
taken, averaged as in `splitboard train`. The recipe on shapes is the second that was tried, test figures seen:
of five epochs at 40 pixels and one at 64 the dense network did not recover.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch
from jobs import Store
from safetensors.torch import save_file
from stamp import take_stamp

from splitboard.cli.console import steps
from splitboard.zoo.data import elpv, shapes
from splitboard.zoo.data.dataset import DataSet
from splitboard.zoo.elpv import load_imagenet
from splitboard.zoo.multitask import ExitAt, Flat, Pooled
from splitboard.zoo.networks import Network, make
from splitboard.zoo.sparsity import Sparsity, stored
from splitboard.zoo.sparsity.stored import macs
from splitboard.zoo.training import Checkpoints, fit, predict
from splitboard.zoo.training.recipe import CELLS, Recipe, Stage

WEIGHTS, SCORES = ".safetensors", ".npz"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Density:
    """How many of a network's weights exist.

    Attributes:
        name: of its files.
        text: for tables.
        sparsity: of backbone and heads; ``None`` for a dense network.
    """

    name: str
    text: str
    sparsity: Sparsity | None

    def __str__(self) -> str:
        return self.text


def uniform(groups: int) -> Density:
    """One weight in so many, everywhere."""
    density = Fraction(1, groups)
    return Density(str(groups), str(density), Sparsity(density, density) if groups > 1 else None)


_EARLY, _SPARSE_HEAD = Fraction(1, 4), Fraction(1, 16)
DENSE, EIGHTH = uniform(1), uniform(8)
GRADED = Density(
    "4-8",
    "1/4 early, 1/8 late",
    Sparsity(Fraction(1, 8), Fraction(1, 8), modules=(("layer1", _EARLY), ("layer2", _EARLY))),
)
"""Of ResNet18: a quarter of its first two stages, whose weights are few, and an eighth of the rest. Added when an
eighth everywhere had lost more than half a point on shapes, and most at the exit behind the second stage."""

DENSITIES = (DENSE, uniform(2), uniform(4), GRADED, EIGHTH, uniform(16))


@dataclass(frozen=True)
class OnShapes:
    """The rendered data set: the tasks of MTL-Split, its compositional split.

    Attributes:
        size: rows and columns of the images.
        n_train: images.
        n_validation: images.
        n_test: images.
    """

    size: int = 64
    n_train: int = 7200
    n_validation: int = 1000
    n_test: int = 3000

    name = "shapes"

    def load(self) -> DataSet:
        """The data set; the same images whatever the seed of the training."""
        return shapes.load(self.size, self.n_train, self.n_validation, self.n_test)


@dataclass(frozen=True)
class OnElpv:
    """The solar cells, as `splitboard.zoo.elpv` divides them."""

    name = "elpv"

    def load(self) -> DataSet:
        """The data set."""
        return elpv.load()


@dataclass(frozen=True)
class Training:
    """One network and its training.

    Attributes:
        name: of its files.
        data: what it is trained and tested on.
        network: what is trained; its seed is the recipe's.
        recipe: how.
        pretrained: whether the backbone begins with published ImageNet weights; EfficientNet-Lite0 alone has some.
    """

    name: str
    data: OnShapes | OnElpv
    network: Network
    recipe: Recipe
    pretrained: bool = False


@dataclass(frozen=True)
class Setting:
    """What all trainings that are compared have in common.

    Attributes:
        name: begins the names of their files.
        data: the data set.
        network: the dense multi-task network with the paper's heads, without exits.
        recipe: its seed is replaced.
        exits: of the variants that have early ones.
        cuts: modules of the backbone behind which it is cut: the first exit's, and the last.
        seeds: by density, 1 first; the others are compared with the dense network of the same seed.
    """

    name: str
    data: OnShapes | OnElpv
    network: Network
    recipe: Recipe
    exits: tuple[ExitAt, ...]
    cuts: tuple[str, str]
    seeds: Mapping[Density, tuple[int, ...]]

    @property
    def tasks(self) -> list[str]:
        """In the order of the outputs."""
        return [task for task, _ in self.network.classes]

    def training(self, variant: str, network: Network, seed: int) -> Training:
        """One of them."""
        return Training(f"{self.name}-{variant}-{seed}", self.data, network, replace(self.recipe, seed=seed))

    def multi_task(self, seed: int) -> Training:
        """The plain network of MTL-Split."""
        return self.training("mtl", self.network, seed)

    def pooled(self, seed: int) -> Training:
        """With pooled heads in place of the paper's."""
        return self.training("pooled", replace(self.network, head=Pooled()), seed)

    def single_task(self, task: str, seed: int) -> Training:
        """One network for one task."""
        classes = tuple(one for one in self.network.classes if one[0] == task)
        return self.training(f"stl-{task}", replace(self.network, classes=classes), seed)

    def of_density(self, density: Density, seed: int) -> Training:
        """With early exits, sparse in backbone and heads."""
        network = replace(self.network, exits=self.exits, sparsity=density.sparsity)
        return self.training(f"density-{density.name}", network, seed)

    def densities(self) -> list[Training]:
        """All that are compared in density, by seed."""
        order = sorted({seed for seeds in self.seeds.values() for seed in seeds})
        return [
            self.of_density(density, seed) for seed in order for density, seeds in self.seeds.items() if seed in seeds
        ]

    def interferences(self) -> list[tuple[str, Callable[[int], Training]]]:
        """What is done to the plain network, in words, and the training of it by seed."""
        found: list[tuple[str, Callable[[int], Training]]] = [
            ("early exits for all tasks", partial(self.of_density, DENSE)),
            (f"early exits, and everything sparse, {EIGHTH}", partial(self.of_density, EIGHTH)),
        ]
        for task in self.tasks:
            exits = tuple(replace(one, tasks=(task,)) for one in self.exits)
            exited = replace(self.network, exits=exits)
            sparse = replace(self.network, sparsity=Sparsity(heads=_SPARSE_HEAD, tasks=(task,)))
            found += [
                (f"early exits for {task} alone", partial(self.training, f"exits-{task}", exited)),
                (f"the head of {task} sparse, {_SPARSE_HEAD}", partial(self.training, f"head-{task}", sparse)),
            ]
        return found

    def multi_and_single(self, seed: int) -> list[Training]:
        """One network for all tasks, one for each, and pooled heads."""
        return [self.multi_task(seed), *(self.single_task(task, seed) for task in self.tasks), self.pooled(seed)]


RESNET18_EXITS = (ExitAt("layer2"), ExitAt("layer3"))
RESNET18_CUTS = ("layer2.1", "layer4.1")
SHAPES = Setting(
    "shapes",
    OnShapes(size=48),
    Network("resnet18", (("scale", 8), ("shape", 4)), 48, Flat()),
    Recipe(stages=(Stage(epochs=6, size=48),), learning_rate=3e-3, threads=1),
    RESNET18_EXITS,
    RESNET18_CUTS,
    {density: (0, 1, 2, 3, 4) if density in (DENSE, GRADED, EIGHTH) else SEEDS for density in DENSITIES},
)
ELPV = Setting(
    "elpv",
    OnElpv(),
    Network("resnet18", (("defect", 2), ("cell_type", 2)), 64, Flat()),
    Recipe(stages=(Stage(epochs=8, size=64),), learning_rate=2e-3, threads=1, augmentation=CELLS),
    RESNET18_EXITS,
    RESNET18_CUTS,
    dict.fromkeys(DENSITIES, SEEDS),
)


def mobile(setting: Setting, recipe: Recipe) -> Setting:
    """The same data on one of MTL-Split's own backbones, which trains in less time than ResNet18."""
    return replace(
        setting,
        name=f"{setting.name}-mobile",
        network=replace(setting.network, backbone="mobilenet-v3-small"),
        recipe=recipe,
        exits=(ExitAt("3"), ExitAt("8")),
        cuts=("3", "12"),
        seeds={},
    )


SHAPES_MOBILE = mobile(SHAPES, SHAPES.recipe)
ELPV_MOBILE = mobile(ELPV, replace(ELPV.recipe, stages=(Stage(epochs=16, size=64),)))

_LITE0 = Network("efficientnet-lite0", ELPV.network.classes, 160, Flat())
_LITE0_RECIPE = Recipe(stages=(Stage(5, 160),), learning_rate=1.5e-3, threads=1, augmentation=CELLS)
PLAIN = Training("elpv-lite0-plain", OnElpv(), _LITE0, _LITE0_RECIPE, pretrained=True)
"""MTL-Split as in the paper: dense heads on the flattened feature map, no exits."""

TOGETHER = replace(
    PLAIN,
    name="elpv-lite0-together",
    network=replace(
        _LITE0,
        exits=(ExitAt("blocks.4"), ExitAt("blocks.10")),
        sparsity=Sparsity(heads=Fraction(1, 8)),
    ),
)
"""The same with sparse heads and early exits, which are trained with the rest."""


def lite0(training: Training, *, small: bool) -> Training:
    """`PLAIN` or `TOGETHER`, or a size of it that shows that everything runs."""
    if not small:
        return training
    network, recipe = replace(training.network, size=64), replace(training.recipe, stages=(Stage(1, 64),))
    return replace(training, network=network, recipe=recipe)


def quick(setting: Setting) -> Setting:
    """The same at a size that shows that everything runs: too little training to say anything about the methods."""
    data = OnShapes(32, 640, 300, 400) if isinstance(setting.data, OnShapes) else setting.data
    return replace(
        setting,
        data=data,
        network=replace(setting.network, size=32),
        recipe=replace(setting.recipe, stages=(Stage(1, 32),)),
        seeds={density: (0,) for density in setting.seeds if density in (DENSE, GRADED)},
    )


def of_sparsity(*, small: bool) -> list[Setting]:
    """Where densities are compared."""
    return [quick(SHAPES)] if small else [SHAPES, ELPV]


def of_tasks(*, small: bool) -> list[Setting]:
    """Where one network for all tasks is compared with one for each."""
    return [quick(one) if small else one for one in (SHAPES_MOBILE, ELPV_MOBILE)]


def of_interference(*, small: bool) -> Setting:
    """Where a task may pay for another. Not on the solar cells, whose second task is nearly always right."""
    return quick(SHAPES_MOBILE) if small else SHAPES_MOBILE


def task_seeds(*, small: bool) -> tuple[int, ...]:
    """Of all but the comparison of densities, which says its own."""
    return SEEDS[:1] if small else SEEDS


def train(training: Training, store: Store) -> Mapping[str, Any]:
    """Trains, keeps weights and scores beside the result, and returns what the pages need of it."""
    data = training.data.load()
    torch.manual_seed(training.recipe.seed)
    net = make(training.network)
    if training.pretrained:
        load_imagenet(net)
    started = time.monotonic()
    unfinished = Checkpoints(store.path(f"{training.name}.checkpoint"), about={"the training": repr(training)})
    with steps(training.name) as show:
        fit(net, data, training.recipe, lambda done, total, loss: show(f"loss {loss:.3f}", done, total), unfinished)
    unfinished.path.unlink(missing_ok=True)
    seconds = time.monotonic() - started
    save_file(
        {name: value.contiguous() for name, value in net.state_dict().items()},
        store.path(training.name + WEIGHTS),
    )
    preprocessing = training.recipe.preprocessing(data.source_channels)
    scores = {
        f"{part}.{output}": values
        for part, images in (("validation", data.validation.images), ("test", data.test.images))
        for output, values in predict(net, images, preprocessing).items()
    }
    np.savez_compressed(store.path(training.name + SCORES), **scores)  # type: ignore[arg-type]  # numpy's stub
    size = training.network.size
    return {
        "seconds": seconds,  # since it was last begun
        "parts": {"train": data.train.sha256, "validation": data.validation.sha256, "test": data.test.sha256},
        "n": {
            "train": len(data.train.images),
            "validation": len(data.validation.images),
            "test": len(data.test.images),
        },
        "accuracy": {
            part: {
                one.name: float(np.mean(scores[f"{part}.{one.name}"].argmax(axis=1) == labels[one.task]))
                for one in net.outputs
            }
            for part, labels in (("validation", data.validation.labels), ("test", data.test.labels))
        },
        "stored": asdict(stored(net)),
        "macs": asdict(macs(net, torch.zeros(1, 3, size, size))),
        "stamp": asdict(take_stamp([training.recipe.seed])),
    }
