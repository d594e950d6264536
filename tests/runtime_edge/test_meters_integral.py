"""Energy from samples against the exact integral of the power that was sampled.

No time passes: the clock is a number.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sysfs.traces import BURSTS, RAMPS, STEPS, Points, exact_j

from runtime_edge.bench.energy import between
from runtime_edge.meters.integral import Integral, Power
from runtime_edge.meters.meter import MeterError
from runtime_edge.meters.rails import Total
from runtime_edge.meters.sampled import SampledMeter
from runtime_edge.meters.simulated import SimulatedSensor, Trace
from splitboard.contract.record import Window


class Clock:
    """Nanoseconds that only the test moves."""

    def __init__(self, start_s: float = 0.0) -> None:
        self.now_ns = round(start_s * 1e9)

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


class Bench:
    """A meter over a trace, sampled as its own thread would.

    Args:
        points: of the trace.
        interval_s: shortest time between two samples.
        step_w: resolution.
        read_s: how long a reading takes; the moment that it tells lies at ``share`` of that.
        start_s: of the clock.
        mean_s: it tells the mean of so long before.
    """

    def __init__(
        self,
        points: Points,
        interval_s: float,
        step_w: float,
        read_s: float = 0.0,
        share: float = 0.5,
        start_s: float = 0.0,
        mean_s: float = 0.0,
    ) -> None:
        self.clock, self._read_s, self._share = Clock(start_s + 1.0), read_s, share
        self._points, self._step_w, self._mean_s = points, step_w, mean_s
        self._sensor = SimulatedSensor("trace", Trace(points), 1 / interval_s, step_w, self.clock)
        self.name, self.rails, self.interval_s, self.age_s = "slow", self._sensor.rails, interval_s, mean_s
        self.meter = SampledMeter(self, Total(self.rails, ""), self.clock)
        self._i = 0

    def read(self, rails: tuple[str, ...]) -> Mapping[str, Power]:
        self.clock.advance(self._share * self._read_s)
        powers = self._averaged() if self._mean_s else self._sensor.read(rails)
        self.clock.advance((1 - self._share) * self._read_s)
        return powers

    def _averaged(self) -> Mapping[str, Power]:
        span = Window(self.clock.now_ns - round(self._mean_s * 1e9), self.clock.now_ns, None, "", 0)
        watts = exact_j(self._points, span) / self._mean_s
        return dict.fromkeys(self.rails, Power(round(watts / self._step_w) * self._step_w, self._step_w))

    def window(self, seconds: float) -> Window:
        start = self.meter.read()
        end_ns = self.clock.now_ns + round(seconds * 1e9)
        while self.clock.now_ns < end_ns:
            self.clock.advance(self.meter.take(self._i))
            self._i += 1
        return between(self.meter.source, start, self.meter.read(), 1)


def joules(window: Window) -> tuple[float, float]:
    if window.energy_j is None or window.error_j is None:
        raise RuntimeError(window.source)
    return window.energy_j, window.error_j


LOADS = {"steps": STEPS, "ramps": RAMPS, "bursts": BURSTS}

# Interval, duration of a reading, step of power and averaging as they are on the boards.
SENSORS = {
    "ina3221, VDD_IN, 5 V": (0.0132, 0.0132, 0.04, 0.0),
    "ina226, 100 mOhm": (0.0352, 0.001, 0.003, 0.0352),
    "simulated": (1 / 75, 0.0001, 0.04, 0.0),
}


@pytest.mark.parametrize("sensor", SENSORS)
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("start_s", [0.0, 0.217, 3.3, 1234.567])
def test_a_window_of_ten_seconds_is_right_within_one_percent(load: str, sensor: str, start_s: float) -> None:
    interval_s, read_s, step_w, mean_s = SENSORS[sensor]
    bench = Bench(LOADS[load], interval_s, step_w, read_s, 0.5, start_s, mean_s)
    windows = [bench.window(10.0) for _ in range(3)]
    for window in windows:
        energy_j, error_j = joules(window)
        exact = exact_j(LOADS[load], window)
        assert energy_j == pytest.approx(exact, rel=0.01)
        assert abs(energy_j - exact) <= error_j
        assert 10.0 <= (window.end_ns - window.start_ns) / 1e9 < 10.2
        assert window.n_power_samples == pytest.approx(10 / max(1.25 * interval_s, read_s), rel=0.1)


@pytest.mark.parametrize("load", LOADS)
def test_coarse_steps_are_in_the_bound(load: str) -> None:
    """A rail of an AGX Orin: 20 mA at 19.6 V, and the other rails take 26 ms of every 40."""
    bench = Bench(LOADS[load], 0.0132, 0.39, 0.0396)
    window = bench.window(10.0)
    energy_j, error_j = joules(window)
    assert abs(energy_j - exact_j(LOADS[load], window)) <= error_j
    assert error_j > 0.39 * 10


def test_the_exact_integral_is_that_of_a_finer_sum() -> None:
    window = Window(123_456_789, 9_876_543_210, None, "", 0)
    trace, n = Trace(RAMPS), 200_000
    length = (window.end_ns - window.start_ns) / n
    fine = sum(trace.power_w(round(window.start_ns + (i + 0.5) * length)) for i in range(n)) * length / 1e9
    assert exact_j(RAMPS, window) == pytest.approx(fine, rel=1e-6)


@st.composite
def loads(draw: st.DrawFn) -> Points:
    """Levels that last, with ramps or steps between: every high and every low is longer than a sampling interval."""
    points: Points = []
    at = 0.0
    for _ in range(draw(st.integers(1, 6))):
        watts = draw(st.floats(-1, 40))
        at += draw(st.sampled_from([0.0, 0.003, 0.05, 0.4])) if points else 0.0
        points.append((at, watts))
        at += draw(st.floats(0.11, 1.5))
        points.append((at, watts))
    return points


@settings(max_examples=150, deadline=None)
@given(
    points=loads(),
    interval_s=st.floats(0.01, 0.05),
    read_s=st.floats(0, 0.02),
    share=st.floats(0, 1),
    step_w=st.floats(1e-3, 1.0),
    start_s=st.floats(0, 100),
    seconds=st.floats(0.05, 6),
)
def test_the_stated_bound_holds(
    points: Points, interval_s: float, read_s: float, share: float, step_w: float, start_s: float, seconds: float
) -> None:
    bench = Bench(points, interval_s, step_w, read_s, share, start_s)
    bench.window(0.2)  # the meter has run for a while, as it has before every window of a run
    window = bench.window(seconds)
    if window.energy_j is None:  # all below half a step, which is not taken for a measurement
        assert window.source == "slow: simulated: the sensor tells 0 W all the time"
        assert abs(exact_j(points, window)) <= step_w * (window.end_ns - window.start_ns) / 1e9
        return
    energy_j, error_j = joules(window)
    assert abs(energy_j - exact_j(points, window)) <= error_j + 1e-9


@settings(max_examples=100, deadline=None)
@given(points=loads(), at=st.lists(st.floats(0.5, 9.5), min_size=2, max_size=2, unique=True))
def test_the_bound_holds_for_a_window_between_samples(points: Points, at: list[float]) -> None:
    """As of a meter that sends its values when it likes."""
    trace, integral = Trace(points), Integral(("x",), 1.0)
    for i in range(110):
        time_ns = round(i * 0.0917e9)
        integral.add(time_ns, 0.0, {"x": Power(trace.power_w(time_ns), 0.0)})
    first, last = sorted(round(one * 1e9) for one in at)
    start = integral.at(first)
    window = between("m", start, integral.at(last), 1)
    if window.energy_j is None:
        assert window.source == "m: the sensor tells 0 W all the time"
        assert exact_j(points, window) == pytest.approx(0, abs=40 * 0.0917)
        return
    energy_j, error_j = joules(window)
    assert (window.start_ns, window.end_ns) == (first, last)
    assert abs(energy_j - exact_j(points, window)) <= error_j + 1e-9


def test_a_load_that_keeps_step_with_equal_pauses_is_not_mistaken() -> None:
    """Every tenth of a second 50 ms of work, of which a sample every tenth of a second sees one half only."""
    points = [(0.0, 2.0), (0.05, 2.0), (0.05, 8.0), (0.1, 8.0)]
    bench = Bench(points, 0.05, 0.001)
    window = bench.window(30.0)
    energy_j, _ = joules(window)
    equal = [Trace(points).power_w(round(i * 0.1e9)) for i in range(300)]
    assert set(equal) == {2.0}
    assert energy_j == pytest.approx(exact_j(points, window), rel=0.03)


def test_negative_power_is_kept() -> None:
    bench = Bench([(0, -0.392), (5, -0.392)], 0.02, 0.392)
    energy_j, _ = joules(bench.window(2.0))
    assert energy_j == pytest.approx(-0.784, rel=0.02)


class Failing(Bench):
    """Fails between two moments."""

    down_s: tuple[float, float] = (math.inf, math.inf)

    def read(self, rails: tuple[str, ...]) -> Mapping[str, Power]:
        if self.down_s[0] <= self.clock.now_ns / 1e9 < self.down_s[1]:
            self.clock.advance(0.001)
            raise MeterError("no such device")
        return super().read(rails)


def test_a_few_failed_readings_are_counted_and_paid_for() -> None:
    bench, sound = (Failing(STEPS, 0.02, 0.01) for _ in range(2))
    bench.down_s = (1.5, 2.0)  # over the step at 1.7 s
    window, undisturbed = bench.window(10.0), sound.window(10.0)
    energy_j, error_j = joules(window)
    assert window.n_failed == pytest.approx(0.5 / 0.025, abs=3)
    assert undisturbed.n_failed == 0
    assert error_j > joules(undisturbed)[1] + 1.0
    assert abs(energy_j - exact_j(STEPS, window)) <= error_j


def test_a_gap_is_no_energy() -> None:
    bench = Failing(STEPS, 0.02, 0.01)
    bench.down_s = (2.0, 3.3)
    window = bench.window(10.0)
    assert (window.energy_j, window.error_j) == (None, None)
    assert window.source.startswith("slow: simulated: no power sample for 1.3")
    assert window.source.endswith("s: no such device")
    after = bench.window(10.0)
    energy_j, error_j = joules(after)
    assert abs(energy_j - exact_j(STEPS, after)) <= error_j


def test_a_sensor_that_dies_is_no_energy() -> None:
    bench = Failing(STEPS, 0.02, 0.01)
    bench.down_s = (4.0, math.inf)
    window = bench.window(10.0)
    assert (window.energy_j, window.source) == (None, "slow: simulated: no power sample: no such device")
    assert bench.meter.read_j() is None


def test_a_sensor_that_tells_nothing_is_no_energy() -> None:
    window = Bench([(0, 0.0), (5, 0.0)], 0.02, 0.01).window(10.0)
    assert (window.energy_j, window.source) == (None, "slow: simulated: the sensor tells 0 W all the time")


def test_rails_are_summed_apart_and_the_total_of_its_own_rails() -> None:
    integral = Integral(("a", "b"), 1.0)
    powers: Sequence[tuple[float, float, float]] = [(1, 2, 30), (3, 2, 30), (3, 4, 30)]
    for i, told in enumerate(powers):
        integral.add(i * 10**8, 0.0, {rail: Power(watts, 0.0) for rail, watts in zip("abc", told, strict=True)})
    reading = integral.at(2 * 10**8)
    assert reading.rails_j == pytest.approx({"a": 0.5, "b": 0.5, "c": 6.0})
    assert reading.energy_j == pytest.approx(1.0)
    assert reading.n_samples == 3


def test_without_a_total_the_rails_are_there_and_the_reason() -> None:
    integral = Integral((), 1.0, 'unknown rail "X"')
    for time_ns in (0, 10**8):
        integral.add(time_ns, 0.0, {"X": Power(2.0, 0.0)})
    reading = integral.at(10**8)
    assert (reading.energy_j, reading.reason) == (None, 'unknown rail "X"')
    assert reading.rails_j == pytest.approx({"X": 0.2})


def test_a_sample_that_is_earlier_counts_as_failed() -> None:
    integral = Integral(("x",), 1.0)
    for time_ns in (0, 10**8, 10**8, 5 * 10**7, 2 * 10**8):
        integral.add(time_ns, 0.0, {"x": Power(2.0, 0.0)})
    reading = integral.at(2 * 10**8)
    assert (reading.n_samples, reading.n_failed) == (3, 1)
    assert reading.energy_j == pytest.approx(0.4)


def test_the_trace() -> None:
    trace = Trace(RAMPS)
    times = [at for at, _ in RAMPS]
    for at_s in (0.0, 0.65, 1.3, 1.5, 2.25, 3.4, 4.69, 4.7 + 0.65):
        i = bisect_right(times, at_s % 4.7)
        (a, p), (b, q) = RAMPS[i - 1], RAMPS[i]
        assert trace.power_w(round(at_s * 1e9)) == pytest.approx(p + (q - p) * (at_s % 4.7 - a) / (b - a))
    for points in (
        [],
        [(1.0, 2.0), (2.0, 2.0)],
        [(0.0, 1.0)],
        [(0.0, 1.0), (2.0, 1.0), (1.0, 1.0)],
        [(0.0, math.nan), (1.0, 1.0)],
    ):
        with pytest.raises(MeterError, match="a trace"):
            Trace(points)
