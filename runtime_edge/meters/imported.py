"""A meter of the user's own: any class with ``read_j``, ``source`` and ``resolution_j``."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from runtime_edge.meters.counters import CounterMeter
from runtime_edge.meters.meter import Meter, MeterError


class UserMeter(CounterMeter):
    """Joules that somebody else counts.

    Args:
        made: has ``read_j() -> float``, ``source: str``, ``resolution_j: float``, and may have ``leaves_out: str``; is
            entered and left where it is a context manager.
    """

    def __init__(self, made: Any) -> None:
        source = str(made.source)
        super().__init__(
            source, {source: self._joules}, str(getattr(made, "leaves_out", "not told")), float(made.resolution_j), 0.0
        )
        self._made = made

    def _joules(self) -> float:
        try:
            return float(self._made.read_j())
        except Exception as error:  # their code: whatever it raises is a reading that failed
            raise MeterError(f"{self.source}: {type(error).__name__}: {error}") from error

    def __enter__(self) -> UserMeter:
        if hasattr(self._made, "__enter__"):
            self._made.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if hasattr(self._made, "__exit__"):
            self._made.__exit__(None, None, None)


def imported_meter(spec: str) -> Meter:
    """``package.module:Class``, found on ``PYTHONPATH`` even by an isolated interpreter, and called without arguments.

    Raises:
        MeterError: it cannot be imported, made or used.
    """
    module_name, _, name = spec.partition(":")
    folders = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path.extend(folder for folder in folders if folder not in sys.path)
    try:
        made = getattr(importlib.import_module(module_name), name)()
    except Exception as error:  # their code: whatever it raises is why there is no meter
        raise MeterError(f"{type(error).__name__}: {error}") from error
    missing = [part for part in ("read_j", "source", "resolution_j") if not hasattr(made, part)]
    if missing:
        raise MeterError(f"it has no {', '.join(missing)}")
    return UserMeter(made)
