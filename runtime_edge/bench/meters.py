"""Energy meters: cumulative joule counters, so that a window is a subtraction and windows nest for free."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Callable, Optional, Protocol

from splitboard.contract.errors import UserError


class Meter(Protocol):
    """A cumulative counter of one rail.

    Attributes:
        source: meter and rail; contains ``estimate`` where the figure is one; the reason where there is no meter.
        resolution_j: smallest step of the counter, ``None`` where there is no meter.
    """

    source: str
    resolution_j: Optional[float]

    def read_j(self) -> Optional[float]:
        """Joules since some fixed moment, never decreasing; ``None`` where there is no meter."""


class NoMeter:
    """Stands where no meter is.

    Args:
        reason: why not.
    """

    def __init__(self, reason: str) -> None:
        self.source = reason
        self.resolution_j: Optional[float] = None

    def read_j(self) -> Optional[float]:
        """Always ``None``."""
        return None


class FakeMeter:
    """A constant power; for tests and demonstrations.

    Args:
        power_w: what it claims.
        clock_ns: the time it integrates over.
    """

    def __init__(self, power_w: float, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self.source = "fake (estimate)"
        self.resolution_j: Optional[float] = 1e-9 * power_w
        self._power_w = power_w
        self._clock_ns = clock_ns

    def read_j(self) -> Optional[float]:
        """``power_w`` times the clock."""
        return self._power_w * self._clock_ns() * 1e-9


class RaplMeter:
    """The processor package's own counter on x86 (Linux powercap).

    The counter wraps around at ``max_energy_range_uj``, at the earliest after some minutes at full power; the meter
    must be read more often than that.

    Args:
        root: of the ``sysfs`` tree.

    Raises:
        UserError: there is no such counter, or it may not be read.
    """

    def __init__(self, root: Path = Path("/sys")) -> None:
        folder = root / "class/powercap/intel-rapl:0"
        self._counter = folder / "energy_uj"
        self._range_uj = _read_uj(folder / "max_energy_range_uj")
        self._last_uj = _read_uj(self._counter)
        self._total_uj = 0
        self.source = "RAPL package-0"
        self.resolution_j: Optional[float] = 1e-6

    def read_j(self) -> Optional[float]:
        """Joules since the meter was made."""
        now_uj = _read_uj(self._counter)
        step_uj = now_uj - self._last_uj
        self._total_uj += step_uj if step_uj >= 0 else step_uj + self._range_uj
        self._last_uj = now_uj
        return self._total_uj * 1e-6


def _read_uj(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except PermissionError as error:
        raise UserError(f'"{path}" may be read by root only', [f"sudo chmod a+r {path}"]) from error
    except (OSError, ValueError) as error:
        raise UserError(f'no energy counter at "{path}"') from error


def find_meter(root: Path = Path("/sys")) -> Meter:
    """The machine's meter, or a `NoMeter` that says why there is none.

    Args:
        root: of the ``sysfs`` tree.
    """
    try:
        return RaplMeter(root)
    except UserError as error:
        return NoMeter(error.message)
