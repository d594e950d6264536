"""From outputs to verdicts: one judgement per split and task, and the worst of them decides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calib.gate import statistics
from calib.gate.config import Rule
from calib.gate.judgement import SEVERITY, Detectable, Judgement, Reference, Verdict
from calib.gate.metrics import NUMERIC, Array, Kind, Pair, effective_samples, kind_of, right
from calib.gate.own_metric import own_pair
from calib.gate.statistics import Index, Limits

_ROUNDING = 1e-9
"""A drop of exactly the margin passes, whatever binary fractions make of it."""


@dataclass(frozen=True)
class Comparison:
    """One task on one split, before it is judged.

    Attributes:
        split: id.
        task: name.
        rule: how it is judged.
        truth: labels, ``[n, ...]``.
        reference: outputs of the reference, ``[n, ...]``.
        deployed: outputs as deployed, ``[n, ...]``.
    """

    split: str
    task: str
    rule: Rule
    truth: Array
    reference: Array
    deployed: Array

    @property
    def kind(self) -> Kind:
        """What the labels are."""
        return kind_of(self.truth)


@dataclass(frozen=True)
class _Evidence:
    """What the statistics say of a comparison, in the metric's scale."""

    reference: float
    deployed: float
    drop: float
    limits: Limits
    p: float
    needed: int | None


def compare(one: Comparison, against: Reference, folder: Path, n_comparisons: int) -> Judgement:
    """Measures one comparison. Its verdict is given by `settle`, which knows the others.

    Args:
        one: to measure.
        against: what the reference is.
        folder: that the user's own metric lies in.
        n_comparisons: over all splits and tasks, this one included.

    Raises:
        UserError: the user's metric refuses or breaks.
    """
    metric, rule = one.rule.metric, one.rule
    lost, gained = _flips(one)
    made = (_by_counts if metric.name == "top1" else _by_resampling)(one, folder, n_comparisons)
    unit = 100.0 if metric.share else 1.0
    return Judgement(
        split=one.split,
        task=one.task,
        metric=metric.name,
        unit="points" if metric.share else "",
        against=against,
        n=len(one.truth),
        reference=made.reference,
        deployed=made.deployed,
        drop=unit * made.drop,
        lower=unit * made.limits.lower,
        upper=unit * made.limits.upper,
        margin=unit * rule.margin,
        confidence=rule.confidence,
        detectable=detectable(one.task, rule, one.truth, n_comparisons).drop,
        lost=lost,
        gained=gained,
        mcnemar_p=None if lost is None or gained is None else statistics.mcnemar_p(lost, gained),
        p=made.p,
        p_holm=made.p,
        verdict="INCONCLUSIVE",
        samples_needed=made.needed,
    )


def _flips(one: Comparison) -> tuple[int | None, int | None]:
    """Samples that only the reference and only the deployed path gets right; ``None`` where none is right or wrong."""
    if one.kind != "classes" or one.rule.metric.name in NUMERIC or one.deployed.shape[1] < 2:
        return None, None
    before, after = right(one.truth, one.reference), right(one.truth, one.deployed)
    return int((before & ~after).sum()), int((after & ~before).sum())


def _by_counts(one: Comparison, folder: Path, n_comparisons: int) -> _Evidence:  # noqa: ARG001 (as `_by_resampling`)
    """Tango's interval of the flips."""
    rule, n = one.rule, len(one.truth)
    before, after = right(one.truth, one.reference), right(one.truth, one.deployed)
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    drop = (lost - gained) / n
    alpha = rule.alpha / (n_comparisons if drop > rule.margin else 1)
    return _Evidence(
        reference=float(before.mean()),
        deployed=float(after.mean()),
        drop=drop,
        limits=statistics.paired_limits(lost, gained, n, rule.confidence),
        p=statistics.paired_p(lost, gained, n, rule.margin),
        needed=statistics.samples_needed(lost / n, gained / n, rule.margin, alpha),
    )


def _by_resampling(one: Comparison, folder: Path, n_comparisons: int) -> _Evidence:
    """The paired bootstrap of any metric; for a share, nowhere narrower than what a set of this size can know."""
    rule, metric, n = one.rule, one.rule.metric, len(one.truth)
    sign = 1.0 if metric.higher_is_better else -1.0
    with _pair(one, folder) as pair:
        reference, deployed = (float(value) for value in pair(np.arange(n)))

        def drops(index: Index) -> NDArray[np.float64]:
            both = pair(index)
            lost: NDArray[np.float64] = sign * (both[..., 0] - both[..., 1])
            return lost

        made = statistics.bootstrap_drop(drops, n, rule.confidence, rule.margin)
    alpha = rule.alpha / (n_comparisons if made.drop > rule.margin else 1)
    needed = statistics.samples_needed_resampled(made, n, rule.margin, alpha)
    limits, p = made.limits, made.p
    if metric.share:
        weight = effective_samples(metric, one.truth)
        limits = statistics.widened(limits, made.drop, weight, rule.confidence)
        p = max(p, statistics.one_way_p(made.drop, weight, rule.margin))
        passing = statistics.smallest_passing_set(rule.margin, rule.alpha)
        if passing is not None and made.drop < rule.margin:
            needed = max(needed or 0, math.ceil(passing * n / weight))
    return _Evidence(reference, deployed, made.drop, limits, p, needed)


@contextmanager
def _pair(one: Comparison, folder: Path) -> Iterator[Pair]:
    metric = one.rule.metric
    if metric.over is None:
        with own_pair(metric.name, folder, one.truth, one.reference, one.deployed) as pair:
            yield pair
        return
    before, after = metric.over(one.truth, one.reference), metric.over(one.truth, one.deployed)
    yield lambda index: np.stack([before(index), after(index)], axis=-1)


def settle(judgements: Sequence[Judgement]) -> tuple[Judgement, ...]:
    """Gives every judgement its verdict.

    PASS needs no correction: the whole passes only if every one does. FAIL does, since one is enough: Holm over all.
    """
    settled = []
    for one, p_holm in zip(judgements, statistics.holm([one.p for one in judgements]), strict=True):
        verdict: Verdict = "INCONCLUSIVE"
        if one.upper <= one.margin + _ROUNDING:
            verdict = "PASS"
        elif p_holm <= 1 - one.confidence + _ROUNDING:
            verdict = "FAIL"
        needed = one.samples_needed if verdict == "INCONCLUSIVE" else None
        settled.append(replace(one, p_holm=p_holm, verdict=verdict, samples_needed=needed))
    return tuple(settled)


def worst(judgements: Iterable[Judgement]) -> Verdict:
    """The overall verdict: no average hides a task."""
    return max((one.verdict for one in judgements), key=SEVERITY.index)


def detectable(task: str, rule: Rule, truth: Array, n_comparisons: int) -> Detectable:
    """What a set can tell of a task.

    Args:
        task: name.
        rule: how it is judged.
        truth: its labels.
        n_comparisons: over all splits and tasks.
    """
    n = len(truth)
    if not rule.metric.share:
        return Detectable(task, rule.metric.name, n, rule.margin, None, None, None, None)
    weight = effective_samples(rule.metric, truth)
    lost = statistics.smallest_detectable(int(weight), rule.margin, rule.alpha / n_comparisons)
    needed = statistics.smallest_passing_set(rule.margin, rule.alpha)
    return Detectable(
        task=task,
        metric=rule.metric.name,
        n=n,
        margin=100 * rule.margin,
        drop=None if lost is None else 100 * lost / int(weight),
        n_lost=lost,
        n_passing=statistics.most_lost_that_pass(int(weight), rule.margin, rule.confidence),
        n_needed=None if needed is None else math.ceil(needed * n / weight),
    )
