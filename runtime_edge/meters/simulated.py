"""A sensor over a known power, which proves everything behind the sensor. Its source says ``simulated``."""

from __future__ import annotations

import csv
import math
import time
from bisect import bisect_right
from pathlib import Path
from typing import Callable, List, Mapping, Sequence, Tuple

from runtime_edge.meters.integral import Power
from runtime_edge.meters.meter import Meter, MeterError
from runtime_edge.meters.rails import Total
from runtime_edge.meters.sampled import SampledMeter

RATE_HZ = 75.0
"""Of an INA3221 that tells one rail: two cycles of 6.6 ms."""

STEP_W = 0.04
"""Of an INA3221 with 5 mOhm at 5 V."""


class Trace:
    """Power over time: straight lines between points, over and over. Two points of one time are a step.

    Args:
        points: seconds, which never decrease and begin with 0, and watts.

    Raises:
        MeterError: they are something else.
    """

    def __init__(self, points: Sequence[Tuple[float, float]]) -> None:
        self._times, self._watts = [at for at, _ in points], [watts for _, watts in points]
        if not points or self._times[0] != 0 or self._times[-1] <= 0 or sorted(self._times) != self._times:
            raise MeterError("a trace begins with 0 s and its times never decrease")
        if not all(math.isfinite(value) for point in points for value in point):
            raise MeterError("a trace holds finite numbers")

    def power_w(self, time_ns: int) -> float:
        """The power at a moment; the trace begins at 0 of the clock and repeats."""
        at = time_ns % round(self._times[-1] * 1e9) / 1e9
        i = min(bisect_right(self._times, at), len(self._times) - 1)
        before, after = self._times[i - 1], self._times[i]
        share = (at - before) / (after - before) if after > before else 1.0
        return self._watts[i - 1] + share * (self._watts[i] - self._watts[i - 1])


class SimulatedSensor:
    """Tells the power of this moment in whole steps, as often as a real one would.

    Args:
        name: of the trace.
        trace: what it tells.
        rate_hz: of the sensor.
        step_w: of the sensor.
        clock_ns: of the windows.
    """

    age_s = 0.0
    rails: Tuple[str, ...] = ("simulated",)

    def __init__(
        self,
        name: str,
        trace: Trace,
        rate_hz: float = RATE_HZ,
        step_w: float = STEP_W,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.name = f"{name} (simulated)"
        self.interval_s = 1 / rate_hz
        self._trace, self._step_w, self._clock_ns = trace, step_w, clock_ns

    def read(self, rails: Tuple[str, ...]) -> Mapping[str, Power]:
        """The power now."""
        watts = self._trace.power_w(self._clock_ns())
        return dict.fromkeys(rails, Power(round(watts / self._step_w) * self._step_w, self._step_w))


def read_trace(path: Path) -> Trace:
    """A file of lines ``seconds,watts``; a first line without numbers is a header.

    Raises:
        MeterError: it is something else.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, ValueError) as error:
        raise MeterError(f'"{path}" cannot be read: {error}') from error
    points: List[Tuple[float, float]] = []
    for number, row in enumerate(rows, 1):
        try:
            seconds, watts = row
            points.append((float(seconds), float(watts)))
        except ValueError as error:
            if number > 1:
                raise MeterError(f'"{path}:{number}" is not "seconds,watts"') from error
    try:
        return Trace(points)
    except MeterError as error:
        raise MeterError(f'"{path}": {error}') from error


def simulated_meter(path: Path, rate_hz: float, step_w: float) -> Meter:
    """A meter over a trace.

    Raises:
        MeterError: the trace cannot be read, or rate or step is no positive number.
    """
    if not (0 < rate_hz < math.inf and 0 < step_w < math.inf):
        raise MeterError(f'"{rate_hz:g},{step_w:g}" are no rate and step')
    sensor = SimulatedSensor(path.name, read_trace(path), rate_hz, step_w)
    return SampledMeter(sensor, Total(sensor.rails, "nothing: no board drew this power"))
