"""Power monitors that a Linux driver reads: INA3221 and INA238 of a Jetson, INA2xx of anybody."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional, Tuple

from runtime_edge.meters.counters import CounterMeter
from runtime_edge.meters.integral import Power
from runtime_edge.meters.meter import AbsentError, Meter, MeterError
from runtime_edge.meters.rails import Total, find_total
from runtime_edge.meters.sampled import SampledMeter

BEHIND_SHUNT = "whatever does not draw its power through the sensor's shunt"

CYCLE_S = 0.0066
"""INA3221 as it starts: three channels, each 1.1 ms for its voltage and as much for its current."""

SHORTEST_INTERVAL_S = 2 * CYCLE_S
"""The driver waits for a finished cycle per value, and a rail has two values."""

# INA3221 data sheet (SBOS576), 8.6.2: 40 uV per step of the shunt voltage, 8 mV per step of the bus voltage.
_INA3221_SHUNT_V, _INA3221_BUS_V = 40e-6, 8e-3
# INA238 data sheet (SBOSA20), 7.6.1: 5 uV and 3.125 mV.
_INA238_SHUNT_V, _INA238_BUS_V = 5e-6, 3.125e-3

SMALLEST_SHUNT_OHM = 2e-3
"""Of any Jetson; taken, with the coarsest steps of current therefore, where the kernel does not tell the shunt."""

# Steps of shunt and bus voltage, and how many steps of current one of power is: data sheets INA219 (SBOS448),
# INA226 (SBOS547), INA260 (SBOS656, its shunt of 2 mOhm is inside). The driver (ina2xx.c) keeps these proportions.
_INA2XX: Mapping[str, Tuple[float, float, float]] = {
    "ina219": (10e-6, 4e-3, 20.0),
    "ina220": (10e-6, 4e-3, 20.0),
    "ina226": (2.5e-6, 1.25e-3, 25.0),
    "ina230": (2.5e-6, 1.25e-3, 25.0),
    "ina231": (2.5e-6, 1.25e-3, 25.0),
    "ina260": (2.5e-6, 1.25e-3, 8.0),
    "ina228": (312.5e-9, 195.3125e-6, 3.2),
    "ina237": (5e-6, 3.125e-3, 0.2),
    "ina238": (5e-6, 3.125e-3, 0.2),
}
_INA260_SHUNT_OHM = 2e-3
_NOT_CONNECTED = ("", "NC")


class RailSensor:
    """Rails that are read one after the other.

    Args:
        name: of the chip.
        rails: how to read each.
        interval_s: shortest time between two readings that differ.
        age_s: how old a value may be when it is told.
    """

    def __init__(self, name: str, rails: Mapping[str, Callable[[], Power]], interval_s: float, age_s: float) -> None:
        self.name, self.rails = name, tuple(rails)
        self.interval_s, self.age_s = interval_s, age_s
        self._readers = dict(rails)

    def read(self, rails: Tuple[str, ...]) -> Mapping[str, Power]:
        """Power of these rails."""
        return {rail: self._readers[rail]() for rail in rails}


def number(path: Path) -> int:
    """A whole number in a file of the kernel.

    Raises:
        MeterError: it cannot be read.
    """
    try:
        return int(path.read_bytes())
    except OSError as error:
        raise MeterError(f'"{path}" cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise MeterError(f'"{path}" holds no number') from error


def text(path: Path) -> Optional[str]:
    """A line in a file of the kernel, ``None`` where there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return None


def product(volts: float, amperes: float, volts_step: float, amperes_step: float) -> Power:
    """Power of a voltage and a current, and how far a step of each moves it."""
    step_w = abs(volts) * amperes_step + abs(amperes) * volts_step + volts_step * amperes_step
    return Power(volts * amperes, step_w)


def jetson_meter(root: Path) -> Meter:
    """The monitors on the module and the carrier of a Jetson with JetPack 5 or later.

    Raises:
        AbsentError: there is no INA3221 or INA238 here.
    """
    sensor = jetson_sensor(root)
    return SampledMeter(sensor, find_total(sensor.rails))


def jetson_sensor(root: Path) -> RailSensor:
    """INA3221 and, where there is one, INA238.

    Raises:
        AbsentError: there is neither.
    """
    chips: List[str] = []
    rails: Dict[str, Callable[[], Power]] = {}
    interval_s = SHORTEST_INTERVAL_S
    age_s = 0.0
    for name, folder in _chips(root, ("ina3221",)):
        found = {channel: _channel_label(folder, channel) for channel in (1, 2, 3)}
        for channel, label in found.items():
            if label is not None:
                rails[label if label not in rails else f"{label}@{_device(folder)}"] = _Ina3221Channel(folder, channel)
        chips.append(name)
        age_s = max(age_s, _update_s(folder))
    for name, folder in _chips(root, ("ina238",)):
        # The driver gives no label; on this board it can only be the rail in front of all.
        thor = "VDD_CPU_SOC_MSS" in rails
        label = text(folder / "in1_label") or text(folder / "label") or ("VIN" if thor else _device(folder))
        rails[label] = _Ina238(folder)
        chips.append(name)
        age_s = max(age_s, _update_s(folder))
    if "ina3221" not in chips or not rails:
        raise AbsentError("no INA3221")
    return RailSensor("+".join(dict.fromkeys(chips)), rails, interval_s, age_s)


def external_meter(root: Path, chip: Optional[str] = None, device: Optional[str] = None) -> Meter:
    """An INA2xx that the kernel has a driver for, between the supply and the board.

    Args:
        root: of the file system.
        chip: e.g. ``ina226``; any by default.
        device: bus and address as the kernel writes them, e.g. ``1-0040``.

    Raises:
        AbsentError: there is none.
        MeterError: there are several, or it does not tell what is needed.
    """
    wanted = tuple(_INA2XX) if chip is None else (chip,)
    found = [(name, at) for name, at in _chips(root, wanted) if device in (None, _device(at))]
    if not found:
        raise AbsentError(f"no driver of {chip or 'INA2xx'}" + (f" at {device}" if device else ""))
    if len(found) > 1:
        places = ", ".join(f"{name}@{_spec(at)}" for name, at in found)
        raise MeterError(f'"{len(found)}" external power sensors, name one: {places}')
    ((name, folder),) = found
    rail = text(folder / "in1_label") or text(folder / "label") or _device(folder)
    if (folder / "energy1_input").exists():
        counter = _Microjoules(folder / "energy1_input")
        counter()
        return CounterMeter(f"{name}: {rail}", {rail: counter}, BEHIND_SHUNT, 1e-6, _update_s(folder))
    sensor = RailSensor(
        name,
        {rail: _Ina2xx(folder, name)},
        max(SHORTEST_INTERVAL_S, _update_s(folder)),
        _update_s(folder),
    )
    return SampledMeter(sensor, Total((rail,), BEHIND_SHUNT))


class _Ina3221Channel:
    """One channel: it has voltage and current, and no power."""

    def __init__(self, folder: Path, channel: int) -> None:
        self._volts, self._amperes = folder / f"in{channel}_input", folder / f"curr{channel}_input"
        shunt = text(folder / f"shunt{channel}_resistor")
        shunt_ohm = int(shunt) * 1e-6 if shunt and int(shunt) > 0 else SMALLEST_SHUNT_OHM
        self._amperes_step = _in_milli(_INA3221_SHUNT_V / shunt_ohm)

    def __call__(self) -> Power:
        volts, amperes = number(self._volts) * 1e-3, number(self._amperes) * 1e-3
        return product(volts, amperes, _INA3221_BUS_V, self._amperes_step)


class _Ina238:
    """Power in microwatts; voltage and current only to know its steps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shunt = text(folder / "shunt_resistor")
        self._shunt_ohm = int(shunt) * 1e-6 if shunt else SMALLEST_SHUNT_OHM
        self._volts = number(folder / "in1_input") * 1e-3

    def __call__(self) -> Power:
        watts = number(self._folder / "power1_input") * 1e-6
        return _from_power(watts, self._volts, _INA238_SHUNT_V / self._shunt_ohm, _INA238_BUS_V, 0.2)


class _Ina2xx:
    """Power in microwatts of a chip with one channel. The register has no sign."""

    def __init__(self, folder: Path, chip: str) -> None:
        self._power = folder / "power1_input"
        shunt_v, self._volts_step, self._ratio = _INA2XX[chip]
        shunt = text(folder / "shunt_resistor")
        shunt_ohm = _INA260_SHUNT_OHM if chip == "ina260" else int(shunt) * 1e-6 if shunt else SMALLEST_SHUNT_OHM
        self._amperes_step = shunt_v / shunt_ohm
        self._volts = number(folder / "in1_input") * 1e-3
        number(self._power)

    def __call__(self) -> Power:
        watts = number(self._power) * 1e-6
        return _from_power(watts, self._volts, self._amperes_step, self._volts_step, self._ratio)


class _Microjoules:
    """The energy register of an INA228, which the driver extends to 64 bits."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> float:
        return number(self._path) * 1e-6


def _from_power(watts: float, volts: float, amperes_step: float, volts_step: float, ratio: float) -> Power:
    """Power as the chip multiplied it, with the steps of its factors and of the product itself."""
    amperes = watts / volts if volts else 0.0
    return Power(watts, product(volts, amperes, volts_step, amperes_step).step_w + ratio * amperes_step)


def _in_milli(step: float) -> float:
    """The step of a value that the driver cuts to whole thousandths."""
    return step if abs(step * 1e3 - round(step * 1e3)) < 1e-6 else step + 1e-3


def _channel_label(folder: Path, channel: int) -> Optional[str]:
    """The rail's name; ``None`` where nothing is connected or the channel is switched off.

    Channels 4 to 7 are shunt voltages and sums of them, which are no rails.
    """
    label = text(folder / f"in{channel}_label")
    if label in _NOT_CONNECTED or text(folder / f"in{channel}_enable") == "0":
        return None
    if not (folder / f"in{channel}_input").exists() or not (folder / f"curr{channel}_input").exists():
        return None
    return label if label is not None else f"{_device(folder)} channel {channel}"


def _chips(root: Path, names: Tuple[str, ...]) -> List[Tuple[str, Path]]:
    """Chips by name, whatever number the kernel gave them this time."""
    found: Dict[Path, Tuple[str, Path]] = {}
    folders = [*root.glob("sys/class/hwmon/hwmon*"), *root.glob("sys/bus/i2c/drivers/*/*-*/hwmon/hwmon*")]
    for folder in folders:
        name = text(folder / "name")
        if name in names and folder.resolve() not in found:
            found[folder.resolve()] = name, folder
    return sorted(found.values(), key=lambda one: (one[0], _device(one[1])))


def _device(folder: Path) -> str:
    """Bus and address of a chip, e.g. ``1-0040``."""
    device = folder / "device"
    return device.resolve().name if device.exists() else folder.resolve().parent.parent.name


def _spec(folder: Path) -> str:
    bus, _, address = _device(folder).partition("-")
    return f"{bus}-0x{address.lstrip('0')}"


def _update_s(folder: Path) -> float:
    """How long the chip measures for one value, all averaging included."""
    told = text(folder / "update_interval")
    try:
        return int(told or 0) * 1e-3
    except ValueError:
        return 0.0
