"""Meters that count joules themselves: nothing has to be sampled, so nothing is missed between two readings."""

from __future__ import annotations

import time
from typing import Callable, Dict, Mapping, Optional, Tuple

from runtime_edge.meters.meter import COUNTER, Meter, MeterError, Reading, unread
from splitboard.contract.record import MeterFacts

Clock = Callable[[], int]


class WrappingCounter:
    """A register that begins again at zero after ``range_``; it must be read at least once per round.

    Args:
        read: the register; may raise `MeterError`.
        range_: values that it takes, in its own unit.
        unit_j: joules per count.
    """

    def __init__(self, read: Callable[[], int], range_: int, unit_j: float) -> None:
        self._read, self._range, self._unit_j = read, range_, unit_j
        self._last = read()
        self._total = 0

    def __call__(self) -> float:
        """Joules since it was made.

        Raises:
            MeterError: it cannot be read.
        """
        now = self._read()
        step = now - self._last
        self._total += step if step >= 0 else step + self._range
        self._last = now
        return self._total * self._unit_j


class CounterMeter(Meter):
    """Counters of joules by rail, their sum as the total.

    Args:
        source: meter and rails.
        counters: cumulative joules by rail; each may raise `MeterError`.
        leaves_out: what draws power beside these rails.
        resolution_j: one count.
        update_s: how old a count may be.
        clock_ns: of the windows.
    """

    def __init__(
        self,
        source: str,
        counters: Mapping[str, Callable[[], float]],
        leaves_out: str,
        resolution_j: float,
        update_s: float,
        clock_ns: Clock = time.perf_counter_ns,
    ) -> None:
        self.source = source
        self._counters = dict(counters)
        self._leaves_out, self._resolution_j, self._update_s = leaves_out, resolution_j, update_s
        self._clock_ns = clock_ns
        self._last: Optional[Tuple[int, float]] = None
        self._power_w = 0.0

    def facts(self) -> Optional[MeterFacts]:
        """Of all counters."""
        rails = tuple(self._counters)
        return MeterFacts(
            self.source, COUNTER, rails, rails, self._leaves_out, self._update_s, None, self._resolution_j
        )

    def read(self) -> Reading:
        """The counters now.

        A count may be ``update_s`` old, which is worth as much at the mean power since the last reading; both ends of a
        window pay for it.
        """
        time_ns = self._clock_ns()
        rails_j: Dict[str, float] = {}
        try:
            for rail, counter in self._counters.items():
                rails_j[rail] = counter()
        except MeterError as error:
            return unread(time_ns, str(error), n_failed=1)
        energy_j = sum(rails_j.values())
        if self._last is not None and time_ns > self._last[0]:
            self._power_w = (energy_j - self._last[1]) / (time_ns - self._last[0]) * 1e9
        self._last = time_ns, energy_j
        edge_j = len(rails_j) * self._resolution_j + self._update_s * abs(self._power_w)
        return Reading(time_ns, energy_j, rails_j, 0.0, edge_j, 0, 0, 0, None)
