"""The machine's meter: the best there is, or the one that was named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

from runtime_edge.meters.external import csv_meter, serial_meter
from runtime_edge.meters.hwmon import external_meter, jetson_meter
from runtime_edge.meters.i2c import LinuxBus
from runtime_edge.meters.iio import iio_meter
from runtime_edge.meters.imported import imported_meter
from runtime_edge.meters.ina2xx import CHIPS, ina2xx_meter
from runtime_edge.meters.meter import AbsentError, Meter, MeterError, NoMeter
from runtime_edge.meters.nvml import nvml_meter
from runtime_edge.meters.pmic import pmic_meter
from runtime_edge.meters.rapl import rapl_meter
from runtime_edge.meters.simulated import RATE_HZ, STEP_W, simulated_meter
from runtime_edge.meters.tegrastats import tegrastats_meter
from splitboard.contract.errors import UserError

AUTO, NONE = "auto", "none"
NOT_WANTED = "energy was switched off (--meter none)"

_Find = Callable[[Path], Meter]

# The best first: rails that the board's maker placed, then somebody's sensor in front of the board, then what sees the
# processor only, then the graphics card only, then tegrastats, which tells the first ones' values more coarsely.
_FINDERS: Dict[str, _Find] = {
    "ina3221": jetson_meter,
    "iio": iio_meter,
    "pmic": lambda _: pmic_meter(),
    "ina2xx": external_meter,
    "rapl": rapl_meter,
    "nvml": lambda _: nvml_meter(),
    "tegrastats": lambda _: tegrastats_meter(),
}
_CHIP = re.compile(r"(?P<chip>ina\d{3})(?:@(?P<bus>\d+)-(?:0x)?(?P<address>[0-9a-fA-F]{1,4})(?::(?P<ohm>[0-9.e-]+))?)?")
_MODULE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

HELP = (
    "auto (default), none, ina3221, iio, pmic, ina2xx, rapl, nvml, tegrastats, ina226@BUS-ADDRESS[:OHM], csv:LOG, "
    "serial:PORT[@BAUD], simulated:TRACE[@HZ[,WATTS]], package.module:Class"
)


def find_meter(root: Path = Path("/"), spec: str = AUTO) -> Meter:
    """The machine's meter, or a `NoMeter` that says why there is none.

    Args:
        root: of the file system.
        spec: `AUTO`, `NONE` or the name of a meter; see `HELP`.

    Raises:
        UserError: a meter was named and cannot be read.
    """
    if spec == AUTO:
        return _best(root)
    if spec == NONE:
        return NoMeter(NOT_WANTED)
    try:
        return _named(root, spec)
    except MeterError as error:
        raise UserError(f'the meter "{spec}" cannot be read: {error}', ["--meter auto"]) from error


def is_meter(spec: str) -> bool:
    """Whether a text names a meter; whether that one is there is another question."""
    kind, _, rest = spec.partition(":")
    if spec in (AUTO, NONE, *_FINDERS) or (kind in ("csv", "serial", "simulated") and rest):
        return True
    return bool(_CHIP.fullmatch(spec) or _MODULE.fullmatch(spec))


def _best(root: Path) -> Meter:
    """The first that can be read; what is there and cannot be read is a better reason than what is not there."""
    absent: List[str] = []
    broken: List[str] = []
    for find in _FINDERS.values():
        try:
            return find(root)
        except AbsentError as error:
            absent.append(str(error))
        except MeterError as error:
            broken.append(str(error))
    return NoMeter("; ".join(broken) if broken else f"no energy meter: {', '.join(absent)}")


def _named(root: Path, spec: str) -> Meter:
    if spec in _FINDERS:
        return _ina3221(root) if spec == "ina3221" else _FINDERS[spec](root)
    kind, _, rest = spec.partition(":")
    if kind == "csv" and rest:
        return csv_meter(Path(rest))
    if kind == "serial" and rest:
        return serial_meter(*_serial(rest))
    if kind == "simulated" and rest:
        return simulated_meter(*_simulated(rest))
    chip = _CHIP.fullmatch(spec)
    if chip:
        return _chip(root, chip)
    if _MODULE.fullmatch(spec):
        return imported_meter(spec)
    raise UserError(f'"{spec}" names no meter', [f"--meter {one}" for one in HELP.split(", ")])


def _ina3221(root: Path) -> Meter:
    """The same chip, whichever release of JetPack shows it."""
    try:
        return jetson_meter(root)
    except AbsentError:
        return iio_meter(root)


def _chip(root: Path, spec: re.Match[str]) -> Meter:
    """By the kernel's driver where it has the chip, else on the bus itself."""
    name = spec["chip"]
    if spec["bus"] is None:
        return external_meter(root, name)
    bus, address = int(spec["bus"]), int(spec["address"], 16)
    try:
        if spec["ohm"] is None:
            return external_meter(root, name, f"{bus}-{address:04x}")
    except AbsentError:
        pass  # no driver has it
    if name not in CHIPS and name != "ina228":
        raise MeterError(f'"{name}" is read through the kernel\'s driver only')
    shunt_ohm = _positive(spec["ohm"]) if spec["ohm"] else None
    return ina2xx_meter(name, LinuxBus(root, bus, address), f"{bus}-0x{address:02x}", shunt_ohm)


def _serial(rest: str) -> Tuple[str, int]:
    port, _, baud = rest.partition("@")
    return port, int(_positive(baud)) if baud else 115200


def _simulated(rest: str) -> Tuple[Path, float, float]:
    path, at, told = rest.rpartition("@")
    if not at:
        return Path(rest), RATE_HZ, STEP_W
    rate, _, step = told.partition(",")
    return Path(path), _positive(rate), _positive(step) if step else STEP_W


def _positive(word: str) -> float:
    value: Optional[float]
    try:
        value = float(word)
    except ValueError:
        value = None
    if value is None or value <= 0:
        raise MeterError(f'"{word}" is no positive number')
    return value
