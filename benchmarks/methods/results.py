"""Everything in docs/results, one script after the other: hours, and it goes on where it was left.

Usage: python benchmarks/methods/results.py [--quick]
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from result_page import arguments

HERE = Path(__file__).parent
SCRIPTS = ("latency_tables", "dynamic_split", "digits", "train_all", "mtl_split", "sparsity", "together")
"""What is timed comes first and last, and never beside the trainings."""


def main() -> None:
    """Runs them all; the first that fails ends it."""
    asked = arguments(__doc__ or "")
    options = ["--quick"] if asked.quick else []
    for name in SCRIPTS:
        started = time.monotonic()
        print(f"{name} ...", flush=True)
        subprocess.run([sys.executable, HERE / f"{name}.py", *options], check=True)
        print(f"{name}: {(time.monotonic() - started) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
