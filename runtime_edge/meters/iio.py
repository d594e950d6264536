"""INA3221 of a Jetson with JetPack 4, whose kernel 4.9 shows it as an industrial I/O device."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, List

from runtime_edge.meters.hwmon import (
    CYCLE_S,
    SHORTEST_INTERVAL_S,
    SMALLEST_SHUNT_OHM,
    RailSensor,
    number,
    product,
    text,
)
from runtime_edge.meters.integral import Power
from runtime_edge.meters.meter import AbsentError, Meter
from runtime_edge.meters.rails import find_total
from runtime_edge.meters.sampled import SampledMeter

# INA3221 data sheet (SBOS576), 8.6.2. This driver does not tell the shunt.
_BUS_V, _AMPERES_STEP = 8e-3, 40e-6 / SMALLEST_SHUNT_OHM


def iio_meter(root: Path) -> Meter:
    """All chips of the board.

    Raises:
        AbsentError: there is none.
    """
    rails: Dict[str, Callable[[], Power]] = {}
    for folder in _devices(root):
        for channel in (0, 1, 2):
            name = text(folder / f"rail_name_{channel}")
            if name and name != "NC" and (folder / f"in_voltage{channel}_input").exists():
                rails[name] = _Channel(folder, channel)
    if not rails:
        raise AbsentError("no INA3221 of JetPack 4")
    sensor = RailSensor("ina3221 (iio)", rails, SHORTEST_INTERVAL_S, CYCLE_S)
    return SampledMeter(sensor, find_total(sensor.rails))


class _Channel:
    def __init__(self, folder: Path, channel: int) -> None:
        self._volts, self._amperes = folder / f"in_voltage{channel}_input", folder / f"in_current{channel}_input"

    def __call__(self) -> Power:
        return product(number(self._volts) * 1e-3, number(self._amperes) * 1e-3, _BUS_V, _AMPERES_STEP)


def _devices(root: Path) -> List[Path]:
    """The folder is called ``iio_device`` on some releases and has a number on others."""
    drivers = root / "sys/bus/i2c/drivers/ina3221x"
    return sorted([*drivers.glob("*-*/iio:device*"), *drivers.glob("*-*/iio_device")])
