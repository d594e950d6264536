"""Metrics per task, in a form that can be evaluated on thousands of resamples.

What scikit-learn offers as a function of whole arrays is here, where possible, a sum over samples and a function of the
sums: a resample is then one row of a matrix product. The tests hold each against scikit-learn's own function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from calib.gate.statistics import Index

Array = NDArray[Any]
Values = Callable[[Index], NDArray[np.float64]]
"""From rows of sample numbers ``[..., m]`` to the metric on each row, ``[...]``."""

Kind = Literal["classes", "numbers", "maps"]
"""What labels are: a class per sample, numbers per sample, a map of classes per sample."""

Pair = Callable[[Index], NDArray[np.float64]]
"""The same of the reference and of the deployed outputs at once, ``[..., 2]``."""

NUMERIC = ("mae", "rmse")
"""Metrics of numbers; whole-number labels are numbers to them, not classes."""

_SUMS_TO_ONE = 1e-3


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: as in ``gate.toml``.
        kinds: of labels that it takes.
        share: a share from 0 to 1, whose margin is in points; else in a unit of its own.
        higher_is_better: whether a drop is a loss.
        over: from truth and outputs of all samples to a function of sample numbers; ``None`` for the user's own metric,
            which is evaluated in a process of its own.
    """

    name: str
    kinds: tuple[Kind, ...]
    share: bool
    higher_is_better: bool
    over: Callable[[Array, Array], Values] | None


def kind_of(truth: Array) -> Kind:
    """What labels are, by their dtype and shape."""
    if truth.dtype.kind == "f":
        return "numbers"
    return "classes" if truth.ndim == 1 else "maps"


def answers(outputs: Array) -> NDArray[np.intp]:
    """The class with the highest score: of ``[n, classes, ...]``, ``[n, ...]``."""
    best: NDArray[np.intp] = np.argmax(outputs, axis=1)
    return best


def right(truth: Array, outputs: Array) -> NDArray[np.bool_]:
    """Which samples' class is named, ``[n]``."""
    named: NDArray[np.bool_] = answers(outputs) == truth
    return named


def _of_sums(terms: NDArray[np.float64], value: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Values:
    """The metric that is a function of the sums of ``terms``, ``[n, k]``, over the samples."""
    n = len(terms)

    def values(index: Index) -> NDArray[np.float64]:
        rows = index.reshape(-1, index.shape[-1])
        start = np.arange(len(rows))[:, None] * n
        counts = np.bincount((rows + start).ravel(), minlength=len(rows) * n).reshape(len(rows), n)
        return value(counts @ terms / rows.shape[1]).reshape(index.shape[:-1])

    return values


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the classes that occur, per row."""
    shares = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    mean: NDArray[np.float64] = shares.sum(axis=1) / np.maximum((below > 0).sum(axis=1), 1)
    return mean


def _top1(truth: Array, outputs: Array) -> Values:
    return _of_sums(right(truth, outputs)[:, None].astype(np.float64), lambda mean: mean[:, 0])


def _balanced(truth: Array, outputs: Array) -> Values:
    member = (truth[:, None] == np.unique(truth)).astype(np.float64)
    k = member.shape[1]
    terms = np.hstack([member * right(truth, outputs)[:, None], member])
    return _of_sums(terms, lambda mean: _ratio(mean[:, :k], mean[:, k:]))


def _miou(truth: Array, outputs: Array) -> Values:
    classes, n = outputs.shape[1], len(truth)
    cell = truth.reshape(n, -1) * classes + answers(outputs).reshape(n, -1)
    terms = np.stack([np.bincount(row, minlength=classes * classes) for row in cell]).astype(np.float64)

    def value(mean: NDArray[np.float64]) -> NDArray[np.float64]:
        confusion = mean.reshape(-1, classes, classes)
        both = np.diagonal(confusion, axis1=1, axis2=2)
        return _ratio(both, confusion.sum(axis=1) + confusion.sum(axis=2) - both)

    return _of_sums(terms, value)


def _errors(truth: Array, outputs: Array) -> NDArray[np.float64]:
    n = len(truth)
    difference: NDArray[np.float64] = outputs.reshape(n, -1).astype(np.float64) - truth.reshape(n, -1)
    return difference


def _mae(truth: Array, outputs: Array) -> Values:
    return _of_sums(np.abs(_errors(truth, outputs)), lambda mean: mean.mean(axis=1))


def _rmse(truth: Array, outputs: Array) -> Values:
    return _of_sums(_errors(truth, outputs) ** 2, lambda mean: np.sqrt(mean).mean(axis=1))


def probabilities(outputs: Array) -> NDArray[np.float64]:
    """Rows that sum to one as they are, else their softmax: ``[n, classes]``."""
    scores = outputs.astype(np.float64)
    if scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=_SUMS_TO_ONE):
        return scores
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _average_precision(truth: Array, outputs: Array) -> Values:
    from sklearn.metrics import average_precision_score

    scores = probabilities(outputs)

    def one(row: Index) -> float:
        true, guess = truth[row], scores[row]
        return float(np.mean([average_precision_score(true == k, guess[:, k]) for k in np.unique(true)]))

    return lambda index: np.asarray([one(row) for row in index.reshape(-1, index.shape[-1])]).reshape(index.shape[:-1])


METRICS = {
    metric.name: metric
    for metric in (
        Metric("top1", ("classes",), share=True, higher_is_better=True, over=_top1),
        Metric("balanced_accuracy", ("classes",), share=True, higher_is_better=True, over=_balanced),
        Metric("map", ("classes",), share=True, higher_is_better=True, over=_average_precision),
        Metric("miou", ("maps",), share=True, higher_is_better=True, over=_miou),
        Metric("mae", ("numbers", "classes"), share=False, higher_is_better=False, over=_mae),
        Metric("rmse", ("numbers", "classes"), share=False, higher_is_better=False, over=_rmse),
    )
}
"""By the name in ``gate.toml``."""

DEFAULT_METRIC: dict[Kind, str] = {"classes": "top1", "numbers": "mae", "maps": "miou"}
"""Where ``gate.toml`` names none."""


def own_metric(name: str, *, higher_is_better: bool) -> Metric:
    """The user's ``pkg.module:function``."""
    return Metric(name, ("classes", "numbers", "maps"), share=False, higher_is_better=higher_is_better, over=None)


def effective_samples(metric: Metric, truth: Array) -> float:
    """How many samples of the heaviest weight the set is worth: what a bootstrap cannot see is bounded with it.

    A lost sample of the rarest of K classes takes ``1 / (K * its samples)`` from the balanced accuracy. In the other
    shares, every sample weighs the same.
    """
    if metric.name != "balanced_accuracy":
        return float(len(truth))
    found, counts = np.unique(truth, return_counts=True)
    return float(len(found) * counts.min())
