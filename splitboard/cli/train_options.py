"""The options of ``splitboard train`` as a network, a recipe and a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path

from splitboard.contract.errors import UserError
from splitboard.zoo import elpv
from splitboard.zoo.data.dataset import DataSet
from splitboard.zoo.multitask import ExitAt, Flat, Pooled
from splitboard.zoo.networks import Network
from splitboard.zoo.sparsity import Grouped, Scattered, Sparsity
from splitboard.zoo.training.recipe import PHOTOGRAPHS, Recipe, Stage, Sum, Uncertainty

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What torchvision's published weights were trained with."""


@dataclass(frozen=True)
class TrainRequest:
    """What was asked for on the command line. ``None`` and empty texts are what the data set's recipe says.

    Attributes:
        dataset: name of it.
        data: where its files are, for data sets that are files.
        backbone: name of it.
        size: rows and columns of the images.
        tasks: comma-separated.
        head: ``pooled`` or ``flat``.
        hidden: width of the heads.
        exits: each a module path, with or without ``=weight``.
        density: ``backbone=1/8,heads=1/16``; other names are modules of the backbone.
        pattern: ``grouped`` or ``scattered``.
        weighting: ``sum`` or ``uncertainty``.
        epochs: at the one size.
        batch: images per step.
        learning_rate: its peak.
        seed: of everything.
        threads: of the arithmetic.
        weights: published ones for the backbone.
    """

    dataset: str
    data: Path | None = None
    backbone: str = ""
    size: int | None = None
    tasks: str = ""
    head: str = "pooled"
    hidden: int | None = None
    exits: tuple[str, ...] = ()
    density: str = ""
    pattern: str = ""
    weighting: str = ""
    epochs: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    threads: int | None = None
    weights: Path | None = None


@dataclass(frozen=True)
class _Known:
    """A data set that can be trained on.

    Attributes:
        backbone: unless another one is asked for.
        recipe: likewise.
        load: the data, from its files, at a size, with some tasks (all where none is named).
        files: what ``--data`` names; ``None`` where there are no files to name.
    """

    backbone: str
    recipe: Recipe
    load: Callable[[Path, int, tuple[str, ...]], DataSet]
    files: str | None = None


def _elpv(_path: Path, _size: int, _tasks: tuple[str, ...]) -> DataSet:
    from splitboard.zoo.data import elpv as cells

    return cells.load()


def _shapes(_path: Path, size: int, tasks: tuple[str, ...]) -> DataSet:
    from splitboard.zoo.data import factors, shapes

    return shapes.load(size=size, tasks=tasks or factors.TASKS)


def _shapes3d(path: Path, _size: int, tasks: tuple[str, ...]) -> DataSet:
    from splitboard.zoo.data import factors, shapes3d

    return shapes3d.load(path, tasks=tasks or factors.TASKS)


def _faces(path: Path, size: int, _tasks: tuple[str, ...]) -> DataSet:
    from splitboard.zoo.data import faces

    return faces.load(path, size)


def _medic(path: Path, size: int, tasks: tuple[str, ...]) -> DataSet:
    from splitboard.zoo.data import medic

    return medic.load(path, size, tasks or medic.TASKS)


_SMALL_IMAGES = Recipe(stages=(Stage(epochs=12, size=64),), batch=64, learning_rate=2e-3)
_PHOTOGRAPHS = Recipe(stages=(Stage(epochs=30, size=224),), augmentation=PHOTOGRAPHS)
_KNOWN = {
    "elpv": _Known("efficientnet-lite0", elpv.RECIPE, _elpv),
    "shapes": _Known("resnet18", _SMALL_IMAGES, _shapes),
    "shapes3d": _Known("resnet18", replace(_SMALL_IMAGES, stages=(Stage(2, 64),)), _shapes3d, "3dshapes.h5"),
    "faces": _Known("resnet18", _PHOTOGRAPHS, _faces, "the folder of FACES"),
    "medic": _Known("resnet18", _PHOTOGRAPHS, _medic, "the folder of MEDIC"),
}
DATASETS = tuple(_KNOWN)


@dataclass(frozen=True)
class Training:
    """What will be trained, on what, and how.

    Attributes:
        data: loaded.
        classes: class names by task, in the order of the outputs.
        network: without weights.
        recipe: how.
        weights: published ones for the backbone, ``None`` for random ones.
    """

    data: DataSet
    classes: Mapping[str, tuple[str, ...]]
    network: Network
    recipe: Recipe
    weights: Path | None


def training(request: TrainRequest) -> Training:
    """Reads the options and loads the data.

    Raises:
        UserError: an option is wrong, or the data are.
    """
    known = _known(request)
    backbone = request.backbone or known.backbone
    recipe = _recipe(request, known, backbone)
    head = _head(request)
    exits = tuple(_exit(text) for text in request.exits)
    sparsity = _sparsity(request)
    size = recipe.stages[-1].size
    tasks = tuple(part.strip() for part in request.tasks.split(",") if part.strip())
    data = known.load(request.data or Path(), size, tasks)
    classes = _classes(data, tasks)
    network = Network(
        backbone=backbone,
        classes=tuple((task, len(names)) for task, names in classes.items()),
        size=size,
        head=head,
        exits=exits,
        sparsity=sparsity,
    )
    return Training(data, classes, network, recipe, request.weights)


def network_name(request: TrainRequest) -> str:
    """Names what is trained, as a Python module can be called."""
    backbone = request.backbone or _known(request).backbone
    return "".join(c if c.isalnum() else "_" for c in f"{request.dataset}_{backbone}")


def _known(request: TrainRequest) -> _Known:
    if request.dataset not in _KNOWN:
        raise UserError(f'unknown data set "{request.dataset}"', [f"splitboard train {name}" for name in DATASETS])
    known = _KNOWN[request.dataset]
    if known.files is None and request.data is not None:
        raise UserError(
            f'"{request.dataset}" is not read from files, and --data "{request.data}" would not be used',
            ["leave --data out"],
        )
    if known.files is not None and request.data is None:
        raise UserError(f'"{request.dataset}" is read from files, and --data is missing', [f"--data {known.files}"])
    return known


def _recipe(request: TrainRequest, known: _Known, backbone: str) -> Recipe:
    recipe = elpv.RECIPES.get(backbone, known.recipe) if request.dataset == "elpv" else known.recipe
    # Flattened heads take images of one size only: no stages of smaller ones.
    if request.epochs is not None or request.size is not None or request.head == "flat":
        epochs = request.epochs or sum(stage.epochs for stage in recipe.stages)
        recipe = replace(recipe, stages=(Stage(epochs, request.size or recipe.stages[-1].size),))
    if request.learning_rate is not None and not 0 < request.learning_rate <= 1:
        raise UserError(f'learning rate "{request.learning_rate}"', ["above 0 and at most 1, such as 1e-3"])
    if request.weights is not None and backbone != "efficientnet-lite0":  # whose weights have means of 0.5
        recipe = replace(recipe, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return replace(
        recipe,
        batch=request.batch or recipe.batch,
        learning_rate=request.learning_rate or recipe.learning_rate,
        seed=recipe.seed if request.seed is None else request.seed,
        threads=request.threads or recipe.threads,
        weighting=_weighting(request.weighting) if request.weighting else recipe.weighting,
    )


def _weighting(text: str) -> Sum | Uncertainty:
    if text == "sum":
        return Sum()
    if text == "uncertainty":
        return Uncertainty()
    raise UserError(f'--weighting "{text}"', ["--weighting sum", "--weighting uncertainty"])


def _head(request: TrainRequest) -> Pooled | Flat:
    if request.head == "pooled":
        return Pooled() if request.hidden is None else Pooled(request.hidden)
    if request.head == "flat":
        return Flat() if request.hidden is None else Flat(request.hidden)
    raise UserError(f'--head "{request.head}"', ["--head pooled", "--head flat"])


def _exit(text: str) -> ExitAt:
    path, separator, weight = text.partition("=")
    if not separator:
        return ExitAt(path)
    try:
        number = float(weight)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise UserError(f'--exit "{text}" has no weight above 0 and at most 1', [f"--exit {path}=0.3"])
    return ExitAt(path, number)


def _sparsity(request: TrainRequest) -> Sparsity | None:
    if not request.density:
        if request.pattern:
            raise UserError(
                f'--pattern "{request.pattern}" without --density', ["--density backbone=1/8,heads=1/8", "no --pattern"]
            )
        return None
    densities: dict[str, Fraction] = {}
    for text in request.density.split(","):
        part, separator, density = text.strip().partition("=")
        if not separator or not part:
            raise UserError(f'--density "{text}" names no part', ["--density backbone=1/8,heads=1/16"])
        if part in densities:
            raise UserError(f'--density "{request.density}" names "{part}" twice', [f"--density {part}={density}"])
        try:
            densities[part] = Fraction(density)
        except (ValueError, ZeroDivisionError) as error:
            raise UserError(f'"{density}" is no density', [f"--density {part}=1/8"]) from error
    backbone, heads = (densities.pop(part, Fraction(1)) for part in ("backbone", "heads"))
    return Sparsity(backbone, heads, _pattern(request.pattern), modules=tuple(densities.items()))


def _pattern(text: str) -> Grouped | Scattered:
    if text in ("", "grouped"):
        return Grouped()
    if text == "scattered":
        return Scattered()
    raise UserError(f'--pattern "{text}"', ["--pattern grouped", "--pattern scattered"])


def _classes(data: DataSet, tasks: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    for task in tasks:
        if task not in data.classes:
            near = get_close_matches(task, data.classes, n=3) or list(data.classes)
            raise UserError(f'"{data.name}" has no task "{task}"', [f"--tasks {one}" for one in near])
    return {task: data.classes[task] for task in dict.fromkeys(tasks or data.classes)}
