"""The gate's statistics, against published intervals, maximised likelihoods, enumeration and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binom, binomtest, bootstrap, norm

from calib.gate import statistics

PUBLISHED = {
    # Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014) 2850-2875: Bentur 2009 and Cavo 2012.
    "airway reactivity": (1, 7, 21, 0.95, -0.5172, -0.0260),
    "complete response": (6, 16, 161, 0.95, -0.1240, -0.0054),
    # scoreci.mp(25, 28, 618, 0.90) of the R package PropCIs, whose difference is the second count minus the first.
    "PropCIs": (28, 25, 618, 0.90, -0.0148, 0.0247),
}


@pytest.mark.parametrize("row", PUBLISHED.values(), ids=PUBLISHED)
def test_published_intervals(row: tuple[int, int, int, float, float, float]) -> None:
    lost, gained, n, two_sided, lower, upper = row
    limits = statistics.tango_limits(lost, gained, n, 1 - (1 - two_sided) / 2)
    assert (round(limits.lower, 4), round(limits.upper, 4)) == (lower, upper)


def _score_by_likelihood(drop: float, lost: int, gained: int, n: int) -> float:
    """Tango's statistic with the likelihood under ``drop`` maximised by a numerical search."""

    def minus_log_likelihood(q: float) -> float:
        shares = (q + drop, q, 1 - 2 * q - drop)
        counts = (lost, gained, n - lost - gained)
        return -sum(count * math.log(max(share, 1e-300)) for count, share in zip(counts, shares, strict=True) if count)

    low, high = max(0.0, -drop), (1 - drop) / 2
    best = minimize_scalar(minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
    q = min((low, high, best), key=minus_log_likelihood)
    return (lost - gained - n * drop) / math.sqrt(n * (2 * q + drop - drop * drop))


@pytest.mark.parametrize(
    ("lost", "gained", "n"), [(5, 1, 100), (1, 5, 100), (12, 9, 400), (3, 0, 60), (0, 3, 60), (40, 10, 90), (7, 7, 50)]
)
def test_limits_are_those_of_the_maximised_likelihood(lost: int, gained: int, n: int) -> None:
    z, observed = norm.ppf(0.95), (lost - gained) / n
    limits = statistics.tango_limits(lost, gained, n, 0.95)
    lower = brentq(lambda drop: _score_by_likelihood(drop, lost, gained, n) - z, -0.999, observed - 1e-9)
    upper = brentq(lambda drop: _score_by_likelihood(drop, lost, gained, n) + z, observed + 1e-9, 0.999)
    assert limits.lower == pytest.approx(lower, abs=1e-6)
    assert limits.upper == pytest.approx(upper, abs=1e-6)


@pytest.mark.parametrize(("lost", "n"), [(0, 20), (1, 20), (7, 300), (20, 20)])
def test_one_way_limits_are_clopper_and_pearsons(lost: int, n: int) -> None:
    lower = binomtest(lost, n, alternative="greater").proportion_ci(0.95, method="exact").low
    upper = binomtest(lost, n, alternative="less").proportion_ci(0.95, method="exact").high
    limits = statistics.one_way_limits(lost / n, n, 0.95)
    assert limits.upper == pytest.approx(upper)
    assert limits.lower == pytest.approx(lower if lost else -upper)
    mirrored = statistics.one_way_limits(-lost / n, n, 0.95)
    assert (mirrored.lower, mirrored.upper) == pytest.approx((-limits.upper, -limits.lower))


@settings(max_examples=200, deadline=None)
@given(n=st.integers(20, 3000), data=st.data(), margin=st.sampled_from([0.0, 0.005, 0.01, 0.05]))
def test_p_value_and_lower_limit_agree(n: int, data: st.DataObject, margin: float) -> None:
    lost = data.draw(st.integers(0, n // 3))
    gained = data.draw(st.integers(0, n // 3))
    limits = statistics.paired_limits(lost, gained, n, 0.95)
    assert limits.lower <= (lost - gained) / n <= limits.upper
    p = statistics.paired_p(lost, gained, n, margin)
    if abs(p - 0.05) > 1e-6:
        assert (p < 0.05) == (limits.lower > margin)


def _error_rates(n: int, margin: float, p_gained: float) -> tuple[float, float]:
    """Exact shares of false PASS and of false FAIL where the true drop is the margin, by enumeration of all sets."""
    p_changed = 2 * p_gained + margin
    false_pass = false_fail = 0.0
    for changed in range(int(binom.ppf(1e-7, n, p_changed)), int(binom.ppf(1 - 1e-7, n, p_changed)) + 1):
        for lost in range(changed + 1):
            share = binom.pmf(changed, n, p_changed) * binom.pmf(lost, changed, (p_gained + margin) / p_changed)
            if share < 1e-9:
                continue
            false_pass += share * (statistics.paired_limits(lost, changed - lost, n, 0.95).upper <= margin)
            false_fail += share * (statistics.paired_p(lost, changed - lost, n, margin) <= 0.05)
    return false_pass, false_fail


@pytest.mark.parametrize("n", [150, 268, 299, 300, 450])
@pytest.mark.parametrize("p_gained", [0.0, 0.002, 0.01])
def test_exact_error_rates_at_the_margin(n: int, p_gained: float) -> None:
    false_pass, false_fail = _error_rates(n, 0.01, p_gained)
    assert false_pass <= 0.051
    assert false_fail <= 0.056


def test_tangos_interval_alone_would_be_wrong_more_often() -> None:
    # 268 samples without a change pass by Tango's limit, and 6.8 % of all sets with a true loss of 1 point look so.
    assert statistics.tango_limits(0, 0, 268, 0.95).upper <= 0.01
    assert binom.pmf(0, 268, 0.01) > 0.067
    assert statistics.paired_limits(0, 0, 298, 0.95).upper > 0.01 >= statistics.paired_limits(0, 0, 299, 0.95).upper
    assert statistics.smallest_passing_set(0.01, 0.05) == 299


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (5, 1), (1, 5), (30, 12)])
def test_mcnemar_is_a_binomial_test_of_the_changed(lost: int, gained: int) -> None:
    expected = binomtest(lost, lost + gained, 0.5).pvalue if lost + gained else 1.0
    assert statistics.mcnemar_p(lost, gained) == pytest.approx(expected)


def test_holm_by_its_definition() -> None:
    p_values = [0.04, 0.01, 0.5, 0.012]
    adjusted = statistics.holm(p_values)
    # Sorted: 0.01 * 4, 0.012 * 3, 0.04 * 2, 0.5 * 1, never below the one before.
    assert adjusted == pytest.approx((0.08, 0.04, 0.5, 0.04))
    assert statistics.holm([]) == ()


@pytest.mark.parametrize(("n", "margin", "alpha"), [(300, 0.01, 0.05), (525, 0.01, 0.0125), (40, 0.05, 0.05)])
def test_smallest_detectable_drop_by_trying_all(n: int, margin: float, alpha: float) -> None:
    found = statistics.smallest_detectable(n, margin, alpha)
    fails = [lost for lost in range(n + 1) if statistics.paired_limits(lost, 0, n, 1 - alpha).lower > margin]
    assert found == fails[0]
    passing = [lost for lost in range(n + 1) if statistics.paired_limits(lost, 0, n, 1 - alpha).upper <= margin]
    assert statistics.most_lost_that_pass(n, margin, 1 - alpha) == (max(passing) if passing else None)


def test_nothing_is_detectable_in_a_handful() -> None:
    assert statistics.smallest_detectable(2, 0.5, 0.05) is None
    assert statistics.most_lost_that_pass(2, 0.5, 0.95) is None


@pytest.mark.parametrize(("p_lost", "p_gained", "margin"), [(0.03, 0.0, 0.01), (0.05, 0.02, 0.01), (0.08, 0.03, 0.03)])
def test_named_sample_size_finds_a_drop_of_two_points_more(p_lost: float, p_gained: float, margin: float) -> None:
    assert p_lost - p_gained == pytest.approx(margin + 0.02)
    n = statistics.samples_needed(p_lost, p_gained, margin, 0.05)
    assert n is not None
    assert _share_failed(n, p_lost, p_gained, margin) >= 0.8
    assert _share_failed(n // 4, p_lost, p_gained, margin) < 0.8


def _share_failed(n: int, p_lost: float, p_gained: float, margin: float) -> float:
    random = np.random.default_rng(1)
    sets = random.multinomial(n, [p_lost, p_gained, 1 - p_lost - p_gained], 1000)
    return float(np.mean([statistics.paired_p(lost, gained, n, margin) <= 0.05 for lost, gained, _ in sets]))


def test_named_sample_size_passes_what_is_within_the_margin() -> None:
    n = statistics.samples_needed(0.004, 0.002, 0.01, 0.05)
    assert n is not None
    random = np.random.default_rng(2)
    sets = random.multinomial(n, [0.004, 0.002, 0.994], 1000)
    passed = [statistics.paired_limits(lost, gained, n, 0.95).upper <= 0.01 for lost, gained, _ in sets]
    assert np.mean(passed) >= 0.8
    assert statistics.samples_needed(0.0, 0.0, 0.01, 0.05) == 299
    assert statistics.samples_needed(0.03, 0.02, 0.01, 0.05) is None


def _skewed(n: int = 150) -> NDArray[np.float64]:
    return np.random.default_rng(5).exponential(1.0, n) - 0.9


def test_bootstrap_limits_are_scipys() -> None:
    values = _skewed()
    made = statistics.bootstrap_drop(lambda index: values[index].mean(axis=-1), len(values), 0.95, 0.0)
    other = bootstrap((values,), np.mean, n_resamples=1999, confidence_level=0.9, method="BCa", rng=0)
    assert made.drop == pytest.approx(values.mean())
    # Other draws, so equal but for the noise of 1,999 resamples.
    noise = 0.1 * made.standard_error
    assert made.limits.lower == pytest.approx(other.confidence_interval.low, abs=2 * noise)
    assert made.limits.upper == pytest.approx(other.confidence_interval.high, abs=3 * noise)
    assert made.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(len(values)), rel=0.1)


@pytest.mark.parametrize("margin", [-0.1, 0.0, 0.05, 0.1])
def test_bootstrap_p_is_where_the_lower_limit_meets_the_margin(margin: float) -> None:
    values = _skewed()
    statistic = lambda index: values[index].mean(axis=-1)  # noqa: E731
    p = statistics.bootstrap_drop(statistic, len(values), 0.95, margin).p
    at_p = statistics.bootstrap_drop(statistic, len(values), 1 - p, margin)
    assert at_p.limits.lower == pytest.approx(margin, abs=0.15 * at_p.standard_error)


def test_samples_that_all_change_alike_leave_nothing_to_resample() -> None:
    made = statistics.bootstrap_drop(lambda index: np.full(index.shape[:-1], 0.25), 30, 0.95, 0.1)
    assert (made.limits, made.p) == (statistics.Limits(0.25, 0.25), 0.0)
