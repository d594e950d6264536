"""What every meter is, and the one that stands where none is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable, Dict, Optional, Protocol

from splitboard.contract.record import MeterFacts

COUNTER = "energy counter"
SAMPLED = "power samples, trapezoids between them"


class MeterError(Exception):
    """The meter cannot be read; the message is the reason, one line."""


class AbsentError(MeterError):
    """There is no such meter here, which is nothing to mend."""


@dataclass(frozen=True)
class Reading:
    """A meter at one moment; all sums run since some fixed moment.

    Attributes:
        time_ns: the moment, of the clock of the windows.
        energy_j: of the total; ``None`` where it is not known.
        rails_j: by rail.
        error_j: bound of what the sum may be wrong by, the moment itself apart.
        edge_j: what this moment adds to the bound of a window that begins or ends with it.
        n_samples: readings of the sensor, 0 where a counter needs none.
        n_failed: of them those that failed; the samples around them were joined.
        n_gaps: times that the samples were too far apart to be joined.
        reason: why ``energy_j`` is ``None``, or what the last gap was.
    """

    time_ns: int
    energy_j: Optional[float]
    rails_j: Dict[str, float]
    error_j: float
    edge_j: float
    n_samples: int
    n_failed: int
    n_gaps: int
    reason: Optional[str]


class Meter(Protocol):
    """A cumulative counter of joules. Nothing is started before it is entered.

    Attributes:
        source: meter and rails; contains ``estimate`` where the figure is one and ``simulated`` where no board drew
            it; the reason where there is no meter.
    """

    source: str

    def facts(self) -> Optional[MeterFacts]:
        """Rails, total, resolution, method; ``None`` where there is no meter."""

    def read(self) -> Reading:
        """The meter now. A failure is a `Reading` without energy, never an exception."""
        raise NotImplementedError

    def read_j(self) -> Optional[float]:
        """Joules of the total since some fixed moment; ``None`` where they are not known."""
        return self.read().energy_j

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *error: object) -> None:
        """Stops what was started."""
        return


class NoMeter(Meter):
    """Stands where no meter is.

    Args:
        reason: why not.
    """

    def __init__(self, reason: str) -> None:
        self.source = reason

    def facts(self) -> Optional[MeterFacts]:
        """``None``."""
        return None

    def read(self) -> Reading:
        """Without energy."""
        return unread(time.perf_counter_ns(), self.source)


class FakeMeter(Meter):
    """A constant power without error; for tests and demonstrations.

    Args:
        power_w: what it claims.
        clock_ns: the time it integrates over.
    """

    def __init__(self, power_w: float, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self.source = "fake (estimate)"
        self._power_w = power_w
        self._clock_ns = clock_ns

    def facts(self) -> Optional[MeterFacts]:
        """Of no sensor."""
        return MeterFacts(self.source, COUNTER, ("fake",), ("fake",), "nothing", 0.0, None, 1e-9 * self._power_w)

    def read(self) -> Reading:
        """``power_w`` times the clock."""
        time_ns = self._clock_ns()
        energy_j = self._power_w * time_ns * 1e-9
        return Reading(time_ns, energy_j, {"fake": energy_j}, 0.0, 1e-9 * self._power_w, 0, 0, 0, None)


def unread(time_ns: int, reason: str, n_samples: int = 0, n_failed: int = 0, n_gaps: int = 0) -> Reading:
    """A reading without energy."""
    return Reading(time_ns, None, {}, 0.0, 0.0, n_samples, n_failed, n_gaps, reason)
