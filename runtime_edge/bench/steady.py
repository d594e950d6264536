"""A board that is held still for as long as something is measured or built on it."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Iterator

from runtime_edge.bench.clocks import SUDO, cool_down, governor_changes, held, power_mode_changes
from runtime_edge.bench.environment import read_environment

COOL_DOWN_S = 600.0


def add_clock_options(parser: argparse.ArgumentParser) -> None:
    """The options of `steady`."""
    parser.add_argument("--governor", metavar="NAME", help="meanwhile, e.g. performance; put back afterwards")
    parser.add_argument("--power-mode", metavar="NAME", help="of a Jetson, e.g. 15W; put back afterwards")
    parser.add_argument("--sudo", action="store_true", help="set both as root, by sudo -n")
    parser.add_argument("--start-temperature", type=float, metavar="C", help="wait until the board is so cool")
    parser.add_argument("--cool-down", type=float, default=COOL_DOWN_S, metavar="S", help="longest wait for that")


@contextlib.contextmanager
def steady(options: argparse.Namespace) -> Iterator[None]:
    """Governor and power mode held, and the board cooled down."""
    changes = [] if options.governor is None else governor_changes(options.governor)
    changes += [] if options.power_mode is None else power_mode_changes(options.power_mode)
    with held(changes, SUDO if options.sudo else ()):
        if options.start_temperature is not None:
            cool_down(
                options.start_temperature,
                options.cool_down,
                lambda: read_environment("none").temperature_c,
                _note,
            )
        yield


def _note(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
