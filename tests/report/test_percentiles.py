"""Percentiles and intervals against numpy and their definitions."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from splitboard.report.percentiles import median_interval_ms, percentile_ms, wilson_interval


@pytest.mark.parametrize("n", [20, 21, 100, 999])
@pytest.mark.parametrize("percent", [50, 95])
def test_percentile_is_numpys(n: int, percent: int) -> None:
    samples_ns = np.random.default_rng(n).integers(1, 50_000_000, n).tolist()
    assert percentile_ms(samples_ns, percent) == pytest.approx(np.percentile(samples_ns, percent) / 1e6)


@pytest.mark.parametrize(("percent", "enough"), [(50, 5), (95, 20)])
def test_too_few_samples_support_no_percentile(percent: int, enough: int) -> None:
    assert percentile_ms([1_000_000] * enough, percent) == 1.0
    assert percentile_ms([1_000_000] * (enough - 1), percent) is None
    assert percentile_ms([], percent) is None


def test_a_phase_that_was_not_there_took_no_time() -> None:
    assert percentile_ms([0, 0], 95) == 0.0


def test_median_interval_covers_the_median_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        interval = median_interval_ms((1e6 * rng.lognormal(0.0, 1.0, 61)).astype(int).tolist())
        assert interval is not None
        covered += interval[0] <= 1.0 <= interval[1]
    assert 0.93 <= covered / 2000 <= 0.98


def test_median_interval_of_few_samples_is_their_range() -> None:
    assert median_interval_ms([5_000_000, 1_000_000, 2_000_000, 3_000_000, 4_000_000]) == (1.0, 5.0)
    assert median_interval_ms([1_000_000] * 4) is None


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 656), (1, 1), (600, 656), (656, 656), (3, 7)])
def test_wilson_interval_ends_where_the_share_is_1_96_standard_errors_away(hits: int, n: int) -> None:
    for bound in wilson_interval(hits, n):
        assert 0.0 <= bound <= 1.0
        assert abs(hits / n - bound) == pytest.approx(1.959964 * sqrt(bound * (1 - bound) / n), abs=1e-9)
