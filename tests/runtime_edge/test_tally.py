"""Sums over a run against numpy over its raw samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.loop.answers import softmax
from runtime_edge.loop.session import Answered, TaskAnswer
from runtime_edge.loop.tally import BUCKETS_PER_OCTAVE, Histogram, Tally

WIDTH = 2 ** (1 / BUCKETS_PER_OCTAVE)


@given(st.lists(st.integers(1, 10**13), min_size=1, max_size=200), st.sampled_from([1, 50, 95, 99, 100]))
def test_percentiles_are_within_a_bucket_of_the_nearest_rank(values: list[int], percent: int) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = np.percentile(values, percent, method="inverted_cdf")
    found = histogram.percentile_ns(percent)
    assert found is not None
    assert exact / WIDTH - 1 <= found <= exact * WIDTH + 1


def test_nothing_has_no_percentile() -> None:
    assert Histogram().percentile_ns(50) is None


def done(number: int, split: str, a: TaskAnswer, b: TaskAnswer, failure: str | None = None) -> Answered:
    return Answered(number, split, "", {"a": a, "b": b}, 1_000_000, 1, 0, None, failure, "none")


def test_who_answered_what_and_how_well() -> None:
    tally = Tally(["a", "b"])
    none = TaskAnswer(None, "unavailable", 5)
    left, right = [1.0, 0.0], [0.0, 1.0]
    tally.add(done(0, "s01", TaskAnswer(left, "exit", 10), TaskAnswer(right, "server", 99)), {"a": 0, "b": 0})
    tally.add(done(1, "s01", TaskAnswer(left, "exit", 10), TaskAnswer(left, "server", 99)), {"a": 1, "b": 0})
    tally.add(done(2, "s09", TaskAnswer(right, "local", 30), none, "timeout"), {"a": 1, "b": 0})
    tally.add(done(3, "s01", TaskAnswer(right, "exit", 10), none, "closed"), {})
    sums = tally.sums(interrupted=False)
    assert (sums.n, sums.splits, sums.switches) == (4, {"s01": 3, "s09": 1}, 2)
    assert sums.failures == {"timeout": 1, "closed": 1}
    assert sums.late == 0
    late = Tally(["a", "b"], deadline_ns=999_999)
    late.add(done(0, "s01", none, none), {})
    assert late.sums(interrupted=True).late == 1
    a, b = sums.tasks["a"], sums.tasks["b"]
    assert (a.answers, a.exit_rate, a.n_labelled) == ({"exit": 3, "local": 1}, 0.75, 3)
    assert a.accuracy == pytest.approx(2 / 3)
    assert a.accuracy_by == {"exit": 0.5, "local": 1.0}
    assert (b.answers, b.n_labelled, b.accuracy) == ({"server": 2, "unavailable": 2}, 2, 0.5)
    assert b.p50_ns == pytest.approx(99, rel=0.02)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=10))
def test_softmax(logits: list[float]) -> None:
    powers = np.exp(np.asarray(logits))
    np.testing.assert_allclose(softmax(logits), powers / powers.sum(), rtol=1e-9)
