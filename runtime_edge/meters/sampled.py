"""Meters that tell power only: a thread reads them, or a stream brings their values, and `Integral` sums them up."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from typing import Callable, Iterator, Mapping, Optional, Protocol, Tuple

from runtime_edge.meters.integral import Integral, Power
from runtime_edge.meters.meter import SAMPLED, Meter, MeterError, Reading, unread
from runtime_edge.meters.rails import Total
from splitboard.contract.record import MeterFacts

Clock = Callable[[], int]

MAX_GAP_INTERVALS = 20
"""Of the sensor's own interval: samples further apart than this and than `MAX_GAP_S` are not joined."""

MAX_GAP_S = 1.0
_TRIES = 3
_SWITCH_S = 0.0005
_SWEEP = 97
"""Samples in which the interval grows from the shortest to the longest; a prime."""

_PARTS_EVERY = 10
"""Rails beside the total are read with every so many samples: what they cost in time the total has for itself."""


class Sensor(Protocol):
    """Something whose power can be read now.

    Attributes:
        name: for people; contains ``estimate`` or ``simulated`` where it is one.
        rails: that `read` tells.
        interval_s: shortest time between two readings that differ.
        age_s: how old a reading may be when it is told: the conversion that it waited for.
    """

    name: str
    rails: Tuple[str, ...]
    interval_s: float
    age_s: float

    def read(self, rails: Tuple[str, ...]) -> Mapping[str, Power]:
        """Power of these rails.

        Raises:
            MeterError: this time it failed.
        """


class SampledMeter(Meter):
    """Reads a sensor over and over in a thread, and once more whenever the meter is read.

    So a window begins and ends with a sample. The intervals between samples sweep from one to one and a half of the
    sensor's own: samples at equal times can keep step with a load of constant period (inference after inference) and
    see only its peaks or only its valleys, which no length of a window makes good.

    While it runs, threads of this process hand Python's lock over ten times as fast as usual: a sample that waits for
    code that computes in Python comes late, and what happens in between is lost.

    Args:
        sensor: what to read.
        total: which rails make the total.
        clock_ns: of the windows.
    """

    def __init__(self, sensor: Sensor, total: Total, clock_ns: Clock = time.perf_counter_ns) -> None:
        self.source = source_text(sensor.name, total)
        self._sensor, self._total, self._clock_ns = sensor, total, clock_ns
        self._main = total.rails or sensor.rails
        self._parts = tuple(rail for rail in sensor.rails if rail not in self._main)
        self._integral = Integral(total.rails, max_gap_s(sensor.interval_s), total.reason)
        self._parts_integral = Integral((), max_gap_s(sensor.interval_s * _PARTS_EVERY))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: Optional[threading.Thread] = None
        self._due_ns = 0
        self._switch_s = 0.0

    def facts(self) -> Optional[MeterFacts]:
        """Of the sensor; its power resolution is the coarsest that was seen."""
        return sampled_facts(self.source, self._sensor.rails, self._total, self._sensor.interval_s, self._integral)

    def __enter__(self) -> SampledMeter:
        self._stop.clear()
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(min(_SWITCH_S, self._switch_s))
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            sys.setswitchinterval(self._switch_s)

    def _run(self) -> None:
        i, pause_s = 0, 0.0
        while not self._stop.wait(pause_s):
            pause_s = self.take(i)
            i += 1

    def take(self, i: int) -> float:
        """Takes sample ``i``, as the thread does.

        Returns:
            Seconds to wait before the next one.
        """
        start_ns = self._clock_ns()
        with self._lock:
            self._sample(self._main, self._integral)
            if self._parts and i % _PARTS_EVERY == 0:
                self._sample(self._parts, self._parts_integral)
        shortest_ns = max(round(self._sensor.interval_s * 1e9), self._clock_ns() - start_ns)
        sweep_ns = round(shortest_ns * (1 + i % _SWEEP / _SWEEP / 2))
        # What this sample was late the next one need not be, unless the sensor would be asked too soon.
        self._due_ns = max(min(self._due_ns, start_ns) + sweep_ns, start_ns + shortest_ns)
        return max(0.0, (self._due_ns - self._clock_ns()) / 1e9)

    def _sample(self, rails: Tuple[str, ...], integral: Integral) -> Optional[int]:
        """When it was taken, ``None`` where the sensor failed."""
        start_ns = self._clock_ns()
        try:
            powers = self._sensor.read(rails)
        except MeterError as error:
            integral.fail(str(error))
            return None
        taken_ns = self._clock_ns() - start_ns
        at_ns = start_ns + taken_ns // 2
        integral.add(at_ns, taken_ns / 2e9 + self._sensor.age_s, powers)
        return at_ns

    def read(self) -> Reading:
        """The sums up to a sample that is taken now."""
        with self._lock:
            found = self._up_to_now(self._main, self._integral)
            if not self._parts:
                return found
            parts = self._up_to_now(self._parts, self._parts_integral)
            return replace(found, rails_j={**found.rails_j, **parts.rails_j})

    def _up_to_now(self, rails: Tuple[str, ...], integral: Integral) -> Reading:
        for _ in range(_TRIES):
            at_ns = self._sample(rails, integral)
            if at_ns is not None:
                return integral.at(at_ns)
        return integral.at(self._clock_ns())


class Stream(Protocol):
    """Something that sends its values when it likes.

    Attributes:
        name: for people.
        rails: of every sample.
        interval_s: usual time between two samples.
        blur_s: how far the time of a sample may be off.
    """

    name: str
    rails: Tuple[str, ...]
    interval_s: float
    blur_s: float

    def samples(self, stop: threading.Event) -> Iterator[Tuple[int, Optional[Mapping[str, Power]]]]:
        """Time (of the clock of the windows) and power by rail, ``None`` for what is no sample, until ``stop`` is set.

        Raises:
            MeterError: the stream has ended.
        """

    def close(self) -> None:
        """Ends what `samples` may be waiting for."""


class StreamMeter(Meter):
    """Sums up what a stream brings; a reading waits for the first sample behind its moment and divides the interval.

    Args:
        stream: what brings the samples.
        total: which rails make the total.
        clock_ns: of the windows.
    """

    def __init__(self, stream: Stream, total: Total, clock_ns: Clock = time.perf_counter_ns) -> None:
        self.source = source_text(stream.name, total)
        self._stream, self._total, self._clock_ns = stream, total, clock_ns
        self._integral = Integral(total.rails, max_gap_s(stream.interval_s), total.reason)
        self._news = threading.Condition()
        self._stop = threading.Event()
        self._ended: Optional[str] = None
        self._thread: Optional[threading.Thread] = None

    def facts(self) -> Optional[MeterFacts]:
        """Of the stream; its power resolution is the coarsest that was seen."""
        return sampled_facts(self.source, self._stream.rails, self._total, self._stream.interval_s, self._integral)

    def __enter__(self) -> StreamMeter:
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)
        self._thread.start()
        with self._news:
            self._news.wait_for(self._started, 2 * max_gap_s(self._stream.interval_s))
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._stream.close()
        if self._thread is not None:
            self._thread.join()

    def _started(self) -> bool:
        return self._ended is not None or self._integral.last_ns is not None

    def _run(self) -> None:
        ended = "the meter was closed"
        try:
            for time_ns, powers in self._stream.samples(self._stop):
                with self._news:
                    if powers is None:
                        self._integral.fail("something that is no number")
                    else:
                        self._integral.add(time_ns, self._stream.blur_s, powers)
                    self._news.notify_all()
        except MeterError as error:
            ended = str(error)
        with self._news:
            self._ended = ended
            self._news.notify_all()

    def read(self) -> Reading:
        """The sums at this moment, as soon as a later sample has come."""
        at_ns = self._clock_ns()

        def passed() -> bool:
            last_ns = self._integral.last_ns
            return self._ended is not None or (last_ns is not None and last_ns >= at_ns)

        with self._news:
            self._news.wait_for(passed, 2 * max_gap_s(self._stream.interval_s))
            if self._ended is not None and (self._integral.last_ns is None or self._integral.last_ns < at_ns):
                return unread(at_ns, self._ended, n_failed=self._integral.n_failed)
            return self._integral.at(at_ns)


def max_gap_s(interval_s: float) -> float:
    """Samples further apart are not joined."""
    return max(MAX_GAP_S, MAX_GAP_INTERVALS * interval_s)


def source_text(name: str, total: Total) -> str:
    """Meter and rails, e.g. ``ina3221: VDD_IN``."""
    return f"{name}: {' + '.join(total.rails)}" if total.rails else f"{name}: no total"


def sampled_facts(
    source: str, rails: Tuple[str, ...], total: Total, interval_s: float, integral: Integral
) -> MeterFacts:
    """The facts of a meter that is sampled."""
    step_w = integral.largest_step_w
    return MeterFacts(source, SAMPLED, rails, total.rails, total.leaves_out, interval_s, step_w, None)
