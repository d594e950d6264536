"""Percentiles of raw durations, and when a number of samples supports one."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

MIN_SAMPLES = {50: 5, 95: 20}
"""Samples that a percentile needs.

* p95: one sample in twenty is expected beyond it. Fewer than 20 say nothing about the tail, and the "percentile" would
  be little else than their maximum.
* p50: the range of ``n`` samples holds the true median with probability ``1 - 2 ** (1 - n)``, which is 94 % for 5 and
  falls below 90 % for fewer.
"""

_Z_95 = 1.959964
"""Half-width of the central 95 % of the standard normal distribution."""

_NS_PER_MS = 1e6


def percentile_ms(samples_ns: Sequence[int], percent: int) -> float | None:
    """A percentile of durations, linearly interpolated.

    Args:
        samples_ns: raw durations in nanoseconds.
        percent: 50 or 95.

    Returns:
        Milliseconds; 0.0 where every sample is 0, i.e. the path has no such phase and nothing was done; ``None`` where
        there are fewer samples than `MIN_SAMPLES` asks for.
    """
    if samples_ns and not any(samples_ns):
        return 0.0
    if len(samples_ns) < MIN_SAMPLES[percent]:
        return None
    return float(np.percentile(np.asarray(samples_ns, dtype=np.float64), percent)) / _NS_PER_MS


def median_interval_ms(samples_ns: Sequence[int]) -> tuple[float, float] | None:
    """The 95 % interval of the median, from order statistics: no assumption about the distribution.

    The number of samples below the true median is binomial with p = 1/2; its normal approximation gives the ranks.

    Args:
        samples_ns: raw durations in nanoseconds.

    Returns:
        Lowest and highest median in milliseconds that the samples support; ``None`` where they support no median.
    """
    n = len(samples_ns)
    if n < MIN_SAMPLES[50]:
        return None
    ordered = sorted(samples_ns)
    low = max(int((n - _Z_95 * sqrt(n)) / 2), 0)
    return ordered[low] / _NS_PER_MS, ordered[n - 1 - low] / _NS_PER_MS


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share; unlike the plain one it stays within 0..1 and is fair near the ends.

    Args:
        hits: successes.
        n: trials, at least one.

    Returns:
        Lower and upper bound, from 0 to 1.
    """
    z2 = _Z_95**2
    centre = (hits + z2 / 2) / (n + z2)
    half = _Z_95 / (n + z2) * sqrt(hits * (n - hits) / n + z2 / 4)
    return max(centre - half, 0.0), min(centre + half, 1.0)
