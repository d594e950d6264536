"""Programs that a board's maker ships and that tell power: run once, or followed line by line."""

from __future__ import annotations

import shutil
import subprocess
from typing import Sequence

from runtime_edge.meters.meter import AbsentError, MeterError

_TIMEOUT_S = 5.0


def find_program(name: str) -> str:
    """The program on ``PATH``.

    Raises:
        AbsentError: it is not there.
    """
    found = shutil.which(name)
    if found is None:
        raise AbsentError(f"no {name}")
    return found


def output(argv: Sequence[str]) -> str:
    """What a program prints.

    Raises:
        MeterError: it cannot be run, takes too long or fails.
    """
    what = " ".join(argv[1:])
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MeterError(f"{what}: {error}") from error
    said = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        raise MeterError(f"{what}: exit {done.returncode}: {said.strip()[:80]}")
    return said
