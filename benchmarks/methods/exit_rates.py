"""What early exits of a trained network answer at which threshold, and how often they are right: from its scores alone.

Both rules of `splitboard-edge run`: the largest probability of the softmax is at least, or the entropy in nats is at
most, a threshold (BranchyNet, arXiv 1709.01686). The first exit that is sure answers; what none is sure of, the last
output answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime_edge.loop.exits import measured, sure_where

Scores = NDArray[np.float32]
"""``[n, classes]``, before the softmax."""

Evidence = tuple[Sequence[Scores], Scores, NDArray[np.int64]]
"""The scores of a task's exits, the earliest first, those of the whole network, and the true classes, ``[n]``."""


@dataclass(frozen=True)
class Point:
    """One threshold for all exits of a task.

    Attributes:
        threshold: of the measure.
        rates: share of the images that each exit answers, in the order of the exits.
        accuracy: of the joint answer.
    """

    threshold: float
    rates: tuple[float, ...]
    accuracy: float

    @property
    def rate(self) -> float:
        """Share that some exit answers."""
        return sum(self.rates)


def sweep(evidence: Evidence, measure: str, thresholds: Sequence[float]) -> list[Point]:
    """A point per threshold.

    Args:
        evidence: of one task.
        measure: of `splitboard.contract.exits.MEASURES`.
        thresholds: on its scale.
    """
    return [_point(*evidence, measure, one) for one in thresholds]


def fitted(validation: Evidence, measure: str, drop: float) -> float | None:
    """The threshold that lets most images exit while the joint accuracy falls by at most ``drop`` on validation images.

    Args:
        validation: of one task.
        measure: as in `sweep`.
        drop: share of the images.

    Returns:
        ``None`` where no threshold keeps to it.
    """
    exits, last, truth = validation
    whole = float(np.mean(last.argmax(axis=1) == truth))
    sureness = np.concatenate([measured(one, measure) for one in exits])
    points = [_point(exits, last, truth, measure, float(one)) for one in np.quantile(sureness, np.linspace(0, 1, 201))]
    allowed = [one for one in points if one.accuracy >= whole - drop - 1e-9]
    return max(allowed, key=lambda one: one.rate).threshold if allowed else None


def _point(exits: Sequence[Scores], last: Scores, truth: NDArray[np.int64], measure: str, threshold: float) -> Point:
    answered = np.zeros(len(truth), dtype=bool)
    answer = last.argmax(axis=1)
    rates = []
    for scores in exits:
        now = ~answered & sure_where(measured(scores, measure), measure, threshold)
        answer = np.where(now, scores.argmax(axis=1), answer)
        answered |= now
        rates.append(float(now.mean()))
    return Point(threshold, tuple(rates), float(np.mean(answer == truth)))
