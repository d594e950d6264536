"""Traces: what holds when, and when bytes have crossed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from network.traces import Conditions, Trace, constant, from_json, read_trace

SHIPPED = sorted((Path(__file__).parents[2] / "benchmarks" / "traces").glob("*.csv"))


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    rates = draw(st.lists(st.sampled_from((0.0, 1e5, 1e6, 7e6)), min_size=len(lengths), max_size=len(lengths)))
    times = (0.0, *(float(time) / 10 for time in np.cumsum(lengths)))
    conditions = [Conditions(rate, 0.01) for rate in rates]
    conditions[0] = Conditions(1e6, 0.01)
    return Trace(times[:-1], tuple(conditions), times[-1])


@given(traces(), st.floats(0, 20), st.floats(1, 5e5))
def test_bytes_have_crossed_when_the_integral_of_the_rate_says_so(trace: Trace, start_s: float, n_bytes: float) -> None:
    end_s = trace.sent_by(start_s, n_bytes)
    grid = np.linspace(start_s, end_s, 20001)
    middles = (grid[1:] + grid[:-1]) / 2
    bits = sum(trace.at(time).rate_bps for time in middles.tolist()) * (end_s - start_s) / 20000
    assert bits == pytest.approx(8 * n_bytes, rel=0.02, abs=7e6 * (end_s - start_s) / 1000)


def test_a_constant_link_takes_bits_over_rate() -> None:
    assert constant(2e6, 0.0).sent_by(3.0, 250_000) == pytest.approx(4.0)


@given(traces())
def test_a_trace_survives_its_own_json(trace: Trace) -> None:
    assert from_json(trace.as_json) == trace
    assert from_json(constant(1e6, 0.1, 0.5).as_json) == constant(1e6, 0.1, 0.5)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_traces_can_be_read_and_say_that_they_are_synthetic(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# Synthetic")
    trace = read_trace(path)
    assert trace.duration_s == 120
    assert max(one.rate_bps for one in trace.conditions) <= 1e9


def test_there_are_tuning_and_held_out_traces_and_none_is_both() -> None:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in SHIPPED}
    assert len(set(texts.values())) == len(texts)
    assert {name.split("-")[0] for name in texts} == {"constant", "tuning", "held"}


@pytest.mark.parametrize(
    "text",
    ["", "time,rate\n0,1\n", "time_s,rate_mbps,delay_ms,loss\n0,1,1,0\n", "time_s,rate_mbps,delay_ms,loss\n0,1\n1,1\n"],
)
def test_another_form_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="must have"):
        read_trace(path)


@pytest.mark.parametrize(
    ("times", "rates", "end"),
    [((0.5,), (1.0,), 2.0), ((0.0, 0.0), (1.0, 1.0), 2.0), ((0.0,), (1.0, 2.0), 2.0), ((0.0,), (0.0,), 2.0)],
)
def test_a_trace_that_makes_no_sense_is_refused(times: tuple[float, ...], rates: tuple[float, ...], end: float) -> None:
    with pytest.raises(ValueError, match="trace"):
        Trace(times, tuple(Conditions(rate, 0.0) for rate in rates), end)
