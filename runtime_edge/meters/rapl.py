"""The processor packages' own counters on x86 (Linux powercap)."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

from runtime_edge.meters.counters import CounterMeter, WrappingCounter
from runtime_edge.meters.hwmon import text
from runtime_edge.meters.meter import AbsentError, Meter, MeterError

_UPDATE_S = 0.001
"""Intel 64 and IA-32 manual, volume 3B, "Package RAPL domain": the counters move about once a millisecond."""

_LEAVES_OUT = "memory, graphics card, disks, network, mainboard and the power supply's loss"


def rapl_meter(root: Path) -> Meter:
    """All packages. Cores and graphics are within them and are not added.

    The counters wrap around at ``max_energy_range_uj``, at the earliest after some minutes at full power; the meter
    must be read more often than that.

    Args:
        root: of the file system.

    Raises:
        MeterError: there is no such counter, or it may not be read.
    """
    counters: Dict[str, WrappingCounter] = {}
    for folder in sorted(root.glob("sys/class/powercap/intel-rapl:*")):
        name = text(folder / "name") or folder.name
        if folder.name.count(":") == 1 and name.startswith("package"):
            counters[name] = WrappingCounter(_Register(folder / "energy_uj"), _range_uj(folder), 1e-6)
    if not counters:
        raise AbsentError("no RAPL")
    return CounterMeter(f"RAPL: {' + '.join(counters)}", counters, _LEAVES_OUT, 1e-6, _UPDATE_S)


class _Register:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> int:
        try:
            return int(self._path.read_text(encoding="ascii"))
        except PermissionError as error:
            raise MeterError(f'"{self._path}" may be read by root only: sudo chmod a+r {self._path}') from error
        except (OSError, ValueError) as error:
            raise MeterError(f'no energy counter at "{self._path}"') from error


def _range_uj(folder: Path) -> int:
    return _Register(folder / "max_energy_range_uj")()
