"""From what was observed of a tensor to the range that is quantised: one function per method.

A range always includes zero: padding and a fused ReLU need it to be a quantised value. Every method gives two answers,
limits for asymmetric INT8 (TFLite) and one limit of the absolute value for symmetric INT8 (Q/DQ for TensorRT).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from calib.observe import Observations, Observed, bin_values
from calib.ranges import SCHEMA_VERSION, SYMMETRIC_STEPS, TFLITE_STEPS, Range, RangeTable

_MSE_CANDIDATES = np.linspace(0.3, 1.0, 71)
"""Shares of the observed limits that are tried as thresholds."""

_COARSE_BINS = 2048
_ENTROPY_LEVELS = 128
"""Bins and quantised levels of the published entropy calibration (S. Migacz, 8-bit inference with TensorRT, 2017)."""

Histogram = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Values in ascending order, and how often each was seen."""


def minmax(seen: Observed) -> Range:
    """The smallest and the largest value."""
    return _including_zero(seen.min, seen.max, max(abs(seen.min), abs(seen.max)))


def percentile(seen: Observed, percent: float) -> Range:
    """Leaves out the largest absolute values: one in ten thousand at 99.99.

    Each side of an asymmetric range gives up half of them.
    """
    values, counts = _histogram(seen)
    share = np.cumsum(counts) / counts.sum()
    beyond = (1 - percent / 100) / 2
    low, high = values[_place(share, beyond)], values[_place(share, 1 - beyond)]
    order = np.argsort(np.abs(values), kind="stable")
    absolute = np.cumsum(counts[order]) / counts.sum()
    magnitude = np.abs(values[order][_place(absolute, percent / 100)])
    return _within(seen, float(low), float(high), float(magnitude))


def mse(seen: Observed) -> Range:
    """The limits with the smallest mean squared error of the quantised values, clipping included."""
    values, counts = _histogram(seen)
    least, most = min(seen.min, 0.0), max(seen.max, 0.0)
    low, high = _best_limits(values, counts, least, most)
    limit = max(-least, most)
    magnitude = min(
        (limit * share for share in _MSE_CANDIDATES),
        key=lambda candidate: _error(values, counts, -candidate, candidate, 2 * SYMMETRIC_STEPS),
    )
    return _within(seen, low, high, float(magnitude))


def entropy(seen: Observed) -> Range:
    """The threshold that loses the least information (Kullback-Leibler), as TensorRT's implicit calibration did.

    It cuts the tails of hard-swish networks, which destroys some of them: it is used only where it is measured to be no
    worse than `minmax`.
    """
    values, counts = _histogram(seen)
    limit = max(abs(seen.min), abs(seen.max))
    coarse, _ = np.histogram(np.abs(values), _COARSE_BINS, (0.0, limit or 1.0), weights=counts)
    best, threshold = np.inf, limit
    for kept in range(_ENTROPY_LEVELS, _COARSE_BINS + 1, 8):
        divergence = _divergence(coarse, kept)
        if divergence < best:
            best, threshold = divergence, limit * kept / _COARSE_BINS
    return _within(seen, max(seen.min, -threshold), min(seen.max, threshold), threshold)


METHODS: Mapping[str, Callable[[Observed], Range]] = {
    "minmax": minmax,
    "p99.999": partial(percentile, percent=99.999),
    "p99.99": partial(percentile, percent=99.99),
    "mse": mse,
    "entropy": entropy,
}
"""By the name that ``--ranges`` takes. The first is what the others are compared with."""


def make_table(seen: Observations, method: str) -> RangeTable:
    """The ranges of all observed tensors by one method."""
    derive = METHODS[method]
    return RangeTable(SCHEMA_VERSION, method, seen.n_samples, {name: derive(one) for name, one in seen.tensors.items()})


def _histogram(seen: Observed) -> Histogram:
    """The bins that were hit, in ascending order; no value lies outside of the exact limits."""
    hit = np.flatnonzero(seen.counts)
    values = np.clip(bin_values()[hit].astype(np.float64), seen.min, seen.max)
    order = np.argsort(values, kind="stable")
    return values[order], seen.counts[hit][order].astype(np.float64)


def _place(shares: NDArray[np.float64], share: float) -> int:
    return min(int(np.searchsorted(shares, share)), len(shares) - 1)


def _including_zero(low: float, high: float, magnitude: float) -> Range:
    return Range(min(low, 0.0), max(high, 0.0), magnitude)


def _within(seen: Observed, low: float, high: float, magnitude: float) -> Range:
    """A clipped range; where nothing but zero is left of it the observed one."""
    if max(high, 0.0) - min(low, 0.0) <= 0.0 or magnitude <= 0.0:
        return minmax(seen)
    return _including_zero(max(low, seen.min), min(high, seen.max), min(magnitude, max(abs(seen.min), abs(seen.max))))


def _error(values: NDArray[np.float64], counts: NDArray[np.float64], low: float, high: float, steps: int) -> float:
    """Sum of squared errors when the values are rounded to ``steps`` steps between two limits."""
    scale = (high - low) / steps
    if scale <= 0.0:
        return float("inf")
    offset = np.rint(low / scale)
    stored = np.clip(np.rint(values / scale), offset, offset + steps)
    return float((counts * (stored * scale - values) ** 2).sum())


def _best_limits(
    values: NDArray[np.float64], counts: NDArray[np.float64], least: float, most: float
) -> tuple[float, float]:
    """Both limits in turn: with the other one fixed, the best of the candidates; twice, which is enough to settle."""
    low, high = least, most
    for _ in range(2):
        high = min((most * s for s in _MSE_CANDIDATES), key=lambda c: _error(values, counts, low, c, TFLITE_STEPS))
        low = min((least * s for s in _MSE_CANDIDATES), key=lambda c: _error(values, counts, c, high, TFLITE_STEPS))
    return float(low), float(high)


def _divergence(coarse: NDArray[np.int64], kept: int) -> float:
    """Kullback-Leibler divergence of the first ``kept`` bins and their form with 128 levels."""
    reference = coarse[:kept].astype(np.float64)
    outside = coarse[kept:].sum()
    level = np.arange(kept) * _ENTROPY_LEVELS // kept
    filled = reference > 0
    sums = np.bincount(level, reference, _ENTROPY_LEVELS)
    sizes = np.bincount(level, filled, _ENTROPY_LEVELS)
    quantised = np.where(filled, (sums / np.maximum(sizes, 1))[level], 0.0)
    reference[-1] += outside
    used = reference > 0
    p = reference / reference.sum()
    q = quantised / max(quantised.sum(), 1e-12)
    return float((p[used] * np.log(p[used] / np.maximum(q[used], 1e-10))).sum())
