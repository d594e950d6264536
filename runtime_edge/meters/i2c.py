"""Registers on an I2C bus, through the kernel's own device files."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Protocol

from runtime_edge.meters.meter import AbsentError, MeterError

_I2C_SLAVE = 0x0703
"""``linux/i2c-dev.h``: the address that reads and writes go to. Refused where a driver of the kernel has the chip."""


class Bus(Protocol):
    """Registers of one chip, the most significant byte first."""

    def read(self, register: int, n_bytes: int) -> int:
        """The register as a number without sign.

        Raises:
            MeterError: the chip does not answer.
        """

    def write(self, register: int, value: int) -> None:
        """Two bytes.

        Raises:
            MeterError: the chip does not answer.
        """


class LinuxBus:
    """A chip at ``/dev/i2c-N``.

    A register is read as a write of its number and a read: these chips keep the number between the two (INA226 data
    sheet, SBOS547, 7.5.3).

    Args:
        root: of the file system.
        bus: number of the bus.
        address: of the chip.

    Raises:
        MeterError: no such bus, no permission, or a driver has the chip.
    """

    def __init__(self, root: Path, bus: int, address: int) -> None:
        path = root / f"dev/i2c-{bus}"
        self._where = f"{path} 0x{address:02x}"
        try:
            self._file = os.open(path, os.O_RDWR)
        except FileNotFoundError as error:
            raise AbsentError(f'no I2C bus "{path}"') from error
        except OSError as error:
            raise MeterError(f'"{path}": {error.strerror} (group i2c)') from error
        try:
            fcntl.ioctl(self._file, _I2C_SLAVE, address)
        except OSError as error:
            os.close(self._file)
            raise MeterError(f'"{self._where}": {error.strerror}') from error

    def read(self, register: int, n_bytes: int) -> int:
        """The register as a number without sign."""
        try:
            os.write(self._file, bytes([register]))
            data = os.read(self._file, n_bytes)
        except OSError as error:
            raise MeterError(f'"{self._where}" does not answer: {error.strerror}') from error
        if len(data) != n_bytes:
            raise MeterError(f'"{self._where}" sent {len(data)} bytes instead of {n_bytes}')
        return int.from_bytes(data, "big")

    def write(self, register: int, value: int) -> None:
        """Two bytes."""
        try:
            os.write(self._file, bytes([register, *value.to_bytes(2, "big")]))
        except OSError as error:
            raise MeterError(f'"{self._where}" does not answer: {error.strerror}') from error

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._file)
