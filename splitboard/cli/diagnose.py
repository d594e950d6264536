"""Which layers of a bundle's edge half cost its tasks what: the cheap pass, the exact one, and the list to exclude."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calib.diagnose.exact import Course, Yardstick
from calib.diagnose.exclusion import Losses, Search, cure, met
from calib.diagnose.finding import Exclusion, LayerLoss, LayerNoise
from calib.diagnose.noise import MOST_IMAGES, layer_noise, worst
from calib.diagnose.qdq import QdqVariants
from calib.diagnose.rebuild import Rebuilt, rebuild
from calib.diagnose.tflite import TfliteVariants
from calib.diagnose.variants import Runner, Variants, sources_of
from calib.gate.deployed import deployed_outputs, float_outputs
from calib.gate.evaluation import EvaluationSet, check_labels
from calib.keep_float import operators_of
from calib.qdq.keep import depthwise_nodes
from export.model import load_model
from splitboard.cli.check import CheckRequest, Plan, Progress
from splitboard.cli.check import plan as plan_check
from splitboard.contract.bundle import Bundle, Split, bundle_sha256, load_bundle
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import normalise, prepare
from splitboard.report.outputs import DiagnoseOutput


@dataclass(frozen=True)
class DiagnoseRequest:
    """What to look at.

    Attributes:
        bundle: folder.
        data: labelled images that did not calibrate the bundle.
        out: the page.
        split: id; ``None`` for local only, whose edge half is the whole model.
        gate: ``gate.toml``; ``None`` for the built-in defaults.
        worst: how many layers are measured exactly.
        limit: only the first images; ``None`` for all.
        model: the model folder, for the names of modules.
        folder: that a metric of the user's own lies in.
    """

    bundle: Path
    data: Path
    out: Path
    split: str | None = None
    gate: Path | None = None
    worst: int = 10
    limit: int | None = None
    model: Path | None = None
    folder: Path = Path()


def diagnose(request: DiagnoseRequest, show: Progress) -> DiagnoseOutput:
    """Diagnoses one split.

    Args:
        request: what to look at.
        show: told about every step.

    Raises:
        UserError: the bundle, the data, the gate or the model do not fit.
    """
    bundle = load_bundle(request.bundle)
    split = bundle.split(request.split) if request.split is not None else bundle.splits[-1]
    made = plan_check(CheckRequest(request.bundle, request.data, split.id, request.gate, folder=request.folder))
    data = _limited(made, request.limit)
    scopes = _scopes(bundle, request.model)
    rebuilt = rebuild(request.bundle, bundle, split)
    show("rebuild", 0, 1)
    variants = _variants(request.bundle, split, rebuilt)
    show("rebuild", 1, 1)
    noises = _noises(rebuilt, variants, bundle, data, show)
    images = data.samples.images
    yardstick = Yardstick(made.rules, data.truth, float_outputs(request.bundle, bundle, images, show), request.folder)
    deployed = deployed_outputs(request.bundle, bundle, [split], images, show)[split.id]
    course = Course(rebuilt.graph, split, rebuilt.outputs, images, bundle.preprocessing)
    exact = _Exact(variants, course, yardstick, show)
    chosen = worst(noises, variants.switchable, request.worst)
    tasks = yardstick.losses(deployed)
    search = exact.search(chosen, _takers(rebuilt, variants))
    losses = exact.layers(chosen, search)
    exclusion = None if met(tasks) or not chosen else _exclusion(search, variants, bundle)
    return DiagnoseOutput(
        page=str(request.out),
        bundle=str(request.bundle),
        name=bundle.name,
        bundle_sha256=bundle_sha256(request.bundle),
        model_sha256=bundle.model_sha256,
        board=bundle.board,
        split=split.id,
        data_sha256=data.samples.sha256,
        n=len(data.samples),
        n_noise=min(MOST_IMAGES, len(data.samples)),
        deviation=variants.deviation,
        met=met(tasks),
        tasks=tasks,
        not_judged=made.not_judged,
        keep_float=bundle.quantisation.keep_float,
        modules=_modules_of(variants.layers, rebuilt, scopes),
        layers=noises,
        worst=losses,
        exclusion=exclusion,
        command=None if exclusion is None or not exclusion.met else _command(bundle, request.model, rebuilt, exclusion),
    )


def _limited(made: Plan, limit: int | None) -> EvaluationSet:
    """The first images of the evaluation set."""
    data = made.data
    if limit is None or limit >= len(data.samples):
        return data
    truth = {task: values[:limit] for task, values in data.truth.items()}
    check_labels(truth, made.rules, made.bundle.tasks)
    return replace(data, samples=data.samples.rows(range(limit)), truth=truth)


def _modules_of(layers: Sequence[str], rebuilt: Rebuilt, scopes: Mapping[str, str]) -> dict[str, str]:
    """By layer, the module of its first operator: of a convolution and its activation, the convolution's."""
    graph, found = rebuilt.balanced, {}
    for layer in layers:
        operators = sorted(operators_of(graph, {layer}, rebuilt.crossing), key=lambda name: graph.producer[name])
        named = [scopes[name] for name in operators if scopes.get(name)]
        if named:
            found[layer] = named[0]
    return found


def _scopes(bundle: Bundle, folder: Path | None) -> dict[str, str]:
    """Module by tensor, from the model folder."""
    if folder is None:
        return {}
    info = load_model(folder).info
    if info.model_sha256 != bundle.model_sha256:
        raise UserError(
            f'"{folder}" is not the model that the bundle was built from: its sha256 is "{info.model_sha256[:12]}...", '
            f"the bundle says {bundle.model_sha256[:12]}...",
            ["give the model folder that was built from", "leave --model out: layers go by their tensors then"],
        )
    return dict(info.scopes)


def _variants(folder: Path, split: Split, rebuilt: Rebuilt) -> Variants:
    if split.edge_signature is not None:
        return TfliteVariants(folder, str(split.edge), split.edge_signature, rebuilt)
    return QdqVariants(folder, str(split.edge), rebuilt)


def _noises(
    rebuilt: Rebuilt, variants: Variants, bundle: Bundle, data: EvaluationSet, show: Progress
) -> tuple[LayerNoise, ...]:
    pixels = prepare(data.samples.images[:MOST_IMAGES], bundle.preprocessing)
    inputs = normalise(pixels, bundle.preprocessing)
    images = [inputs[i : i + 1] for i in range(len(inputs))]
    return layer_noise(rebuilt.balanced, variants, images, lambda done: show("noise", done, len(images)))


def _takers(rebuilt: Rebuilt, variants: Variants) -> dict[str, tuple[str, ...]]:
    """By layer, the layers that take its tensor and can be switched."""
    sources = sources_of(rebuilt.balanced, variants.layers, rebuilt.crossing)
    return {
        layer: tuple(one for one in variants.layers if layer in sources[one] and one in variants.switchable)
        for layer in variants.layers
    }


@dataclass(frozen=True)
class _Exact:
    """Measures variants of an edge half on the labelled images."""

    variants: Variants
    course: Course
    yardstick: Yardstick
    show: Progress

    def search(self, chosen: Sequence[LayerNoise], takers: dict[str, tuple[str, ...]]) -> Search:
        """A search that measures with these variants."""
        cures = [cure(one, takers) for one in chosen]
        return Search([one.layer for one in chosen], cures, lambda layers: self._left_float(layers))

    def layers(self, chosen: Sequence[LayerNoise], search: Search) -> tuple[LayerLoss, ...]:
        """What each layer costs; the lists of one layer are the search's first ones."""
        found = []
        for done, one in enumerate(chosen):
            self.show("layers", 2 * done, 2 * len(chosen))
            alone = self._losses(self.variants.int8(one.layer), f"INT8 {one.layer}")
            self.show("layers", 2 * done + 1, 2 * len(chosen))
            found.append(LayerLoss(one.layer, alone, search.losses(frozenset({one.layer}))))
        self.show("layers", 2 * len(chosen), 2 * len(chosen))
        return tuple(found)

    def _left_float(self, layers: frozenset[str]) -> Losses:
        return self._losses(self.variants.left_float(layers), f"float {', '.join(sorted(layers))}")

    def _losses(self, edge: Runner, what: str) -> Losses:
        step = f"images of {what}"
        outputs = self.course.outputs(edge, lambda done: self.show(step, done, len(self.course)))
        return self.yardstick.losses(outputs)


def _exclusion(search: Search, variants: Variants, bundle: Bundle) -> Exclusion:
    layers, shortest = search.find()
    found = tuple(one for one in variants.layers if one in layers)
    losses = search.losses(layers)
    return Exclusion(
        keep_float=(*bundle.quantisation.keep_float, *found),
        found=found,
        met=met(losses),
        tasks=losses,
        shortest=shortest,
        tried=search.tried,
    )


def _depthwise(bundle: Bundle, rebuilt: Rebuilt) -> str:
    """Where depthwise convolutions of a half for TensorRT are INT8 and were asked to be: the word for it."""
    if bundle.splits[-1].edge_signature is not None:
        return ""
    kept = operators_of(rebuilt.balanced, bundle.quantisation.keep_float, rebuilt.crossing)
    return "" if depthwise_nodes(rebuilt.balanced) <= kept else "int8"


def _command(bundle: Bundle, model: Path | None, rebuilt: Rebuilt, exclusion: Exclusion) -> str:
    """What builds the bundle again with the list; the calibration images are the user's to name."""
    between = [split for split in bundle.splits if not split.is_remote and not split.is_local]
    local = dict.fromkeys(task for split in between for task in split.local_tasks)
    options = {
        "--board": bundle.board,
        "--split": ",".join(split.id for split in between) or "auto",
        "--local": ",".join(local),
        "--ranges": "" if bundle.quantisation.errors else bundle.quantisation.ranges,
        "--keep-float": ",".join(exclusion.keep_float),
        "--depthwise": _depthwise(bundle, rebuilt),
    }
    words = ["splitboard", "build", "MODEL" if model is None else str(model)]
    words += [word for option, value in options.items() if value for word in (option, value)]
    words += ["--equalise"] if bundle.quantisation.equalised else []
    return shlex.join([*words, "--calib", "IMAGES", "-o", "BUNDLE"])
