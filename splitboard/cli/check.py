"""The accuracy gate over a bundle: checks what it is given, runs both models, judges every split and task."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boards.bench.request import BenchRequest
from calib.gate.baseline import (
    Baseline,
    BaselineEntry,
    baseline_outputs,
    baseline_task,
    new_entry,
    read_baseline,
    require_metrics,
    require_samples,
    updated,
)
from calib.gate.config import Gate, Rule, read_gate, rules
from calib.gate.deployed import Outputs, deployed_outputs, float_outputs
from calib.gate.evaluation import EvaluationSet, check_labels, check_outputs, evaluation_set, labels_of_folders
from calib.gate.judgement import Detectable, Judgement, Reference
from calib.gate.own_metric import require_metric
from calib.gate.verdict import Comparison, compare, detectable, settle, worst
from splitboard.cli.bench import Boards, on_board, serving
from splitboard.contract.bundle import Bundle, Split, bundle_sha256, load_bundle
from splitboard.contract.errors import GateFailed, Inconclusive, UserError
from splitboard.contract.folder import check_file, write_whole
from splitboard.contract.samples import Samples, folder_labels, load_samples
from splitboard.report import github, junit
from splitboard.report.gate_text import ability, explained
from splitboard.report.outputs import CheckOutput

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CheckRequest:
    """What to judge.

    Attributes:
        bundle: folder.
        data: labelled images that did not calibrate the bundle.
        splits: comma-separated ids, or ``all``.
        gate: ``gate.toml``; ``None`` for the built-in defaults.
        baseline: file of a committed baseline; ``None`` judges against float.
        update_reason: why the baseline is replaced by this run; ``None`` leaves it as it is.
        folder: that a metric of the user's own lies in.
    """

    bundle: Path
    data: Path
    splits: str = "all"
    gate: Path | None = None
    baseline: Path | None = None
    update_reason: str | None = None
    folder: Path = Path()


@dataclass(frozen=True)
class Plan:
    """A request that can be run: everything is read and checked, nothing has been computed.

    Attributes:
        request: as given.
        bundle: the manifest.
        splits: to judge.
        data: the evaluation set.
        rules: by task with labels.
        entries: of the baseline to judge against, by split; ``None`` judges against float.
        old: the baseline that an update adds to.
    """

    request: CheckRequest
    bundle: Bundle
    splits: tuple[Split, ...]
    data: EvaluationSet
    rules: dict[str, Rule]
    entries: dict[str, BaselineEntry] | None
    old: Baseline | None

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Every (split, task) that is judged."""
        return tuple((split.id, task) for split in self.splits for task in self.rules)

    @property
    def against(self) -> Reference:
        """What the reference is."""
        return "float" if self.entries is None else "baseline"

    @property
    def not_judged(self) -> tuple[str, ...]:
        """Tasks without labels."""
        return tuple(task.name for task in self.bundle.tasks if task.name not in self.rules)

    def abilities(self) -> tuple[Detectable, ...]:
        """What the set can detect at all, by task."""
        return tuple(
            detectable(task, rule, self.data.truth[task], len(self.pairs)) for task, rule in self.rules.items()
        )

    def abilities_text(self) -> list[str]:
        """The same in words, one line per task."""
        return [ability(one) for one in self.abilities()]


@dataclass(frozen=True)
class Checked:
    """What came out.

    Attributes:
        output: of the whole.
        judgements: by split, then by task.
    """

    output: CheckOutput
    judgements: tuple[Judgement, ...]


def plan(request: CheckRequest) -> Plan:
    """Reads everything and refuses what cannot be judged, before the run.

    Raises:
        UserError: the bundle, the data, the gate or the baseline do not fit.
    """
    _check_update(request)
    bundle = load_bundle(request.bundle)
    splits = _splits(bundle, request.splits)
    gate = Gate() if request.gate is None else read_gate(request.gate)
    data = evaluation_set(request.bundle, bundle, _labelled(request.data, bundle))
    ruled = rules(gate, tuple(task.name for task in bundle.tasks), data.kinds)
    check_labels(data.truth, ruled, bundle.tasks)
    for rule in ruled.values():
        if rule.metric.over is None:
            require_metric(rule.metric.name, request.folder)
    entries, old = None, None
    if request.baseline is not None and request.update_reason is None:
        known = read_baseline(request.baseline)
        entries = {split.id: known.entry(bundle, split.id, request.baseline) for split in splits}
        for entry in entries.values():
            require_metrics(entry, ruled, request.baseline)
            require_samples(entry, ruled, data.samples, request.baseline)
    elif request.baseline is not None and request.baseline.exists():
        old = read_baseline(request.baseline)
    return Plan(request, bundle, splits, data, ruled, entries, old)


def _check_update(request: CheckRequest) -> None:
    if request.update_reason is None:
        return
    if request.baseline is None:
        raise UserError(
            f'--update-baseline with the reason "{request.update_reason}" and no file', ["--baseline FILE names it"]
        )
    if not request.update_reason.strip():
        raise UserError(
            f'--update-baseline with the reason "{request.update_reason}"', ['--reason "why the new answers are right"']
        )


def _splits(bundle: Bundle, wanted: str) -> tuple[Split, ...]:
    """The splits asked for, in the bundle's order. Remote only is the float model: nothing of it is quantised."""
    if wanted == "all":
        return tuple(split for split in bundle.splits if not split.is_remote)
    chosen = {bundle.split(part.strip()).id for part in wanted.split(",")}
    remote = next((split.id for split in bundle.splits if split.is_remote and split.id in chosen), None)
    if remote is not None:
        others = ", ".join(split.id for split in bundle.splits if not split.is_remote)
        raise UserError(
            f'split "{remote}" is the float model on the server: there is nothing to judge',
            [f"name one with a half on the board: {others}"],
        )
    return tuple(split for split in bundle.splits if split.id in chosen)


def _labelled(path: Path, bundle: Bundle) -> Samples:
    samples = load_samples(path, bundle.preprocessing.source_channels)
    if not path.is_dir():
        return samples
    return Samples(samples.images, labels_of_folders(folder_labels(path), bundle.tasks), samples.hashes)


def run_here(made: Plan, show: Progress) -> dict[str, Outputs]:
    """What every split gives, by this machine's interpreter.

    Raises:
        UserError: an artefact does not hold.
    """
    return deployed_outputs(made.request.bundle, made.bundle, made.splits, made.data.samples.images, show)


def run_on(made: Plan, boards: Boards, show: Progress) -> dict[str, Outputs]:
    """What every split gives on a board, whose kernels are not this machine's; the server halves run here.

    Args:
        made: from `plan`.
        boards: exactly one.
        show: told about every step.

    Raises:
        SplitboardError: see `splitboard.cli.bench.on_board`.
    """
    (name,), request, samples = boards.names, made.request, made.data.samples
    with serving(request.bundle) as url:
        wanted = [split.id for split in made.splits]
        asked = BenchRequest(request.data, url, wanted, Path(), n_warmup=0)
        records = on_board(name, request.bundle, made.bundle, asked, samples, boards, show)
    if any(record.sample_ids != samples.hashes for record in records):
        raise UserError(f'"{name}" answered other images than were sent', ["run it again", f"splitboard doctor {name}"])
    return {
        record.split: {task: np.asarray(rows, np.float32) for task, rows in record.outputs.items()}
        for record in records
    }


def judge(made: Plan, deployed: dict[str, Outputs], show: Progress) -> Checked:
    """Runs what the splits are compared with, and judges them.

    Args:
        made: from `plan`.
        deployed: what every split gives, by split.
        show: told about every step.

    Raises:
        UserError: a metric of the user's own does not hold.
    """
    request = made.request
    references = _references(made, deployed, show)
    judgements = []
    for done, (split, task) in enumerate(made.pairs):
        show("judge", done, len(made.pairs))
        truth, answers = made.data.truth[task], deployed[split][task]
        for outputs in (references[split][task], answers):
            check_outputs(task, truth, outputs)
        one = Comparison(split, task, made.rules[task], truth, references[split][task], answers)
        judgements.append(compare(one, made.against, request.folder, len(made.pairs)))
    show("judge", len(made.pairs), len(made.pairs))
    settled = settle(judgements)
    if request.baseline is not None and request.update_reason is not None:
        _update(made, request.baseline, request.update_reason, deployed, settled)
    return Checked(_output(made, settled), settled)


def _references(made: Plan, deployed: dict[str, Outputs], show: Progress) -> dict[str, Outputs]:
    """What every split is compared with."""
    if made.entries is None:
        exact = float_outputs(made.request.bundle, made.bundle, made.data.samples.images, show)
        return {split.id: exact for split in made.splits}
    return {
        split: {task: baseline_outputs(entry, task, deployed[split][task], made.data.samples) for task in made.rules}
        for split, entry in made.entries.items()
    }


def _update(made: Plan, path: Path, why: str, deployed: dict[str, Outputs], judgements: tuple[Judgement, ...]) -> None:
    samples = made.data.samples
    entries = []
    for split in made.splits:
        tasks = {
            one.task: baseline_task(one.metric, one.deployed, deployed[split.id][one.task], samples)
            for one in judgements
            if one.split == split.id
        }
        entries.append(new_entry(made.bundle, split.id, why, samples, tasks))
    write_whole(path, updated(made.old, tuple(entries)))


def _output(made: Plan, judgements: tuple[Judgement, ...]) -> CheckOutput:
    return CheckOutput(
        verdict=worst(judgements),
        bundle=str(made.request.bundle),
        name=made.bundle.name,
        bundle_sha256=bundle_sha256(made.request.bundle),
        model_sha256=made.bundle.model_sha256,
        board=made.bundle.board,
        precision=made.bundle.precision,
        data_sha256=made.data.samples.sha256,
        against=made.against,
        n=len(made.data.samples),
        n_repeated=made.data.n_repeated,
        judged=len(judgements),
        not_judged=made.not_judged,
        reasons=tuple(explained(one) for one in judgements if one.verdict != "PASS"),
    )


@dataclass(frozen=True)
class Files:
    """What is written beside what is printed.

    Attributes:
        junit: JUnit XML, or ``None``.
        summary: the job summary, or ``None``; ``GITHUB_STEP_SUMMARY`` is appended to in any case.
    """

    junit: Path | None = None
    summary: Path | None = None

    def check(self) -> None:
        """Refuses targets that are something else, before the run.

        Raises:
            UserError: one is.
        """
        for target, beginning in ((self.junit, junit.BEGINNING), (self.summary, github.BEGINNING)):
            if target is not None:
                check_file(target, beginning)

    def write(self, checked: Checked, abilities: list[str]) -> None:
        """Writes them, and what GitHub shows where this runs there."""
        page = github.job_summary(checked.output, checked.judgements, abilities)
        if self.junit is not None:
            write_whole(self.junit, junit.junit_xml(checked.output, checked.judgements))
        if self.summary is not None:
            write_whole(self.summary, page)
        if shown := os.environ.get("GITHUB_STEP_SUMMARY"):
            with open(shown, "a", encoding="utf-8") as file:
                file.write(page)
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for line in github.error_annotations(checked.judgements):
                sys.stderr.write(line + "\n")  # the runner reads both streams


def conclude(output: CheckOutput) -> None:
    """Ends the command with the exit code of the verdict.

    Raises:
        GateFailed: the verdict is FAIL.
        Inconclusive: it is INCONCLUSIVE.
    """
    if output.verdict == "PASS":
        return
    kind = GateFailed if output.verdict == "FAIL" else Inconclusive
    tries = {
        "FAIL": f"splitboard diagnose {output.bundle} names the layers to blame",
        "INCONCLUSIVE": "evaluate on more samples, or allow a larger margin in gate.toml",
    }
    first = next(line for line in output.reasons if line.startswith(output.verdict))
    how_many = f"{len(output.reasons)} of {output.judged} do not pass"
    raise kind(f'the gate says "{output.verdict}": {how_many}; {first}', [tries[output.verdict]])
