"""NVIDIA's management library: the energy counter of a graphics card. It is asked through ``ctypes``: no package."""

from __future__ import annotations

import ctypes
from typing import Any

from runtime_edge.meters.counters import CounterMeter
from runtime_edge.meters.hwmon import RailSensor
from runtime_edge.meters.integral import Power
from runtime_edge.meters.meter import AbsentError, Meter, MeterError
from runtime_edge.meters.rails import Total
from runtime_edge.meters.sampled import SampledMeter

LIBRARY = "libnvidia-ml.so.1"

_UPDATE_S = 0.1
"""The counter moves with the power sensor, ten times a second on the slowest cards (Volta)."""

_LEAVES_OUT = "everything but the graphics card: processor, memory, mainboard, the power supply's loss"


class Nvml:
    """The library, and one card.

    Args:
        library: name of the shared object.
        index: which card.

    Raises:
        MeterError: no library, no driver or no card.
    """

    def __init__(self, library: str = LIBRARY, index: int = 0) -> None:
        try:
            self._library: Any = ctypes.CDLL(library)
        except OSError as error:
            raise AbsentError("no NVML") from error
        self._library.nvmlErrorString.restype = ctypes.c_char_p
        self._call("nvmlInit_v2")
        self._card = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(self._card))

    def energy_mj(self) -> int:
        """Millijoules since the driver was loaded (``nvmlDeviceGetTotalEnergyConsumption``, from Volta on)."""
        found = ctypes.c_ulonglong()
        self._call("nvmlDeviceGetTotalEnergyConsumption", self._card, ctypes.byref(found))
        return found.value

    def power_mw(self) -> int:
        """Milliwatts (``nvmlDeviceGetPowerUsage``)."""
        found = ctypes.c_uint()
        self._call("nvmlDeviceGetPowerUsage", self._card, ctypes.byref(found))
        return found.value

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise MeterError(f"{name}: {self._library.nvmlErrorString(code).decode('ascii', 'replace')}")


def nvml_meter(library: str = LIBRARY) -> Meter:
    """The first card: its counter, else its power.

    Raises:
        MeterError: neither is supported. A Jetson's library starts and finds a device, and then supports neither.
    """
    card = Nvml(library)
    try:
        card.energy_mj()
    except MeterError as no_counter:
        try:
            card.power_mw()
        except MeterError:
            raise no_counter from None
        sensor = RailSensor("nvml power", {"gpu": lambda: Power(card.power_mw() * 1e-3, 1e-3)}, _UPDATE_S, _UPDATE_S)
        return SampledMeter(sensor, Total(("gpu",), _LEAVES_OUT))
    return CounterMeter("nvml: gpu", {"gpu": lambda: card.energy_mj() * 1e-3}, _LEAVES_OUT, 1e-3, _UPDATE_S)
