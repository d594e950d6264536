"""From a bundle with exits and held-out labelled images to the rules by which the exits answer alone."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from calib.exits.thresholds import INCONCLUSIVE, Answers, Target, fit_rule, keeping
from calib.gate.config import Gate, rules
from calib.gate.deployed import Outputs, deployed_outputs
from calib.gate.evaluation import EvaluationSet, check_labels, evaluation_set, labels_of_folders
from splitboard.contract.bundle import Bundle, Split, bundle_sha256, load_bundle
from splitboard.contract.errors import Inconclusive, UserError
from splitboard.contract.exits import MEASURES, SCHEMA_VERSION, ExitRule, ExitRules, write_exit_rules
from splitboard.contract.samples import Samples, folder_labels, load_samples
from splitboard.report.outputs import ThresholdsOutput

EXIT_SAMPLES = "calibration/exit_samples.txt"

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


@dataclass(frozen=True)
class Plan:
    """What can be fitted: everything is read and checked, nothing has been computed.

    Attributes:
        folder: the bundle.
        bundle: its manifest.
        splits: those with exits.
        data: held-out images, labelled.
        target: what is asked of every rule, but for the drop of the tasks in ``accuracies``.
        accuracies: that these tasks shall keep, as shares.
    """

    folder: Path
    bundle: Bundle
    splits: tuple[Split, ...]
    data: EvaluationSet
    target: Target
    accuracies: Mapping[str, float]

    @property
    def not_fitted(self) -> tuple[str, ...]:
        """Tasks with exits and without labels."""
        tasks = dict.fromkeys(one.task for split in self.splits for one in self.bundle.exits_of(split))
        return tuple(task for task in tasks if task not in self.data.truth)


def check_target(measure: str, drop_points: float, confidence: float) -> Target:
    """What is asked of a rule, from what the user gave.

    Raises:
        UserError: an unknown measure, or numbers that mean nothing.
    """
    if measure not in MEASURES:
        raise UserError(f'unknown measure "{measure}"', [f"--measure {one}" for one in MEASURES])
    if not 0 < drop_points < 100:
        raise UserError(f'a drop of "{drop_points:g}" points cannot be met', ["--drop 1.0: one point of accuracy"])
    if not 0.5 <= confidence < 1:
        raise UserError(f'confidence "{confidence:g}" is no share from 0.5 to 1', ["--confidence 0.95"])
    return Target(measure, drop_points / 100, confidence)


def check_accuracies(texts: Sequence[str]) -> dict[str, float]:
    """The accuracies that tasks shall keep, as shares, from ``TASK=PERCENT``.

    Decimals become the nearest share, as counted accuracies do: 99.9 is 999 of 1000, not a little more.

    Raises:
        UserError: one that is no such pair, no percent, or of a task that has one already.
    """
    found: dict[str, float] = {}
    for text in texts:
        task, equals, number = text.rpartition("=")
        if not (task and equals and number):
            raise UserError(f'the accuracy "{text}" is not TASK=PERCENT', ["--accuracy defect=88"])
        if task in found:
            raise UserError(f'a second accuracy for task {task}: "{text}"', ["one --accuracy per task"])
        found[task] = _share(task, number)
    return found


def _share(task: str, percent: str) -> float:
    try:
        value = Decimal(percent)
    except InvalidOperation:
        value = Decimal("nan")
    if value.is_nan() or not 1 <= value <= 100:
        raise UserError(
            f'the accuracy "{percent}" of task {task} is no percent from 1 to 100',
            [f"--accuracy {task}=88, not 0.88"],
        )
    return float(value / 100)


def plan(folder: Path, source: Path, target: Target, accuracies: Mapping[str, float]) -> Plan:
    """Reads everything and refuses what cannot be fitted, before the run.

    Args:
        folder: the bundle.
        source: held-out images.
        target: what is asked of every rule.
        accuracies: that tasks shall keep, instead of the target's drop.

    Raises:
        UserError: the bundle has no exits, the data cannot judge them, or an accuracy is asked of what has no exit.
    """
    bundle = load_bundle(folder)
    splits = tuple(split for split in bundle.splits if split.exits)
    if not splits:
        raise UserError(
            f'no split of "{folder}" has an exit',
            [
                "splitboard exits MODEL --at SPLIT --data TRAIN.npz -o MODEL2, then build from that",
                "build later splits",
            ],
        )
    data = evaluation_set(folder, bundle, _labelled(source, bundle))
    _check_disjoint(folder, data.samples)
    tasks = {one.task for split in splits for one in bundle.exits_of(split)}
    for task in accuracies:
        _check_kept(task, bundle, tasks, data.truth)
    able = [task for task in tasks if task in data.truth]
    if not able:
        raise UserError(
            f'the data labels "{", ".join(data.truth)}", the exits answer {", ".join(sorted(tasks))}',
            [f"store labels.{sorted(tasks)[0]} in the .npz"],
        )
    for task in able:
        if data.kinds[task] != "classes":
            raise UserError(
                f'the labels of task "{task}" are {data.kinds[task]}, an exit answers classes',
                [f"store labels.{task} as {len(data.samples)} whole numbers"],
            )
    kinds = {task: data.kinds[task] for task in able}
    truth = {task: data.truth[task] for task in able}
    check_labels(truth, rules(Gate(), tuple(task.name for task in bundle.tasks), kinds), bundle.tasks)
    return Plan(folder, bundle, splits, data, target, accuracies)


def _check_kept(task: str, bundle: Bundle, with_exits: Collection[str], labelled: Collection[str]) -> None:
    """Refuses a task whose accuracy cannot be kept, since no exit answers it or nothing says what is right."""
    known = [one.name for one in bundle.tasks]
    if task not in known:
        near = difflib.get_close_matches(task, known, n=1)
        raise UserError(
            f'an accuracy is asked of task "{task}", which the model does not have',
            [f'"{near[0]}" is the nearest' if near else f"its tasks: {', '.join(known)}"],
        )
    if task not in with_exits:
        raise UserError(
            f'an accuracy is asked of task "{task}", which no split of the bundle has an exit for',
            [
                f"tasks with exits: {', '.join(sorted(with_exits))}",
                f"splitboard exits MODEL --task {task} --at SPLIT --data TRAIN.npz -o MODEL2, then build from that",
            ],
        )
    if task not in labelled:
        raise UserError(
            f'an accuracy is asked of task "{task}", which the data does not label',
            [f"store labels.{task} in the .npz"],
        )


def _labelled(source: Path, bundle: Bundle) -> Samples:
    samples = load_samples(source, bundle.preprocessing.source_channels)
    if source.is_dir():
        samples.labels.update(labels_of_folders(folder_labels(source), bundle.tasks))
    return samples


def _check_disjoint(folder: Path, samples: Samples) -> None:
    path = folder / EXIT_SAMPLES
    if not path.is_file():
        return
    known = set(path.read_text(encoding="utf-8").split())
    shared = [digest for digest in samples.hashes if digest in known]
    if shared:
        raise UserError(
            f'{len(set(shared))} of the images are in "{EXIT_SAMPLES}": exits were fitted on them, which so look surer '
            f'and better than they are; the first has the sha256 "{shared[0]}"',
            ["give images that neither the exits nor the build have seen"],
        )


def fit_thresholds(made: Plan, target: Path, progress: Progress) -> ThresholdsOutput:
    """Runs the deployed splits with exits on the held-out images, fits the rules and writes them.

    Args:
        made: from `plan`.
        target: file to write.
        progress: told about every step.

    Raises:
        UserError: the edge file is not what the manifest says, there is no interpreter for it, or no split has the
            accuracy by itself that a task shall keep; then nothing is written.
    """
    samples = made.data.samples
    outputs = deployed_outputs(made.folder, made.bundle, made.splits, samples.images, progress)
    found = tuple(rule for split in made.splits for rule in _rules(made, split, outputs[split.id]))
    for task, accuracy in made.accuracies.items():
        _check_reach(task, accuracy, [rule for rule in found if rule.task == task])
    sha256 = bundle_sha256(made.folder)
    write_exit_rules(target, ExitRules(SCHEMA_VERSION, sha256, samples.sha256, found))
    return ThresholdsOutput(
        rules_file=str(target),
        bundle_sha256=sha256,
        data_sha256=samples.sha256,
        images=len(samples),
        n_repeated=made.data.n_repeated,
        not_fitted=made.not_fitted,
        rules=found,
    )


def _rules(made: Plan, split: Split, outputs: Outputs) -> list[ExitRule]:
    exits = [one for one in made.bundle.exits_of(split) if one.task in made.data.truth]
    of_task = [one.task for one in exits]
    found = []
    for one in exits:
        answers = Answers(outputs[one.output], outputs[one.task], made.data.truth[one.task])
        kept = made.accuracies.get(one.task)
        target = made.target if kept is None else keeping(kept, answers, made.target)
        found.append(fit_rule(split.id, one.output, one.task, answers, target, of_task.count(one.task)))
    return found


def _check_reach(task: str, accuracy: float, rules: Sequence[ExitRule]) -> None:
    """Refuses an accuracy that no split has by itself; ``rules`` are all of the task."""
    if not all(rule.is_out_of_reach for rule in rules):
        return
    shares = {
        one.split: f"{100 * one.accuracy:.2f} % ({round(one.accuracy * one.n_samples)} of {one.n_samples})"
        for one in rules
    }
    best = max(rule.accuracy for rule in rules)
    raise UserError(
        f'task "{task}" cannot keep an accuracy of "{100 * accuracy:g} %": by itself '
        + ", ".join(f"{split} has {share}" for split, share in shares.items()),
        [
            f"an --accuracy below {100 * best:.2f}: what lies between may be lost",
            "build with a later split: each has an accuracy of its own",
            f"leave {task} to --drop, which counts from what the split has",
        ],
    )


def conclude(made: ThresholdsOutput) -> None:
    """Ends the command as its result demands.

    Raises:
        Inconclusive: there are too few images for any rule of a split that has the target accuracy by itself.
    """
    within = [rule for rule in made.rules if not rule.is_out_of_reach]
    if all(rule.reason is not None and rule.reason.startswith(INCONCLUSIVE) for rule in within):
        raise Inconclusive(
            f'"{made.images}" held-out images are too few for any exit: {within[0].reason}',
            ["give more images", "allow a larger --drop, or ask a lower --accuracy"],
        )
