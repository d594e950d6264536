"""Whether an early exit is sure enough to answer alone.

The rule of BranchyNet (S. Teerapittayanon et al., ICPR 2016, arXiv 1709.01686): exit where the entropy of the softmax
is below a threshold. Or where its largest value is above one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.exits import ExitRule


def probabilities(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Softmax over the last axis: ``[..., classes]`` to the same, float64."""
    shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
    powers: NDArray[np.float64] = np.exp(shifted)
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def measured(scores: NDArray[Any], measure: str) -> NDArray[np.float64]:
    """The largest probability or the entropy in nats: ``[..., classes]`` to ``[...]``, float64.

    Args:
        scores: real numbers; not finite ones give NaN.
        measure: one of `splitboard.contract.exits.MEASURES`.
    """
    p = probabilities(scores)
    if measure == "max_softmax":
        largest: NDArray[np.float64] = p.max(axis=-1)
        return largest
    # What is 0 adds nothing: x log x goes to 0 with x.
    entropy: NDArray[np.float64] = -(p * np.log(np.where(p == 0, 1.0, p))).sum(axis=-1)
    return entropy


def sure(scores: NDArray[Any], rule: ExitRule) -> bool:
    """Whether the exit answers alone. Never with scores that are not finite.

    Args:
        scores: of the exit, ``[1, classes]``, as an engine gives them.
        rule: of the exit at the split that runs.
    """
    return rule.threshold is not None and bool(sure_where(measured(scores, rule.measure), rule.measure, rule.threshold))


def sure_where(values: NDArray[np.float64], measure: str, threshold: float) -> NDArray[np.bool_]:
    """Which of what `measured` gave is sure."""
    found: NDArray[np.bool_] = values > threshold if measure == "max_softmax" else values < threshold
    return found
