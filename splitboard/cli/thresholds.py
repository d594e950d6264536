"""From a bundle with exits and held-out labelled images to the rules by which the exits answer alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from calib.exits.thresholds import INCONCLUSIVE, Answers, Target, fit_rule
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
        target: what is asked of every rule.
    """

    folder: Path
    bundle: Bundle
    splits: tuple[Split, ...]
    data: EvaluationSet
    target: Target

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


def plan(folder: Path, source: Path, target: Target) -> Plan:
    """Reads everything and refuses what cannot be fitted, before the run.

    Raises:
        UserError: the bundle has no exits, or the data cannot judge them.
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
    return Plan(folder, bundle, splits, data, target)


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
        UserError: the edge file is not what the manifest says, or there is no interpreter for it.
    """
    samples = made.data.samples
    outputs = deployed_outputs(made.folder, made.bundle, made.splits, samples.images, progress)
    found = tuple(rule for split in made.splits for rule in _rules(made, split, outputs[split.id]))
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
    return [
        fit_rule(
            split.id,
            one.output,
            one.task,
            Answers(outputs[one.output], outputs[one.task], made.data.truth[one.task]),
            made.target,
            of_task.count(one.task),
        )
        for one in exits
    ]


def conclude(made: ThresholdsOutput) -> None:
    """Ends the command as its result demands.

    Raises:
        Inconclusive: there are too few images for any rule.
    """
    if all(rule.reason is not None and rule.reason.startswith(INCONCLUSIVE) for rule in made.rules):
        raise Inconclusive(
            f'"{made.images}" held-out images are too few for any exit: {made.rules[0].reason}',
            ["give more images", "allow a larger --drop"],
        )
