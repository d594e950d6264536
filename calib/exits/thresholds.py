"""The threshold of an exit: as many answers as possible, while the combined answer loses no more than was allowed.

What is compared, image by image, is the answer of the whole deployed split with the combined one: the exit's where it
is sure, the split's own elsewhere. Trying many thresholds on one set of images and keeping the best would promise too
much. So the candidates are fixed beforehand, from the most cautious on, and each is tested in turn whether the upper
confidence limit of the drop is within the target; the first that fails ends the search (fixed sequence testing, as in
"Learn then Test", A. Angelopoulos et al., arXiv 2110.01052). Then the limit holds for the threshold that
is kept with the confidence of a single test. Where a split has several exits of one task, their tests share the error.

A target accuracy is another way to say what may be lost: what the split has above it on the same images. The limit is
of the loss alone; the split's own accuracy enters as it was observed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calib.gate.statistics import paired_limits, smallest_passing_set
from runtime_edge.loop.exits import measured, sure_where
from splitboard.contract.exits import ExitRule

INCONCLUSIVE = "inconclusive"
"""What the reason of a rule begins with for which there are too few images."""

N_CANDIDATES = 200
_SUREST = {"max_softmax": 1e-6, "entropy": 1e-5}
"""Of the most cautious candidate: what the largest probability lacks to 1, or the entropy in nats."""


@dataclass(frozen=True)
class Target:
    """What is asked of a rule.

    Attributes:
        measure: a name of `splitboard.contract.exits.MEASURES`.
        drop: the most accuracy that may be lost, as a share.
        confidence: that no more is.
        accuracy: that the drop leaves of the split's own, as a share; ``None`` where the drop was given.
    """

    measure: str
    drop: float
    confidence: float
    accuracy: float | None = None


@dataclass(frozen=True)
class Answers:
    """What the deployed split and one of its exits answer.

    Attributes:
        scores: of the exit, ``[n, classes]``.
        final: of the whole split, ``[n, classes]``.
        truth: classes, ``[n]``.
    """

    scores: NDArray[np.float32]
    final: NDArray[np.float32]
    truth: NDArray[np.int64]

    @property
    def exit_right(self) -> NDArray[np.bool_]:
        """Where the exit is right, ``[n]``."""
        return np.asarray(self.scores.argmax(axis=1) == self.truth)

    @property
    def final_right(self) -> NDArray[np.bool_]:
        """Where the split is right, ``[n]``."""
        return np.asarray(self.final.argmax(axis=1) == self.truth)

    @property
    def accuracy(self) -> float:
        """Of the whole split, as a share."""
        return float(self.final_right.mean())


def keeping(accuracy: float, answers: Answers, target: Target) -> Target:
    """The target whose drop leaves ``accuracy`` of the split's own; a drop of 0 where that is below it already."""
    return replace(target, drop=max(0.0, answers.accuracy - accuracy), accuracy=accuracy)


def candidates(measure: str, classes: int) -> NDArray[np.float64]:
    """The thresholds that are tried, the most cautious first and the last one sure of nearly everything.

    They depend on no data: what a probability lacks to 1, or the entropy, grows by a constant factor.
    """
    least = 1 - 1 / classes if measure == "max_softmax" else float(np.log(classes))
    steps = np.geomspace(_SUREST[measure], least, N_CANDIDATES)
    return np.asarray(1 - steps if measure == "max_softmax" else steps)


def fit_rule(split: str, output: str, task: str, answers: Answers, target: Target, n_exits: int) -> ExitRule:
    """Finds the rule of one exit at one split.

    Args:
        split: id.
        output: the exit.
        task: that it answers.
        answers: on held-out images.
        target: what is asked; one with an accuracy comes from `keeping`, of the same answers.
        n_exits: of this task at this split, which share the error.
    """
    n = len(answers.truth)
    confidence = 1 - (1 - target.confidence) / n_exits
    values = measured(answers.scores, target.measure)
    right, final = answers.exit_right, answers.final_right
    threshold, upper, exited = None, 0.0, np.zeros(n, np.bool_)
    for candidate in () if _is_missed(answers, target) else candidates(target.measure, answers.scores.shape[1]):
        where = sure_where(values, target.measure, candidate)
        lost, gained = int((where & final & ~right).sum()), int((where & right & ~final).sum())
        limit = paired_limits(lost, gained, n, confidence).upper
        if limit > target.drop:
            break
        if where.any():
            threshold, upper, exited = float(candidate), limit, where
    return ExitRule(
        split=split,
        output=output,
        task=task,
        measure=target.measure,
        threshold=threshold,
        reason=None if threshold is not None else why_none(answers, target, confidence),
        target_drop=target.drop,
        confidence=target.confidence,
        n_samples=n,
        exit_rate=float(exited.mean()),
        accuracy=answers.accuracy,
        accuracy_exit=float(right.mean()),
        accuracy_exited=float(right[exited].mean()) if exited.any() else None,
        accuracy_combined=float(np.where(exited, right, final).mean()),
        drop_upper=upper,
        target_accuracy=target.accuracy,
    )


def _is_missed(answers: Answers, target: Target) -> bool:
    """Whether the split is below the accuracy by itself: an exit that makes up for it is nothing to build on."""
    return target.accuracy is not None and answers.accuracy < target.accuracy


def needed_images(target: Target, confidence: float) -> int | None:
    """Images with which a rule that changes no answer passes; ``None`` where no number is enough."""
    return smallest_passing_set(target.drop, 1 - confidence)


def why_none(answers: Answers, target: Target, confidence: float) -> str:
    """Why there is no threshold, in a few words."""
    if target.accuracy is not None and _is_missed(answers, target):
        return f"out of reach: the split itself is below {100 * target.accuracy:g} %"
    n, needed = len(answers.truth), needed_images(target, confidence)
    if needed is None:
        return f"{INCONCLUSIVE}: nothing may be lost, which no number of images shows"
    if n < needed:
        return f"{INCONCLUSIVE}: {n} images, {needed} would do at least"
    return "already its surest answers may lose more than is allowed"
