"""Meters beside the board that write numbers: a log that another program fills, and a serial line."""

from __future__ import annotations

import csv
import os
import select
import termios
import threading
import time
import tty
from pathlib import Path
from statistics import median
from typing import Iterator, List, Mapping, Optional, Tuple

from runtime_edge.meters.hwmon import product
from runtime_edge.meters.integral import Power
from runtime_edge.meters.meter import Meter, MeterError
from runtime_edge.meters.rails import Total
from runtime_edge.meters.sampled import StreamMeter

_LEAVES_OUT = "whatever the external meter does not see"
_WATTS = {"power": 1.0, "power_w": 1.0, "watts": 1.0, "power_mw": 1e-3}
_TIMES = ("time", "time_s", "time_ns", "unix_s", "unix_ns", "timestamp")
_POLL_S = 0.05
_USUAL_S = 0.5
"""Between two values, where nothing is known: USB meters tell two a second."""

_SERIAL_BLUR_S = 0.02
"""A short line at 9600 baud takes as long."""

Sample = Tuple[int, Optional[Mapping[str, Power]]]


class CsvStream:
    """A growing file with a header, a column of Unix times and one of power.

    Times are seconds to nanoseconds, told apart by their size, and are put on the clock of the windows by what both
    clocks of this machine say when a line is read. A log that another machine writes needs that machine's clock to
    agree with this one's; how well it does is not in the bound of the error.

    Args:
        path: the file.

    Raises:
        MeterError: it has no such columns, or no line yet.
    """

    rails: Tuple[str, ...] = ("external",)
    blur_s = 0.001

    def __init__(self, path: Path) -> None:
        self.name = f"csv {path.name}"
        self._path = path
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.reader(file))
        except (OSError, ValueError) as error:
            raise MeterError(f'"{path}" cannot be read: {error}') from error
        header = [name.strip().lower() for name in rows[0]] if rows else []
        times, watts = ([i for i, name in enumerate(header) if name in names] for names in (_TIMES, _WATTS))
        if not times or not watts:
            raise MeterError(f'"{path}" has no columns "time" and "power" but "{", ".join(header)}"')
        self._time, self._watts, self._unit_w = times[0], watts[0], _WATTS[header[watts[0]]]
        known = [sample[0] for sample in map(self._sample, rows[-50:]) if sample[1] is not None]
        steps = [(later - earlier) / 1e9 for earlier, later in zip(known, known[1:])]
        self.interval_s = max(median(steps), 1e-3) if steps else _USUAL_S

    def _sample(self, row: List[str]) -> Sample:
        """Unix time in nanoseconds, and the power."""
        try:
            stamp = float(row[self._time])
            digits = row[self._time].strip()
            power = _told(row[self._watts].strip(), self._unit_w)
        except (IndexError, ValueError):
            return 0, None
        for least, factor in ((1e17, 1), (1e14, 1_000), (1e11, 1_000_000)):
            if stamp >= least:
                return (int(digits) if digits.isdigit() else int(stamp)) * factor, {"external": power}
        return round(stamp * 1e9), {"external": power}

    def samples(self, stop: threading.Event) -> Iterator[Sample]:
        """The lines from now on, the last one that is there already first."""
        for line in self._lines(stop):
            unix_ns, powers = self._sample(next(csv.reader([line]), []))
            offset_ns = time.perf_counter_ns() - time.time_ns()
            yield unix_ns + offset_ns, powers

    def _lines(self, stop: threading.Event) -> Iterator[str]:
        """Whole lines, waiting for the next."""
        with open(self._path, encoding="utf-8", errors="replace") as file:
            whole = [line for line in file.readlines() if line.endswith("\n")]
            file.seek(0)
            for _ in range(max(1, len(whole) - 1)):  # the header, and what was logged before
                file.readline()
            rest = ""
            while not stop.is_set():
                rest += file.readline()
                if rest.endswith("\n"):
                    yield rest
                    rest = ""
                elif stop.wait(_POLL_S):
                    return

    def close(self) -> None:
        """Nothing is open between two lines."""


class SerialStream:
    """Lines of watts, or of volts and amperes with a comma between, from a serial port.

    Args:
        port: e.g. ``/dev/ttyUSB0``.
        baud: of the port.

    Raises:
        MeterError: it cannot be opened, or has no such speed.
    """

    rails: Tuple[str, ...] = ("external",)
    interval_s = _USUAL_S
    blur_s = _SERIAL_BLUR_S

    def __init__(self, port: str, baud: int) -> None:
        self.name = f"serial {port}"
        speed = getattr(termios, f"B{baud}", None)
        if speed is None:
            raise MeterError(f'"{baud}" is no speed of a serial port')
        try:
            self._file = os.open(port, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise MeterError(f'"{port}" cannot be opened: {error.strerror}') from error
        try:
            tty.setraw(self._file)
            settings = termios.tcgetattr(self._file)
            settings[4] = settings[5] = speed
            termios.tcsetattr(self._file, termios.TCSANOW, settings)
        except termios.error as error:
            os.close(self._file)
            raise MeterError(f'"{port}" is no serial port') from error

    def samples(self, stop: threading.Event) -> Iterator[Sample]:
        """One sample per line, of the moment that it came; what was cut off by the beginning is dropped."""
        rest, cut = b"", True
        try:
            while not stop.is_set():
                if not select.select([self._file], [], [], _POLL_S)[0]:
                    continue
                got = self._got()
                at_ns = time.perf_counter_ns()
                *lines, rest = (rest + got).split(b"\n")
                for line in lines:
                    if not cut:
                        yield at_ns, parse_serial(line.decode("ascii", "replace"))
                    cut = False
        finally:
            os.close(self._file)

    def _got(self) -> bytes:
        try:
            got = os.read(self._file, 4096)
        except OSError as error:
            raise MeterError(f"{self.name} is gone: {error.strerror}") from error
        if not got:
            raise MeterError(f"{self.name} is gone")
        return got

    def close(self) -> None:
        """The thread that reads closes the port."""


def parse_serial(line: str) -> Optional[Mapping[str, Power]]:
    """Power of a line ``watts`` or ``volts,amperes``; ``None`` where it is neither."""
    words = [word.strip() for word in line.split(",")]
    try:
        if len(words) == 1:
            return {"external": _told(words[0], 1.0)}
        if len(words) == 2:
            (volts, volts_step), (amperes, amperes_step) = (_told(word, 1.0) for word in words)
            return {"external": product(volts, amperes, volts_step, amperes_step)}
    except ValueError:
        pass  # not a number
    return None


def _told(word: str, unit: float) -> Power:
    """A number, and the worth of its last digit."""
    return Power(float(word) * unit, 10.0 ** -len(word.partition(".")[2].partition("e")[0]) * unit)


def csv_meter(path: Path) -> Meter:
    """A log.

    Raises:
        MeterError: it cannot be read.
    """
    stream = CsvStream(path)
    return StreamMeter(stream, Total(stream.rails, _LEAVES_OUT))


def serial_meter(port: str, baud: int) -> Meter:
    """A serial port.

    Raises:
        MeterError: it cannot be opened.
    """
    stream = SerialStream(port, baud)
    return StreamMeter(stream, Total(stream.rails, _LEAVES_OUT))
