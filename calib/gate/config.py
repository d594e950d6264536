"""``gate.toml``: how each task is judged."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from calib.gate.metrics import DEFAULT_METRIC, METRICS, Kind, Metric, own_metric
from export.toml import read_toml
from splitboard.contract.errors import UserError

DEFAULT_MARGIN_POINTS = 1.0
DEFAULT_CONFIDENCE = 0.95

_TRIES = ["[default] and [tasks.NAME] may have metric, margin, confidence and higher_is_better"]


@dataclass(frozen=True)
class TaskGate:
    """One table of ``gate.toml``; what is left out is taken from ``[default]``, then from the built-in defaults.

    Attributes:
        metric: one of `METRICS` or the user's ``pkg.module:function``; ``None`` goes by the labels.
        margin: allowed drop: points for shares, else in the metric's own unit.
        confidence: of each limit, above 0.5 and below 1.
        higher_is_better: of the user's own metric.
    """

    metric: str | None = None
    margin: float | None = None
    confidence: float | None = None
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class Gate:
    """All of ``gate.toml``.

    Attributes:
        default: for tasks without a table.
        tasks: by task.
    """

    default: TaskGate = field(default_factory=TaskGate)
    tasks: dict[str, TaskGate] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """How one task is judged.

    Attributes:
        metric: to compute.
        margin: allowed drop in the metric's scale: 0.01 for a share's margin of 1 point.
        confidence: of each limit.
    """

    metric: Metric
    margin: float
    confidence: float

    @property
    def alpha(self) -> float:
        """The error that is allowed on each side."""
        return 1 - self.confidence


def read_gate(path: Path) -> Gate:
    """Reads ``gate.toml``.

    Raises:
        UserError: the file is missing, is not TOML, or has keys that do not belong.
    """
    return read_toml(Gate, path, "gate", _TRIES)


def rules(gate: Gate, tasks: tuple[str, ...], kinds: Mapping[str, Kind]) -> dict[str, Rule]:
    """The rule of every labelled task.

    Args:
        gate: from `read_gate`, or the default.
        tasks: all tasks of the model.
        kinds: what the labels are, by task that has labels.

    Raises:
        UserError: a task that the model does not have or that has no labels, or a rule that cannot hold.
    """
    for name in gate.tasks:
        if name not in tasks:
            near = difflib.get_close_matches(name, tasks, n=1)
            raise UserError(
                f'the gate names the task "{name}", which the model does not have',
                [f'"{near[0]}" is the nearest' if near else f"its tasks: {', '.join(tasks)}"],
            )
        if name not in kinds:
            raise UserError(
                f'the gate judges task "{name}", for which the data has no labels',
                [f"store labels.{name} in the .npz", f"take [tasks.{name}] out of the gate"],
            )
    return {task: _rule(task, gate.tasks.get(task, TaskGate()), gate.default, kind) for task, kind in kinds.items()}


def _rule(task: str, own: TaskGate, default: TaskGate, kind: Kind) -> Rule:
    named = own.metric if own.metric is not None else default.metric
    higher = own.higher_is_better if own.higher_is_better is not None else default.higher_is_better
    metric = _metric(task, named, higher, kind)
    confidence = _first(own.confidence, default.confidence, DEFAULT_CONFIDENCE)
    if not 0.5 < confidence < 1:
        raise UserError(
            f'task "{task}" has confidence = "{confidence:g}" in the gate', ["use a share above 0.5 and below 1: 0.95"]
        )
    return Rule(metric, _margin(task, metric, own, default), confidence)


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _metric(task: str, named: str | None, higher: bool | None, kind: Kind) -> Metric:
    if named is not None and ":" in named:
        return own_metric(named, higher_is_better=higher is not False)
    if higher is not None and named is not None:
        raise UserError(
            f'task "{task}" has higher_is_better = "{str(higher).lower()}" in the gate and the metric {named}, '
            "of which that is known",
            ["leave higher_is_better out; it is for a metric of your own"],
        )
    metric = METRICS.get(named if named is not None else DEFAULT_METRIC[kind])
    if metric is None:
        near = difflib.get_close_matches(str(named), METRICS, n=1, cutoff=0.4)
        raise UserError(
            f'task "{task}" has the metric "{named}" in the gate, which is not known',
            [
                f'"{near[0]}" is the nearest' if near else f"known: {', '.join(METRICS)}",
                "your own is named package.module:function",
            ],
        )
    if kind not in metric.kinds:
        raise UserError(
            f'task "{task}" has the metric "{metric.name}" in the gate, its labels are {kind}',
            [f"for {kind}: {', '.join(one.name for one in METRICS.values() if kind in one.kinds)}"],
        )
    return metric


def _margin(task: str, metric: Metric, own: TaskGate, default: TaskGate) -> float:
    """In the metric's scale. ``[default]`` has points, which mean nothing for a metric with a unit of its own."""
    given = own.margin
    if given is None and not metric.share:
        raise UserError(
            f'task "{task}" is judged by "{metric.name}" and has no margin of its own in the gate',
            [f"[tasks.{task}] margin = ... in the unit of {metric.name}; the margin of [default] is in points"],
        )
    margin = _first(given, default.margin, DEFAULT_MARGIN_POINTS)
    scale = 100.0 if metric.share else 1.0
    if not 0 <= margin < (scale if metric.share else float("inf")):
        raise UserError(
            f'task "{task}" has margin = "{margin:g}" in the gate',
            ["use points from 0 to below 100: 1.0" if metric.share else "use a number from 0 on"],
        )
    return margin / scale
