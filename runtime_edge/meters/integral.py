"""Energy from samples of power: trapezoids over the real sample times, with a bound of the error."""

from __future__ import annotations

from bisect import bisect_left
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple

from runtime_edge.meters.meter import Reading, unread

_NS_PER_S = 1e9
_MOST_KEPT = 100_000
"""Samples that wait to be read; at a thousand a second a minute and a half."""


class Power(NamedTuple):
    """One reading of one rail.

    Attributes:
        watts: may be negative: a rail near zero is as often below it as above.
        step_w: how far the true power may be from it for the resolution of voltage and current alone.
    """

    watts: float
    step_w: float


class _Sample(NamedTuple):
    time_ns: int
    blur_s: float
    powers: Mapping[str, Power]
    rails_j: Dict[str, float]
    error_j: float
    n_samples: int


class Integral:
    """Sums of energy by rail.

    The bound of an interval between two samples holds wherever power does not turn around between them, that is, where
    each of its highs and lows lasts at least from one sample to the next: then it lies between the two samples, and
    the trapezoid is wrong by half their difference times the length at most. What the sensor cannot resolve comes on
    top, and so does the blur of the sample times.

    Args:
        total: rails that are summed, none of them part of another; empty where no total is known.
        max_gap_s: samples further apart are not joined.
        no_total: why ``total`` is empty.
    """

    def __init__(self, total: Tuple[str, ...], max_gap_s: float, no_total: Optional[str] = None) -> None:
        self._total, self._max_gap_s, self._no_total = total, max_gap_s, no_total
        self._samples: List[_Sample] = []
        self._gaps: List[Tuple[int, str]] = []  # end of each and why
        self.n_failed = 0
        self.largest_step_w = 0.0
        self._failure: Optional[str] = None

    @property
    def last_ns(self) -> Optional[int]:
        """When the last sample was taken, ``None`` before the first."""
        return self._samples[-1].time_ns if self._samples else None

    def add(self, time_ns: int, blur_s: float, powers: Mapping[str, Power]) -> None:
        """A sample; one that is earlier than the last counts as failed, a second one of the same moment as nothing.

        Args:
            time_ns: when.
            blur_s: it may have been so much earlier or later.
            powers: by rail, the same rails each time.
        """
        self.largest_step_w = max(self.largest_step_w, sum(powers[rail].step_w for rail in self._total))
        if not self._samples:
            self._samples.append(_Sample(time_ns, blur_s, powers, dict.fromkeys(powers, 0.0), 0.0, 1))
            return
        last = self._samples[-1]
        seconds = (time_ns - last.time_ns) / _NS_PER_S
        if seconds < 0:
            self.fail("a sample that is earlier than the one before")
        if seconds <= 0:
            return
        if seconds > self._max_gap_s:
            why = f"no power sample for {seconds:.2f} s" + (f": {self._failure}" if self._failure else "")
            self._gaps.append((time_ns, why))
        self._failure = None
        rails_j = {
            rail: last.rails_j[rail] + (last.powers[rail].watts + power.watts) / 2 * seconds
            for rail, power in powers.items()
        }
        sample = _Sample(time_ns, blur_s, powers, rails_j, 0.0, last.n_samples + 1)
        error_j = last.error_j + self._bound_j(last, sample)
        self._samples.append(sample._replace(error_j=error_j))
        del self._samples[:-_MOST_KEPT]

    def fail(self, reason: str) -> None:
        """A reading that failed."""
        self.n_failed += 1
        self._failure = reason

    def _bound_j(self, one: _Sample, other: _Sample) -> float:
        """What the trapezoid between two samples may be wrong by."""
        seconds = (other.time_ns - one.time_ns) / _NS_PER_S
        bound_j = 0.0
        for rail in self._total:
            before, after = one.powers[rail], other.powers[rail]
            change_w, step_w = abs(after.watts - before.watts), max(before.step_w, after.step_w)
            bound_j += (change_w / 2 + step_w) * seconds + (change_w / 2 + step_w) * (one.blur_s + other.blur_s)
        return bound_j

    def at(self, time_ns: int) -> Reading:
        """The sums at a moment between the first sample and the last; samples before it are forgotten."""
        n_gaps = sum(1 for end_ns, _ in self._gaps if end_ns <= time_ns)
        i = bisect_left([sample.time_ns for sample in self._samples], time_ns)
        if i == len(self._samples) or (i == 0 and self._samples[0].time_ns != time_ns):
            why = "no power sample" + (f": {self._failure}" if self._failure else "")
            return unread(time_ns, why, self._n_samples, self.n_failed, n_gaps)
        after = self._samples[i]
        before = self._samples[max(i - 1, 0)]
        if after.time_ns > time_ns and any(end_ns == after.time_ns for end_ns, _ in self._gaps):
            return unread(time_ns, self._gaps[-1][1], self._n_samples, self.n_failed, n_gaps)
        edge_j = self._bound_j(before, after)
        if after.time_ns == time_ns:
            rails_j, error_j = after.rails_j, after.error_j
            seconds = (after.time_ns - before.time_ns) / _NS_PER_S
            blurred = min(1.0, (before.blur_s + after.blur_s) / seconds) if seconds else 0.0
            edge_j *= blurred
        else:
            share = (time_ns - before.time_ns) / (after.time_ns - before.time_ns)
            seconds = (time_ns - before.time_ns) / _NS_PER_S
            rails_j = {
                rail: before.rails_j[rail]
                + (power.watts + share * (after.powers[rail].watts - power.watts) / 2) * seconds
                for rail, power in before.powers.items()
            }
            error_j = before.error_j
        n_samples = after.n_samples
        del self._samples[: max(i - 1, 0)]
        energy_j = sum(rails_j[rail] for rail in self._total) if self._total else None
        reason = self._gaps[-1][1] if self._gaps else None
        return Reading(
            time_ns, energy_j, rails_j, error_j, edge_j, n_samples, self.n_failed, n_gaps, self._no_total or reason
        )

    @property
    def _n_samples(self) -> int:
        return self._samples[-1].n_samples if self._samples else 0
