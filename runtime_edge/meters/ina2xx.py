"""INA219, INA226, INA228 and INA260 between a supply and a board, without a driver of the kernel.

Formulas and registers: data sheets of Texas Instruments, SBOS448 (INA219), SBOS547 (INA226), SLYS021 (INA228) and
SBOS656 (INA260). The INA219, 226 and 260 are set to average 16 or 32 conversions, about as long as a pause between two
readings, so that little is lost of a burst between them; they are put back when the meter is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Optional, Tuple

from runtime_edge.meters.counters import CounterMeter, WrappingCounter
from runtime_edge.meters.hwmon import BEHIND_SHUNT, product
from runtime_edge.meters.i2c import Bus
from runtime_edge.meters.integral import Power
from runtime_edge.meters.meter import Meter, MeterError
from runtime_edge.meters.rails import Total
from runtime_edge.meters.sampled import SampledMeter

BREAKOUT_OHM = 0.1
"""Of the usual breakout boards; a figure that rests on it is an estimate."""


@dataclass(frozen=True)
class Chip:
    """How one kind of chip tells voltage and current.

    Attributes:
        averaging: value of the configuration register for continuous conversion with averaging.
        conversion_s: duration of one averaged pair of voltage and current.
        current_register: shunt voltage, or current where the shunt is inside.
        current_step: volts of shunt voltage per count, amperes where the shunt is inside.
        bus_shift: bits right of the bus voltage in register 2.
        bus_step_v: volts per count.
        shunt_inside: the chip has measured its shunt and tells a current.
    """

    averaging: int
    conversion_s: float
    current_register: int
    current_step: float
    bus_shift: int
    bus_step_v: float
    shunt_inside: bool


CHIPS: Mapping[str, Chip] = {
    # SBOS448 8.6.2: 32 V, +-320 mV, 12 bits, 32 samples of each (17.02 ms), continuous. 8.6.3: 10 uV, 4 mV from bit 3.
    "ina219": Chip(0x3EEF, 0.0341, 0x01, 10e-6, 3, 4e-3, False),
    # SBOS547 7.6.1: 16 averages of 1.1 ms each. 7.6.2, 7.6.3: 2.5 uV, 1.25 mV.
    "ina226": Chip(0x4527, 0.0352, 0x01, 2.5e-6, 0, 1.25e-3, False),
    # SBOS656 8.6.1: the same averaging. 8.6.2, 8.6.3: 1.25 mA, 1.25 mV.
    "ina260": Chip(0x6527, 0.0352, 0x01, 1.25e-3, 0, 1.25e-3, True),
}
_CONFIG, _BUS_VOLTAGE = 0x00, 0x02

# SLYS021 7.6.1: registers; ADCRANGE is bit 4 of CONFIG.
_INA228_SHUNT_CAL, _INA228_ENERGY, _ADCRANGE = 0x02, 0x09, 1 << 4
_INA228_CONVERSION_S = 0.0032
"""Three conversions of 1052 us, the reset value of ADC_CONFIG."""


class Ina2xxSensor:
    """A chip that is read over and over.

    Args:
        kind: of `CHIPS`.
        bus: its registers.
        rail: what to call it.
        shunt_ohm: unused where the shunt is inside.
    """

    def __init__(self, kind: str, bus: Bus, rail: str, shunt_ohm: float) -> None:
        self._chip, self._bus = CHIPS[kind], bus
        self.name = kind
        self.rails: Tuple[str, ...] = (rail,)
        self.interval_s = self.age_s = self._chip.conversion_s
        self._step_a = self._chip.current_step / (1.0 if self._chip.shunt_inside else shunt_ohm)

    def begin(self) -> int:
        """Switches averaging on; the configuration that was there before."""
        before = self._bus.read(_CONFIG, 2)
        self._bus.write(_CONFIG, self._chip.averaging)
        return before

    def end(self, config: int) -> None:
        """Puts the configuration back."""
        self._bus.write(_CONFIG, config)

    def read(self, rails: Tuple[str, ...]) -> Mapping[str, Power]:
        """Voltage times current."""
        amperes = _signed(self._bus.read(self._chip.current_register, 2), 16) * self._step_a
        volts = (self._bus.read(_BUS_VOLTAGE, 2) >> self._chip.bus_shift) * self._chip.bus_step_v
        return dict.fromkeys(rails, product(volts, amperes, self._chip.bus_step_v, self._step_a))


class Ina2xxMeter(SampledMeter):
    """A `SampledMeter` that sets its chip up and puts it back.

    Args:
        sensor: the chip.
    """

    def __init__(self, sensor: Ina2xxSensor) -> None:
        super().__init__(sensor, Total(sensor.rails, BEHIND_SHUNT))
        self._ina = sensor
        self._config: Optional[int] = None

    def __enter__(self) -> Ina2xxMeter:
        self._config = self._ina.begin()
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self._config is not None:
            self._ina.end(self._config)


def ina2xx_meter(kind: str, bus: Bus, place: str, shunt_ohm: Optional[float]) -> Meter:
    """A chip on a bus.

    Args:
        kind: ``ina219``, ``ina226``, ``ina228`` or ``ina260``.
        bus: its registers.
        place: bus and address, for people.
        shunt_ohm: `BREAKOUT_OHM`, and the figure an estimate, by default.

    Raises:
        MeterError: it does not answer, or is not calibrated.
    """
    assumed = shunt_ohm is None and kind != "ina260"
    rail = f"{place} (estimate: shunt of {BREAKOUT_OHM:g} ohm assumed)" if assumed else place
    ohm = BREAKOUT_OHM if shunt_ohm is None else shunt_ohm
    if kind == "ina228":
        counter, step_j = ina228_counter(bus, ohm)
        return CounterMeter(f"ina228: {rail}", {rail: counter}, BEHIND_SHUNT, step_j, _INA228_CONVERSION_S)
    sensor = Ina2xxSensor(kind, bus, rail, ohm)
    sensor.read(sensor.rails)
    return Ina2xxMeter(sensor)


def ina228_counter(bus: Bus, shunt_ohm: float) -> Tuple[WrappingCounter, float]:
    """The energy register, 40 bits, and the joules of one count.

    ``SHUNT_CAL = 13107.2e6 * CURRENT_LSB * shunt`` (four times that with ADCRANGE), ``energy = 16 * 3.2 * CURRENT_LSB *
    count`` (SLYS021, equations 2 and 5).

    Raises:
        MeterError: the chip does not answer, or is not calibrated.
    """
    calibration = bus.read(_INA228_SHUNT_CAL, 2)
    if calibration == 0:
        raise MeterError("the INA228 is not calibrated: SHUNT_CAL is 0")
    gain = 4 if bus.read(_CONFIG, 2) & _ADCRANGE else 1
    current_step_a = calibration / (13107.2e6 * shunt_ohm * gain)
    step_j = 16 * 3.2 * current_step_a
    return WrappingCounter(lambda: bus.read(_INA228_ENERGY, 5), 1 << 40, step_j), step_j


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value
