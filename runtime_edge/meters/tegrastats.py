"""``tegrastats``, where there is nothing better: whole milliwatts, ten times a second."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from typing import Dict, Iterator, Mapping, Optional, Tuple

from runtime_edge.meters.commands import find_program
from runtime_edge.meters.integral import Power
from runtime_edge.meters.meter import Meter, MeterError
from runtime_edge.meters.rails import find_total
from runtime_edge.meters.sampled import StreamMeter

# A rail is a name and two or three values, "VDD_IN 4200mW/4300mW" or "VDD_IN 4200/4300" before JetPack 5: now, the
# average since the program began, and from JetPack 7 on a third. Loads have "%", temperatures "@", memory "MB",
# frequencies no slash, so none of them looks like this.
_RAIL = re.compile(r"(?<!\S)(?P<rail>[A-Z][A-Z0-9_]*) (?P<now>-?\d+)(?:mW)?(?:/-?\d+(?:mW)?){1,2}(?!\S)")

_INTERVAL_MS = 100
_STEP_W = 0.4
"""It tells whole milliwatts, of a chip that may resolve 0.39 W only (20 mA at 19.6 V, AGX Orin)."""


def parse_line(line: str) -> Dict[str, Power]:
    """Power by rail from one line; empty where it has none."""
    return {match["rail"]: Power(int(match["now"]) * 1e-3, _STEP_W) for match in _RAIL.finditer(line)}


class TegrastatsStream:
    """Runs the program and follows it.

    Raises:
        MeterError: it does not run, or tells no power.
    """

    name = "tegrastats"
    interval_s = _INTERVAL_MS * 1e-3
    blur_s = _INTERVAL_MS * 1e-3

    def __init__(self) -> None:
        self._argv = [find_program("tegrastats"), "--interval", str(_INTERVAL_MS)]
        self._process: Optional[subprocess.Popen[bytes]] = None
        first = next(self._lines(), {})
        self.close()
        if not first:
            raise MeterError("tegrastats tells no power")
        self.rails: Tuple[str, ...] = tuple(first)

    def _lines(self) -> Iterator[Dict[str, Power]]:
        """Power by rail, line by line."""
        try:
            self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except OSError as error:
            raise MeterError(f"tegrastats: {error.strerror}") from error
        if self._process.stdout is not None:
            for line in self._process.stdout:
                yield parse_line(line.decode("utf-8", "replace"))

    def samples(self, stop: threading.Event) -> Iterator[Tuple[int, Mapping[str, Power]]]:
        """One sample per line, of the moment that the line came."""
        for powers in self._lines():
            if stop.is_set():
                return
            if set(powers) >= set(self.rails):
                yield time.perf_counter_ns(), {rail: powers[rail] for rail in self.rails}
        if not stop.is_set():
            raise MeterError("tegrastats has ended")

    def close(self) -> None:
        """Ends the program."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()


def tegrastats_meter() -> Meter:
    """The total of the rails that it prints.

    Raises:
        MeterError: there is no such program, or it tells no power.
    """
    stream = TegrastatsStream()
    return StreamMeter(stream, find_total(stream.rails))
