"""How often early exits answer, and what that costs each task, on images that fitted nothing.

Linear exits of every labelled task behind the named modules are fitted on the training images. A bundle with the splits
at these modules is calibrated on one part of the calibration images. The deployed halves (edge in LiteRT, server in
ONNX Runtime) then run on the rest of them and on the test images. Thresholds are fitted on that rest and one half of
the test images, and judged on the other half; then the halves change places. So every test image is judged once, by
rules that have not seen it. Last, the edge halves are timed with their exits and without.

Usage: python benchmarks/early_exit.py MODEL --at A,B,C --train train.npz --calib calibration.npz --data test.npz
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from output import ratio, show

from boards.kinds import this_machine
from calib.dataset import calibration_set
from calib.exits.thresholds import Answers, Target, fit_rule
from calib.gate.deployed import Outputs, deployed_outputs, edge_engine
from calib.gate.statistics import paired_limits
from export.choice import choose
from export.model import Model, load_model
from export.splits import list_splits
from runtime_edge.engines.litert import find_interpreter
from runtime_edge.loop.exits import sure
from splitboard.cli.build import BuildRequest, build_bundle
from splitboard.cli.console import steps
from splitboard.cli.exits import add_exits, places
from splitboard.contract.bundle import Bundle, Exit, Split
from splitboard.contract.exits import MEASURES, ExitRules
from splitboard.contract.samples import Samples, load_samples, save_samples

N_CALIBRATION = 100
CONFIDENCE = 0.95
SEED = 0
EXITS, PLAIN = "exits.bundle", "plain.bundle"
WARM_UP, ROUNDS = 30, 200


def with_exits(model_folder: Path, at: str, train: Samples, target: Path) -> Model:
    """The model with exits of every labelled task."""
    model = load_model(model_folder)
    with steps("exits") as progress:
        add_exits(model, train, places(model, at, "", train.labels), target, progress)
    return load_model(target)


def build(model: Model, at: str, calibration: Samples, work: Path, name: str) -> Bundle:
    """A bundle with the splits that the exits follow."""
    splits = list_splits(model)
    save_samples(work / "calibration.npz", calibration.images, calibration.labels)
    channels = model.info.declared().source_channels
    request = BuildRequest(choose(model, splits, at), this_machine())
    with (
        calibration_set(str(work / "calibration.npz"), channels, len(calibration), work) as data,
        steps("build") as progress,
    ):
        return build_bundle(model, splits, request, data, work / name, progress)


def joined(one: Samples, other: Samples) -> Samples:
    """Both sets, the first one's images first."""
    return Samples(
        np.concatenate([one.images, other.images]),
        {task: np.concatenate([one.labels[task], other.labels[task]]) for task in one.labels},
        (*one.hashes, *other.hashes),
    )


def folds(n_rest: int, n_test: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Twice (images that fit rules, test images that judge them); the rest of the calibration images comes first."""
    order = n_rest + np.random.default_rng(SEED).permutation(n_test)
    halves = order[: n_test // 2], order[n_test // 2 :]
    for fitting, judging in (halves, halves[::-1]):
        yield np.concatenate([np.arange(n_rest), fitting]), judging


@dataclass(frozen=True)
class Judged:
    """What exits of one task do at a split.

    Attributes:
        exits: their modules, one or, where the two halves of the test images chose differently, several.
        thresholds: one for each half.
        early: where the exit answered, ``[n]``.
        right: where it is right, were it to answer everything.
        final: where the whole split is right.
    """

    exits: tuple[str, ...]
    thresholds: tuple[float | None, ...]
    early: NDArray[np.bool_]
    right: NDArray[np.bool_]
    final: NDArray[np.bool_]

    def row(self) -> dict[str, object]:
        """The columns that say what it is worth."""
        lost = int((self.early & self.final & ~self.right).sum())
        gained = int((self.early & self.right & ~self.final).sum())
        n = len(self.early)
        limits = paired_limits(lost, gained, n, CONFIDENCE)
        drop = f"{100 * (lost - gained) / n:.2f} ({100 * limits.lower:.2f} to {100 * limits.upper:.2f})"
        return {
            "exit": " ".join(self.exits) or "-",
            "thresholds": " ".join("never" if one is None else f"{one:.4g}" for one in self.thresholds),
            "exit rate %": 100 * float(self.early.mean()),
            "without %": 100 * float(self.final.mean()),
            "exit alone %": 100 * float(self.right.mean()),
            "exited %": 100 * float(self.right[self.early].mean()) if self.early.any() else "-",
            "combined %": 100 * float(np.where(self.early, self.right, self.final).mean()),
            "lost/gained": f"{lost}/{gained}",
            "drop, 95 % limits": drop,
        }


@dataclass(frozen=True)
class Trial:
    """One split under one target, fitted and judged twice.

    Attributes:
        alone: every exit by itself, by output.
        used: by task, the exits that the rules' own choice takes.
    """

    alone: dict[str, Judged]
    used: dict[str, Judged]


def tried(split: Split, exits: Sequence[Exit], found: Outputs, data: Samples, n_rest: int, target: Target) -> Trial:
    """Fits the rules of a split on one half of the test images and judges them on the other, then the other way."""
    n = len(data)
    tasks = list(dict.fromkeys(one.task for one in exits))
    by_output = {one.output: one for one in exits}
    early: dict[str, NDArray[np.bool_]] = {name: np.zeros(n, np.bool_) for name in (*by_output, *tasks)}
    right = {one.output: Answers(found[one.output], found[one.task], data.labels[one.task]).exit_right for one in exits}
    chosen = {task: np.zeros(n, np.bool_) for task in tasks}
    thresholds: dict[str, list[float | None]] = {name: [] for name in early}
    scopes: dict[str, list[str]] = {name: [] for name in early}
    for fitting, judging in folds(n_rest, n - n_rest):
        rules = tuple(
            fit_rule(
                split.id,
                one.output,
                one.task,
                Answers(found[one.output][fitting], found[one.task][fitting], data.labels[one.task][fitting]),
                target,
                [other.task for other in exits].count(one.task),
            )
            for one in exits
        )
        best = {task: ExitRules(1, "", "", rules).best(split.id, task) for task in tasks}
        for name, rule in [*((rule.output, rule) for rule in rules), *best.items()]:
            thresholds[name].append(None if rule is None else rule.threshold)
            if rule is None:
                continue
            scopes[name].append(by_output[rule.output].scope)
            early[name][judging] = [sure(found[rule.output][i : i + 1], rule) for i in judging]
            if name in chosen:
                chosen[name][judging] = right[rule.output][judging]

    def judged(name: str, task: str, answers: NDArray[np.bool_]) -> Judged:
        final = np.asarray(found[task].argmax(axis=1) == data.labels[task])
        rows = slice(n_rest, None)
        names = tuple(dict.fromkeys(scopes[name]))
        return Judged(names, tuple(thresholds[name]), early[name][rows], answers[rows], final[rows])

    return Trial(
        {one.output: judged(one.output, one.task, right[one.output]) for one in exits},
        {task: judged(task, task, chosen[task]) for task in tasks},
    )


def edge_times(work: Path, bundles: Sequence[Bundle]) -> list[dict[str, object]]:
    """What the exits add to the time of an edge half: both are run in turns."""
    splits = [split for split in bundles[0].splits if split.exits]
    image = np.zeros(bundles[0].edge_input.shape, bundles[0].edge_input.dtype)
    rows: list[dict[str, object]] = []
    with contextlib.ExitStack() as stack:
        engines = [
            stack.enter_context(edge_engine(work / name, bundle, bundle.splits))
            for name, bundle in zip((EXITS, PLAIN), bundles, strict=True)
        ]
        for split in splits:
            spent_ns = np.zeros((len(engines), WARM_UP + ROUNDS), np.int64)
            for number in range(WARM_UP + ROUNDS):
                for which, engine in enumerate(engines):
                    start_ns = time.perf_counter_ns()
                    engine.infer(split.id, image)
                    spent_ns[which, number] = time.perf_counter_ns() - start_ns
            with_ms, without_ms = spent_ns[:, WARM_UP:] / 1e6
            rows.append(
                {
                    "split": split.scope,
                    "exits": len(split.exits),
                    "with ms": float(np.median(with_ms)),
                    "without ms": float(np.median(without_ms)),
                    "ratio (95 %)": ratio(with_ms.tolist(), without_ms.tolist()),
                }
            )
    return rows


def main() -> None:
    """Fits, builds, runs, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="model folder, from splitboard export")
    parser.add_argument("--at", required=True, help="comma-separated modules")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--drops", default="1,2", help="allowed drops in points")
    parser.add_argument("--measure", choices=MEASURES, default="max_softmax")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    channels = load_model(options.model).info.declared().source_channels
    train, calib, test = (load_samples(path, channels) for path in (options.train, options.calib, options.data))
    order = np.random.default_rng(SEED).permutation(len(calib)).tolist()
    data = joined(calib.rows(order[N_CALIBRATION:]), test)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        ranging = calib.rows(order[:N_CALIBRATION])
        bundle = build(with_exits(options.model, options.at, train, work / "model"), options.at, ranging, work, EXITS)
        plain = build(load_model(options.model), options.at, ranging, work, PLAIN)
        splits = [split for split in bundle.splits if split.exits]
        with steps("run") as progress:
            outputs = deployed_outputs(work / EXITS, bundle, splits, data.images, progress)
        times = edge_times(work, (bundle, plain))
    n_rest = len(data) - len(test)
    alone, used = [], []
    for split in splits:
        exits = bundle.exits_of(split)
        for drop in options.drops.split(","):
            target = Target(options.measure, float(drop) / 100, CONFIDENCE)
            trial = tried(split, exits, outputs[split.id], data, n_rest, target)
            free = 100 * float(np.all([one.early for one in trial.used.values()], axis=0).mean())
            for one in exits:
                alone.append({"split": split.scope, "task": one.task, "allowed": drop} | trial.alone[one.output].row())
            for task, judged in trial.used.items():
                line = {"split": split.scope, "task": task, "allowed": drop} | judged.row()
                del line["exit alone %"]  # of a choice of exits it says nothing
                used.append(line | {"no server %": free})
    about = (
        f"{len(train)} training images, {N_CALIBRATION} for ranges, {n_rest} and half of {len(test)} for each "
        f"threshold, judged on all {len(test)}"
    )
    runtime = find_interpreter().name
    show(alone, runtime, f"every exit by itself; {about}", as_json=options.json)
    print()
    show(used, runtime, f"of each task's exits the one that answers most often; {about}", as_json=options.json)
    print()
    show(times, runtime, f"edge half, medians of {ROUNDS} rounds, run in turns on one thread", as_json=options.json)


if __name__ == "__main__":
    main()
