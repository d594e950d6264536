"""Fetches what emulated boards need: ``python -m boards.emulated``. What is there already is not fetched again."""

from __future__ import annotations

import sys

from boards.emulated.userland import PYTHONS, WHEELS, prepare
from splitboard.contract.errors import SplitboardError


def main() -> int:
    """Fetches every release with every runtime that it has a wheel of.

    Returns:
        The exit code.
    """
    try:
        for release, python in PYTHONS.items():
            for runtime in WHEELS:
                if runtime != "tflite-runtime" or python == "3.11":
                    prepare("rpi5", release, runtime, lambda what: sys.stderr.write(f"{what}\n"))
    except SplitboardError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
