"""What INT8 costs every task at every natural block split, on images that took no part in training or calibration.

For each model folder: a bundle with all splits that are natural bottlenecks and whole blocks, ranges chosen by the
build itself. Then the deployed artefacts against the float model on the same images: the edge half in LiteRT, or, where
the board takes Q/DQ, in ONNX Runtime with its optimiser off; the server half in ONNX Runtime. Counts and one-sided 95 %
limits (as in `splitboard check`) are printed beside every drop; the median and the worst over all splits and tasks come
last.

Usage: python benchmarks/accuracy_drop.py --calib calibration.npz --data test.npz MODEL [MODEL ...]
       python benchmarks/accuracy_drop.py --board jetson-orin-nano --calib calibration.npz --data test.npz MODEL
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from output import show

from boards.kinds import load_kind, this_machine
from calib.dataset import MOST_IMAGES, calibration_set
from calib.gate.judgement import Judgement
from calib.recipe import Recipe
from export.choice import choose
from export.model import load_model
from export.splits import list_splits
from runtime_edge.engines.litert import find_interpreter
from splitboard.cli import check
from splitboard.cli.build import BuildRequest, build_bundle
from splitboard.cli.console import steps
from splitboard.contract.board import BoardKind
from splitboard.contract.bundle import Bundle


def build(model_folder: Path, calib: Path, kind: BoardKind, recipe: Recipe, target: Path) -> Bundle:
    """A bundle with every natural block split."""
    model = load_model(model_folder)
    splits = list_splits(model)
    points = [point.id for point in splits.proper if point.natural and point.block and len(point.crossing) == 1]
    request = BuildRequest(choose(model, splits, ",".join(points)), kind, recipe)
    channels = model.info.declared().source_channels
    with calibration_set(str(calib), channels, MOST_IMAGES, Path()) as data, steps("build") as progress:
        return build_bundle(model, splits, request, data, target, progress)


def judged(folder: Path, data: Path) -> tuple[Judgement, ...]:
    """Every split and task against float."""
    made = check.plan(check.CheckRequest(folder, data))
    with steps("check") as progress:
        return check.judge(made, check.run_here(made, progress), progress).judgements


def row(name: str, bundle: Bundle, one: Judgement) -> dict[str, object]:
    """One line of the table."""
    return {
        "model": name,
        "split": bundle.split(one.split).scope,
        "task": one.task,
        "float": f"{round(one.reference * one.n)}/{one.n}",
        "int8": f"{round(one.deployed * one.n)}/{one.n}",
        "drop": one.drop,
        "95 % limits": f"{one.lower:.2f} to {one.upper:.2f}",
        "ranges": bundle.quantisation.ranges,
    }


def main() -> None:
    """Builds, runs, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", type=Path, nargs="+", help="model folders, from splitboard export")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--board", default=this_machine().name, help="kind of board; a Jetson for Q/DQ")
    parser.add_argument("--ranges", default="auto")
    parser.add_argument("--no-bias-correction", action="store_true")
    parser.add_argument("--equalise", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    recipe = Recipe(ranges=options.ranges, equalise=options.equalise, correct_bias=not options.no_bias_correction)
    kind = load_kind(options.board)
    runtime = find_interpreter().name if kind.format == "tflite" else f"onnxruntime {onnxruntime.__version__}"
    rows, drops = [], []
    for folder in options.models:
        with tempfile.TemporaryDirectory() as work:
            bundle = build(folder, options.calib, kind, recipe, Path(work) / "bundle")
            judgements = judged(Path(work) / "bundle", options.data)
        rows += [row(bundle.name, bundle, one) for one in judgements]
        drops += [one.drop for one in judgements]
    about = (
        f"{len(drops)} pairs of split and task: drop in points, median {np.median(drops):.2f}, worst {max(drops):.2f}"
    )
    show(rows, runtime, about, as_json=options.json)


if __name__ == "__main__":
    main()
