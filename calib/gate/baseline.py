"""The committed baseline: what an earlier artefact answered, sample by sample, and why it was accepted."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.gate.config import Rule
from splitboard.contract.bundle import Bundle
from splitboard.contract.decode import read_json, to_json
from splitboard.contract.errors import UserError
from splitboard.contract.samples import Samples

SCHEMA_VERSION = 1
_UPDATE = 'splitboard check BUNDLE --data DATA --baseline FILE --update-baseline --reason "..."'


@dataclass(frozen=True)
class BaselineTask:
    """One task in a baseline.

    Attributes:
        metric: that it was judged by.
        value: of the metric; shares from 0 to 1.
        outputs: what the model gave, by the sample's sha256.
    """

    metric: str
    value: float
    outputs: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class BaselineEntry:
    """One (model, board, split, precision).

    Attributes:
        model: the model's name.
        model_sha256: of ``model.onnx``.
        board: kind of board.
        split: id.
        precision: of the edge half.
        reason: why this became the baseline.
        date: day of that, UTC, ``YYYY-MM-DD``.
        data_sha256: of the sorted hashes of the samples.
        tool_versions: that built the bundle.
        tasks: by name.
    """

    model: str
    model_sha256: str
    board: str
    split: str
    precision: str
    reason: str
    date: str
    data_sha256: str
    tool_versions: dict[str, str]
    tasks: dict[str, BaselineTask]

    @property
    def place(self) -> tuple[str, str, str, str]:
        """What a newer entry replaces: one of the same model's name, board, split and precision."""
        return self.model, self.board, self.split, self.precision


@dataclass(frozen=True)
class Baseline:
    """The file.

    Attributes:
        schema_version: of this file.
        entries: one per (model, board, split, precision).
    """

    schema_version: int
    entries: tuple[BaselineEntry, ...]

    def entry(self, bundle: Bundle, split: str, path: Path) -> BaselineEntry:
        """The entry of a split.

        Args:
            bundle: that is checked.
            split: id.
            path: of the file, for the error.

        Raises:
            UserError: there is none, or it is of another model.
        """
        ours = [one for one in self.entries if one.model_sha256 == bundle.model_sha256]
        wanted = bundle.board, split, bundle.precision
        found = next((one for one in ours if (one.board, one.split, one.precision) == wanted), None)
        if found is not None:
            return found
        if self.entries and not ours:
            other = self.entries[0].model_sha256
            raise UserError(
                f'the baseline "{path}" is of the model "{other}", the bundle of "{bundle.model_sha256}"',
                ["give the baseline of this model", f"accept the new model: {_UPDATE}"],
            )
        known = sorted({f"{one.split} ({one.board}, {one.precision})" for one in ours})
        raise UserError(
            f'the baseline "{path}" has no entry for split "{split}" of {bundle.board}, {bundle.precision}',
            [f"it has: {', '.join(known)}" if known else "it has no entries", f"add it: {_UPDATE}"],
        )


def read_baseline(path: Path) -> Baseline:
    """Reads a baseline.

    Raises:
        UserError: nothing there, or something else.
    """
    if not path.is_file():
        raise UserError(f'no baseline at "{path}"', [f"make one: {_UPDATE}"])
    try:
        baseline = read_json(Baseline, path)
    except UserError as error:
        raise UserError(error.message, [*error.tries, f"make one: {_UPDATE}"]) from error
    if baseline.schema_version != SCHEMA_VERSION:
        raise UserError(
            f'"{path}" has baseline schema "{baseline.schema_version}", this version reads {SCHEMA_VERSION}',
            [f"make it again: {_UPDATE}"],
        )
    return baseline


def require_metrics(entry: BaselineEntry, rules: Mapping[str, Rule], path: Path) -> None:
    """Refuses a comparison under another metric than the baseline was accepted under.

    Raises:
        UserError: a task has another metric.
    """
    for name, rule in rules.items():
        task = entry.tasks.get(name)
        if task is not None and task.metric != rule.metric.name:
            raise UserError(
                f'the baseline "{path}" was accepted with "{task.metric}" for task "{name}", this run judges by '
                f'"{rule.metric.name}"',
                ["give the gate that it was made with: --gate", f"accept the other metric: {_UPDATE}"],
            )


def require_samples(entry: BaselineEntry, tasks: Iterable[str], samples: Samples, path: Path) -> None:
    """Refuses an entry that does not have every sample of every task.

    Args:
        entry: of the split.
        tasks: that are judged.
        samples: that are evaluated.
        path: of the file, for the error.

    Raises:
        UserError: a task or a sample is missing.
    """
    for task in tasks:
        if task not in entry.tasks:
            raise UserError(
                f'the baseline "{path}" has no task "{task}" for split {entry.split}', [f"make it again: {_UPDATE}"]
            )
        known = entry.tasks[task].outputs
        missing = [digest for digest in samples.hashes if digest not in known]
        if missing:
            raise UserError(
                f'the baseline "{path}" lacks {len(missing)} of {len(samples)} samples for split {entry.split}, '
                f'task {task}; the first has the sha256 "{missing[0]}"',
                ["evaluate on the data that the baseline was made with", f"make it again: {_UPDATE}"],
            )


def baseline_outputs(entry: BaselineEntry, task: str, deployed: NDArray[Any], samples: Samples) -> NDArray[Any]:
    """The baseline's outputs of the samples for one task.

    Args:
        entry: of the split, with every sample.
        task: name.
        deployed: outputs as deployed, whose shape the baseline's must have.
        samples: that are evaluated.

    Raises:
        UserError: it has another number of values per sample.
    """
    rows = [entry.tasks[task].outputs[digest] for digest in samples.hashes]
    values = math.prod(deployed.shape[1:])
    odd = next((row for row in rows if len(row) != values), None)
    if odd is not None:
        raise UserError(
            f'the baseline of split {entry.split} has "{len(odd)}" values per sample for task {task}, the model gives '
            f"{values}",
            [f"make it again: {_UPDATE}"],
        )
    return np.asarray(rows, np.float32).reshape(deployed.shape)


def baseline_task(metric: str, value: float, outputs: NDArray[Any], samples: Samples) -> BaselineTask:
    """One task of a new entry.

    Raises:
        UserError: the outputs are maps, which are too large for a file that is committed.
    """
    if outputs.ndim > 2:
        raise UserError(
            f'a baseline keeps every output, and a map of "{"x".join(map(str, outputs.shape[1:]))}" per sample is too '
            "large for a file that is committed",
            ["judge maps against float: leave --baseline out"],
        )
    # Through float32's shortest decimal: 0.1 instead of 0.10000000149011612.
    rows = {
        digest: tuple(float(str(score)) for score in np.ravel(row).astype(np.float32))
        for digest, row in zip(samples.hashes, outputs, strict=True)
    }
    return BaselineTask(metric, value, rows)


def new_entry(
    bundle: Bundle, split: str, reason: str, samples: Samples, tasks: dict[str, BaselineTask]
) -> BaselineEntry:
    """The entry of a split as it is now."""
    return BaselineEntry(
        model=bundle.name,
        model_sha256=bundle.model_sha256,
        board=bundle.board,
        split=split,
        precision=bundle.precision,
        reason=reason,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        data_sha256=samples.sha256,
        tool_versions=bundle.tool_versions,
        tasks=tasks,
    )


def updated(baseline: Baseline | None, entries: tuple[BaselineEntry, ...]) -> str:
    """The text of the file with these entries in the place of older ones; all others stay."""
    replaced = {entry.place for entry in entries}
    kept = () if baseline is None else tuple(one for one in baseline.entries if one.place not in replaced)
    merged = sorted((*kept, *entries), key=lambda one: one.place)
    return to_json(Baseline(SCHEMA_VERSION, tuple(merged)), indent=1) + "\n"
