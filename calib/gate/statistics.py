"""The statistics of a paired comparison: what was lost, how sure that is, and how many samples would tell.

*Drop* is reference minus deployed, as a share from 0 to 1. *Lost* are the samples that only the reference gets right,
*gained* those that only the deployed path gets right. All limits are one-sided: with a confidence of 0.95 the true drop
is below the upper limit in 95 % of all sets, and above the lower limit in 95 %.

Sources: T. Tango, Statistics in Medicine 17 (1998) 891-908 (score interval of paired proportions); C. J. Clopper and
E. S. Pearson, Biometrika 26 (1934) 404-413 (exact binomial limits); B. Efron, JASA 82 (1987) 171-185 (BCa bootstrap).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv, ndtr, ndtri
from scipy.stats import bootstrap
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

N_RESAMPLES = 1999
"""Of the bootstrap; the smallest p-value that it can give is one over one more."""

POWER = 0.9
"""How often a set of the size that `samples_needed` names comes to a verdict."""

_BATCH_VALUES = 4_000_000
"""Sample numbers that a batch of resamples may hold."""

Index = NDArray[np.intp]
Statistic = Callable[[Index], NDArray[np.float64]]
"""From sample numbers ``[..., m]`` to the drop on each row, ``[...]``."""


@dataclass(frozen=True)
class Limits:
    """One-sided limits of a drop.

    Attributes:
        lower: the true drop is above it, with the confidence asked for.
        upper: the true drop is below it, with the same confidence.
    """

    lower: float
    upper: float


def _gained_under(drop: float, lost: float, gained: float, n: float) -> float:
    """Tango's constrained maximum-likelihood estimate of the share of gained samples, the true drop being ``drop``."""
    a = 2 * n
    b = -lost - gained + (2 * n - lost + gained) * drop
    c = -gained * drop * (1 - drop)
    return max(0.0, (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a))


def tango_statistic(drop: float, lost: float, gained: float, n: float) -> float:
    """Tango's score: how many standard deviations the observed drop lies above ``drop``, if that is the true one.

    Args:
        drop: hypothetical, from -1 to 1.
        lost: samples that only the reference gets right; fractions are allowed, for extrapolation.
        gained: samples that only the deployed path gets right.
        n: all samples.
    """
    variance = n * (2 * _gained_under(drop, lost, gained, n) + drop * (1 - drop))
    distance = lost - gained - n * drop
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def tango_limits(lost: int, gained: int, n: int, confidence: float) -> Limits:
    """Tango's score interval of the drop between two paired proportions, every limit one-sided."""
    z, observed = float(ndtri(confidence)), (lost - gained) / n

    def above(drop: float) -> float:
        return tango_statistic(drop, lost, gained, n) - z

    def below(drop: float) -> float:
        return tango_statistic(drop, lost, gained, n) + z

    lower = -1.0 if lost - gained == -n else float(brentq(above, -1 + 1e-12, observed, xtol=1e-12))
    upper = 1.0 if lost - gained == n else float(brentq(below, observed, 1 - 1e-12, xtol=1e-12))
    return Limits(lower, upper)


def one_way_limits(drop: float, n: float, confidence: float) -> Limits:
    """Exact (Clopper-Pearson) limits where all changes go one way: then what was lost is binomial.

    Args:
        drop: observed, from -1 to 1; negative where samples were gained.
        n: samples of equal weight.
        confidence: of each limit.
    """
    count = abs(drop) * n
    low = float(betaincinv(count, n - count + 1, 1 - confidence)) if count > 0 else 0.0
    high = float(betaincinv(count + 1, n - count, confidence)) if count < n else 1.0
    if count == 0:
        return Limits(-high, high)
    return Limits(low, high) if drop > 0 else Limits(-high, -low)


def paired_limits(lost: int, gained: int, n: int, confidence: float) -> Limits:
    """Tango's limits, nowhere narrower than the exact ones of the same drop with all changes one way.

    Tango's interval is asymptotic: with a handful of flips it may be wrong in up to 9 % of all sets instead of 5 %.
    Widened by the exact limits it is wrong in at most 5.6 % (all sizes and rates enumerated in the tests).
    """
    return widened(tango_limits(lost, gained, n, confidence), (lost - gained) / n, n, confidence)


def widened(limits: Limits, drop: float, n: float, confidence: float) -> Limits:
    """Limits that are nowhere narrower than `one_way_limits`."""
    exact = one_way_limits(drop, n, confidence)
    return Limits(min(limits.lower, exact.lower), max(limits.upper, exact.upper))


def paired_p(lost: int, gained: int, n: int, margin: float) -> float:
    """The p-value against "the true drop is at most ``margin``": the least alpha whose lower limit is beyond it."""
    return max(float(ndtr(-tango_statistic(margin, lost, gained, n))), one_way_p((lost - gained) / n, n, margin))


def one_way_p(drop: float, n: float, margin: float) -> float:
    """The p-value that belongs to the lower limit of `one_way_limits`."""
    if drop <= 0:
        return 1.0
    return float(betainc(drop * n, n - drop * n + 1, margin))


def mcnemar_p(lost: int, gained: int) -> float:
    """McNemar's exact two-sided p-value against "nothing changed"; 1 where no sample changed."""
    return float(mcnemar([[0, lost], [gained, 0]], exact=True).pvalue) if lost + gained else 1.0


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's adjusted p-values, in the given order."""
    return tuple(float(p) for p in multipletests(p_values, method="holm")[1]) if p_values else ()


@dataclass(frozen=True)
class Resampled:
    """What the paired bootstrap says of a drop.

    Attributes:
        drop: on the samples themselves.
        limits: bias-corrected and accelerated, one-sided each.
        p: against "the true drop is at most the margin".
        standard_error: of the drop.
    """

    drop: float
    limits: Limits
    p: float
    standard_error: float


def bootstrap_drop(statistic: Statistic, n: int, confidence: float, margin: float) -> Resampled:
    """Resamples whole samples, reference and deployed together (scipy's BCa bootstrap, fixed seed).

    Args:
        statistic: the drop on rows of sample numbers.
        n: samples.
        confidence: of each limit.
        margin: in the unit of the statistic.
    """
    numbers = np.arange(n)
    batch = max(1, _BATCH_VALUES // n)
    observed = float(statistic(numbers))

    def of_rows(index: Index, axis: int = -1) -> NDArray[np.float64]:  # noqa: ARG001 (scipy passes it)
        return statistic(index)

    drawn = bootstrap(
        (numbers,), of_rows, n_resamples=N_RESAMPLES, batch=batch, vectorized=True, method="percentile", rng=0
    )
    drops = np.asarray(drawn.bootstrap_distribution, np.float64)
    left_out = _leave_one_out(statistic, n, batch)
    if np.ptp(drops) == 0 or np.ptp(left_out) == 0:  # every sample changed by the same: nothing to resample
        return Resampled(observed, Limits(observed, observed), float(observed <= margin), 0.0)
    level = 2 * confidence - 1  # scipy's intervals have two sides
    again = bootstrap(
        (numbers,),
        of_rows,
        n_resamples=0,
        bootstrap_result=drawn,
        batch=batch,
        vectorized=True,
        confidence_level=level,
        method="BCa",
        rng=0,
    ).confidence_interval
    return Resampled(
        observed,
        Limits(float(again.low), float(again.high)),
        _bca_p(drops, left_out, observed, margin),
        float(drops.std(ddof=1)),
    )


def _leave_one_out(statistic: Statistic, n: int, batch: int) -> NDArray[np.float64]:
    """The drop without each of the samples: ``[n]``."""
    others = np.arange(n - 1)
    rows = [
        statistic(others[None] + (others[None] >= np.arange(start, min(start + batch, n))[:, None]))
        for start in range(0, n, batch)
    ]
    return np.concatenate(rows)


def _bca_p(drops: NDArray[np.float64], left_out: NDArray[np.float64], observed: float, margin: float) -> float:
    """The least alpha at which BCa's lower limit is beyond the margin: Efron's formula solved for alpha.

    The limit is the resamples' quantile at ``Phi(z0 + (z0 + z_alpha) / (1 - a (z0 + z_alpha)))``; scipy computes it for
    a given alpha.
    """
    n = len(drops)
    half_ties = float((drops < observed).sum() + 0.5 * (drops == observed).sum())
    z0 = float(ndtri(half_ties / n))
    away = left_out.mean() - left_out
    a = float((away**3).sum() / (6 * (away**2).sum() ** 1.5))
    share = (1 + int((drops <= margin).sum())) / (n + 1)
    w = float(ndtri(share)) - z0 if share < 1 else math.inf
    if math.isinf(w) or 1 + a * w <= 0:
        return 1.0
    return float(ndtr(w / (1 + a * w) - z0))


def samples_needed(p_lost: float, p_gained: float, margin: float, alpha: float, power: float = POWER) -> int | None:
    """How many samples tell, where the true shares of lost and gained samples are these.

    The usual formula of a one-sided test of ``drop = margin`` (R. J. Connor, Biometrics 43 (1987) 207-211) with Tango's
    constrained variance under the hypothesis; never fewer than the exact test needs without a single change.

    Args:
        p_lost: share of samples that only the reference gets right.
        p_gained: share of samples that only the deployed path gets right.
        margin: allowed drop as a share.
        alpha: one minus the confidence.
        power: share of such sets that come to a verdict.

    Returns:
        ``None`` where the drop equals the margin: no number tells.
    """
    drop = p_lost - p_gained
    if math.isclose(drop, margin, abs_tol=1e-12) or (margin == 0 and drop < 0 and p_lost + p_gained == 0):
        return None
    under = 2 * _gained_under(margin, p_lost, p_gained, 1.0) + margin * (1 - margin)
    there = max(0.0, p_lost + p_gained - drop * drop)
    sum_of_errors = -ndtri(alpha) * math.sqrt(under) + ndtri(power) * math.sqrt(there)
    n = math.ceil((sum_of_errors / (drop - margin)) ** 2)
    return max(int(n), smallest_passing_set(margin, alpha) or 0) if drop < margin else int(n)


def samples_needed_resampled(made: Resampled, n: int, margin: float, alpha: float, power: float = POWER) -> int | None:
    """The same for a metric that was resampled: its standard error shrinks with the root of the samples.

    Returns:
        ``None`` where the drop equals the margin: no number tells.
    """
    if math.isclose(made.drop, margin, abs_tol=1e-12):
        return None
    errors = float(-ndtri(alpha) + ndtri(power)) * made.standard_error
    return math.ceil(n * (errors / (made.drop - margin)) ** 2)


def smallest_passing_set(margin: float, alpha: float) -> int | None:
    """Samples with which "nothing changed" is enough to pass; ``None`` for a margin of 0, where it never is."""
    return math.ceil(math.log(alpha) / math.log1p(-margin)) if 0 < margin < 1 else None


def smallest_detectable(n: int, margin: float, alpha: float) -> int | None:
    """The fewest lost samples, none gained, whose lower limit is beyond the margin; ``None`` if not even all of them.

    Exact: it enumerates `paired_p`.
    """
    first = math.floor(n * margin) + 1
    # The p-value falls with every lost sample, so halving finds the first.
    low, high = first, n + 1
    while low < high:
        middle = (low + high) // 2
        if paired_p(middle, 0, n, margin) <= alpha:
            high = middle
        else:
            low = middle + 1
    return low if low <= n else None


def most_lost_that_pass(n: int, margin: float, confidence: float) -> int | None:
    """The most lost samples, none gained, with which the set still passes; ``None`` where even no change does not."""
    most = None
    for lost in range(math.floor(n * margin) + 1):
        if paired_limits(lost, 0, n, confidence).upper > margin:
            break
        most = lost
    return most
