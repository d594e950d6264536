"""How long does `splitboard --help` take?

Shows the wall time of the installed command as a process of its own beside `python -c pass`, which no Python program
can beat; both in turn within every round. What is above it is what the command imports. The aim is 0.5 s.

Usage: python benchmarks/help_time.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
from output import ratio, show

from splitboard import __version__


def seconds(command: list[str]) -> float:
    """Wall time of one process."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "splitboard --help": [str(Path(sysconfig.get_path("scripts")) / "splitboard"), "--help"],
    }
    for command in commands.values():
        seconds(command)  # fills the caches of the file system and of compiled modules
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            times[name].append(seconds(command))
    bare = times["python -c pass"]
    rows = [
        {"command": name, "median s": float(np.median(found)), "over python -c pass": ratio(found, bare)}
        for name, found in times.items()
    ]
    about = f"{options.rounds} interleaved rounds after one that is discarded; 95 % bootstrap interval of the ratio"
    show(rows, f"splitboard {__version__}", about, as_json=options.json)


if __name__ == "__main__":
    main()
