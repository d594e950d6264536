"""What may change the timings of a board: governor, clock, temperature, throttling, load."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Callable, Dict, Optional, TypeVar

from splitboard.contract.record import Environment

T = TypeVar("T")

_CPU = "sys/devices/system/cpu/cpu0/cpufreq"
_VCGENCMD_TIMEOUT_S = 5.0


class _AbsentError(Exception):
    """The machine does not tell; the message is the reason."""


def read_environment(runtime: str, root: Path = Path("/")) -> Environment:
    """Reads the environment.

    Args:
        runtime: the interpreter and its version, ``none`` where no interpreter runs.
        root: of the file system that ``/proc`` and ``/sys`` are in.

    Returns:
        What the machine tells; every ``None`` has its reason in ``missing``.
    """
    missing: Dict[str, str] = {}

    def known(name: str, read: Callable[[], T]) -> Optional[T]:
        try:
            return read()
        except _AbsentError as error:
            missing[name] = str(error)
            return None

    return Environment(
        unix_ns=time.time_ns(),
        machine=platform.machine(),
        cpu_model=known("cpu_model", lambda: _cpu_model(root)),
        cpu_count=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        python=platform.python_version(),
        runtime=runtime,
        governor=known("governor", lambda: _text(root / _CPU / "scaling_governor")),
        clock_hz=known("clock_hz", lambda: 1e3 * _number(root / _CPU / "scaling_cur_freq")),
        temperature_c=known("temperature_c", lambda: 1e-3 * _number(root / "sys/class/thermal/thermal_zone0/temp")),
        throttled=known("throttled", _throttled),
        load_1min=known("load_1min", lambda: _first_number(root / "proc/loadavg")),
        missing=missing,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError as error:
        raise _AbsentError(f"{path}: {error.strerror}") from error


def _number(path: Path) -> float:
    text = _text(path)
    try:
        return float(text)
    except ValueError as error:
        raise _AbsentError(f"{path}: not a number: {text[:40]}") from error


def _first_number(path: Path) -> float:
    words = _text(path).split()
    try:
        return float(words[0])
    except (IndexError, ValueError) as error:
        raise _AbsentError(f"{path}: does not start with a number") from error


def _cpu_model(root: Path) -> str:
    """The board's name from the device tree where there is one (Arm), else the processor's name (x86)."""
    try:
        return _text(root / "proc/device-tree/model")
    except _AbsentError:
        pass  # not a device tree machine
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    raise _AbsentError(f"{root / 'proc/cpuinfo'}: no model name")


def _throttled() -> str:
    """The flags of the Raspberry Pi's firmware, e.g. ``throttled=0x0``."""
    program = shutil.which("vcgencmd")
    if program is None:
        raise _AbsentError("vcgencmd is not on PATH")
    try:
        done = subprocess.run(
            [program, "get_throttled"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_VCGENCMD_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _AbsentError(f"vcgencmd get_throttled: {error}") from error
    said = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode != 0:
        raise _AbsentError(f"vcgencmd get_throttled: exit {done.returncode}: {said[:80]}")
    return said
