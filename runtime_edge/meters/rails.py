"""Which rails make the total. The only place that knows; a total is never the sum of nested rails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import FrozenSet, Iterable, Optional, Tuple


@dataclass(frozen=True)
class Total:
    """What ``energy_j`` is made of.

    Attributes:
        rails: that are summed, none of them part of another; empty where no total is known.
        leaves_out: what draws power beside them.
        reason: why there is no total, ``None`` where there is.
    """

    rails: Tuple[str, ...]
    leaves_out: str
    reason: Optional[str] = None


@dataclass(frozen=True)
class Rule:
    """The rails of a family of boards.

    Attributes:
        boards: for people.
        total: rails that must all be there and are summed.
        also: rails that are summed where they are there.
        nested: rails known to be fed by those of the total.
        leaves_out: what draws power beside the total.
    """

    boards: str
    total: Tuple[str, ...]
    also: Tuple[str, ...]
    nested: FrozenSet[str]
    leaves_out: str


_MODULE = "carrier board, fan, USB, NVMe and the power supply's loss"

# Sources: NVIDIA Jetson Linux developer guides, section on power monitors of each module; the device trees
# tegra234-p3701.dtsi and tegra234-p3767.dtsi of mainline Linux; rails that `tegrastats` prints.
RULES: Tuple[Rule, ...] = (
    # The INA238 sits in front of everything. The INA3221's rails of the same board hang behind it.
    Rule(
        "Jetson AGX Thor",
        ("VIN",),
        (),
        frozenset({"VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"}),
        "the power supply's loss",
    ),
    Rule("Jetson Nano", ("POM_5V_IN",), (), frozenset({"POM_5V_GPU", "POM_5V_CPU"}), "the power supply's loss"),
    Rule(
        "Jetson TX1, TX2, Xavier NX, Orin Nano, Orin NX",
        ("VDD_IN",),
        (),
        frozenset(
            {
                *("VDD_CPU", "VDD_GPU", "VDD_SOC", "VDD_DDR", "VDD_WIFI", "VDD_4V0_WIFI", "VDD_CPU_GPU_CV"),
                *("VDD_SYS_CPU", "VDD_SYS_GPU", "VDD_SYS_SOC", "VDD_SYS_DDR"),
            }
        ),
        _MODULE,
    ),
    Rule("Jetson AGX Xavier", ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), (), frozenset(), _MODULE),
    # tegrastats prints the three only: VDDQ_VDD2_1V8AO is fed from VIN_SYS_5V0, adding it would count it twice.
    Rule(
        "Jetson AGX Orin",
        ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
        (),
        frozenset({"VDDQ_VDD2_1V8AO"}),
        f"{_MODULE} (VDDQ_VDD2_1V8AO is within VIN_SYS_5V0)",
    ),
    # The outputs of the power management chip, beside one another. Firmware releases name the 0.8 V rail differently.
    Rule(
        "Raspberry Pi 5, Compute Module 5",
        ("VDD_CORE", "3V3_SYS", "1V8_SYS", "1V1_SYS", "DDR_VDD2", "DDR_VDDQ"),
        ("3V7_WL_SW", "0V8_SW", "0V8_SYS", "3V3_DAC", "3V3_ADC", "0V8_AON", "HDMI"),
        frozenset(),
        "USB, fan, HAT, PCIe, the power management chip's and the power supply's loss",
    ),
)


def find_total(rails: Iterable[str]) -> Total:
    """The total of a board that has these rails.

    One rail in front of all others is a total whatever else is there. A sum is one only where every rail is known: a
    rail that nobody has placed may be part of another, or may be missing from the sum.
    """
    there = tuple(rails)
    for rule in RULES:
        if not set(rule.total) <= set(there):
            continue
        summed = (*rule.total, *(rail for rail in rule.also if rail in there))
        unknown = [rail for rail in there if rail not in summed and rail not in rule.nested]
        if unknown and len(summed) > 1:
            return Total((), "", f'unknown rail "{unknown[0]}" beside those of {rule.boards}: no total is known')
        return Total(summed, rule.leaves_out)
    return Total((), "", f'no total is known for the rails "{", ".join(there)}"')
