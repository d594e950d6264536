"""The power management chip of a Raspberry Pi 5 or Compute Module 5, through the firmware."""

from __future__ import annotations

import re
from typing import Dict, Mapping, Tuple

from runtime_edge.meters.commands import find_program, output
from runtime_edge.meters.hwmon import product
from runtime_edge.meters.integral import Power
from runtime_edge.meters.meter import AbsentError, Meter, MeterError
from runtime_edge.meters.rails import find_total
from runtime_edge.meters.sampled import SampledMeter

_LINE = re.compile(
    r"^\s*(?P<stem>\S+)_(?P<kind>[AV]) +(?:current|volt)\(\d+\)=(?P<value>-?[0-9.]+)[AV]\s*$", re.MULTILINE
)

# What captured values are whole multiples of (10.87674 A = 3715 steps, 0.06245952 A = 64 steps): 12 bits of 12 A for
# the core, of 4 A for the other converters, finer for the small rails. Voltages: 12 bits of 5 V, the coarsest seen.
_CORE_STEP_A, _STEP_A, _STEP_V = 2.92779e-3, 0.97593e-3, 1.221e-3

_INTERVAL_S = 0.1
"""Each reading is a process and a call of the firmware: more often would itself be a load."""


class PmicSensor:
    """Runs ``vcgencmd pmic_read_adc``.

    Raises:
        MeterError: it does not tell currents.
    """

    name = "pmic"
    interval_s = _INTERVAL_S
    age_s = 0.0

    def __init__(self) -> None:
        self._argv = (find_program("vcgencmd"), "pmic_read_adc")
        self.rails: Tuple[str, ...] = tuple(parse_adc(output(self._argv)))

    def read(self, rails: Tuple[str, ...]) -> Mapping[str, Power]:
        """Power of these rails; the firmware tells all at once."""
        powers = parse_adc(output(self._argv))
        if not set(rails) <= powers.keys():
            raise MeterError("vcgencmd tells other rails than before")
        return {rail: powers[rail] for rail in rails}


def parse_adc(said: str) -> Dict[str, Power]:
    """Power by rail from what ``vcgencmd pmic_read_adc`` prints.

    Voltages and currents belong together by name: their numbers differ. Voltages without a current (the input and the
    battery) are no rails.

    Raises:
        AbsentError: it tells no current, as on a Raspberry Pi 4.
        MeterError: a current has no voltage.
    """
    values: Dict[str, Dict[str, float]] = {"A": {}, "V": {}}
    for match in _LINE.finditer(said):
        values[match["kind"]][match["stem"]] = float(match["value"])
    if not values["A"]:
        raise AbsentError("vcgencmd tells no current on this board")
    powers = {}
    for rail, amperes in values["A"].items():
        if rail not in values["V"]:
            raise MeterError(f'vcgencmd tells the current of "{rail}" and not its voltage')
        step_a = _CORE_STEP_A if rail == "VDD_CORE" else _STEP_A
        powers[rail] = product(values["V"][rail], amperes, _STEP_V, step_a)
    return powers


def pmic_meter() -> Meter:
    """The sum of the chip's outputs.

    Raises:
        MeterError: there is no such chip, or it does not tell what is needed.
    """
    sensor = PmicSensor()
    return SampledMeter(sensor, find_total(sensor.rails))
