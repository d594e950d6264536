"""What the edge runtime costs a board besides its time: disk, memory, and the wait for the first result.

*Disk*: the zip application, and the interpreter and numpy as pip installs them into an empty folder. *Memory*: resident
size of a fresh process that has loaded the bundle's edge file, with one signature set up and with all of them. *Start*:
from starting the process to the first line of an answer, local only. Every figure is of a process of its own, the
median of some rounds.

Usage: python benchmarks/edge_footprint.py mine.bundle
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from output import show

from boards.zipapp import NAME, build_zipapp
from runtime_edge.engines.litert import find_interpreter
from splitboard.contract.bundle import load_bundle
from splitboard.contract.samples import save_samples

_MIB = 1 << 20

_MEMORY = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from runtime_edge.engines.litert import LiteRtEngine, _resident_bytes
from splitboard.contract.bundle import load_bundle
folder, wanted = Path(sys.argv[2]), sys.argv[3:]
bundle = load_bundle(folder)
before = _resident_bytes()
splits = [split for split in bundle.splits if split.id in wanted]
with LiteRtEngine(folder, bundle, splits, arena_bytes=1 << 40) as engine:
    print(json.dumps([before, _resident_bytes(), list(engine.set_up)]))
"""


def installed_bytes(*distributions: str) -> int:
    """Bytes of the files that pip wrote for some distributions, without compiled Python."""
    total = 0
    for name in distributions:
        for file in importlib.metadata.files(name) or []:
            path = Path(str(file.locate()))
            if path.is_file() and path.suffix != ".pyc":
                total += path.stat().st_size
    return total


def memory(app: Path, folder: Path, splits: list[str], rounds: int) -> dict[str, Any]:
    """Resident size before and after these signatures are set up."""
    argv = [sys.executable, "-I", "-c", _MEMORY, str(app), str(folder), *splits]
    found = []
    for _ in range(rounds):
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    before, after = (statistics.median(one[i] for one in found) / _MIB for i in (0, 1))
    return {"what": f"memory, {len(found[0][2])} of the signatures, MiB", "value": after, "of it before, MiB": before}


def start_s(app: Path, folder: Path, local: str, data: Path, rounds: int) -> float:
    """From starting the process to its first answer."""
    argv = [sys.executable, "-I", str(app), "run", "--bundle", str(folder), "--data", str(data), "--split", local]
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            if process.stdout is None or not process.stdout.readline():
                raise RuntimeError("the edge runtime gave no answer")
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    bundle, interpreter = load_bundle(options.bundle), find_interpreter()
    local = bundle.splits[-1].id
    edge = [split.id for split in bundle.splits if not split.is_remote]
    with tempfile.TemporaryDirectory() as folder:
        app = build_zipapp(Path(folder) / NAME)
        spec = bundle.preprocessing
        save_samples(
            Path(folder) / "one.npz", np.zeros((1, spec.height, spec.width, spec.source_channels), np.uint8), {}
        )
        rows: list[dict[str, Any]] = [
            {"what": "zip application, MB (aim: below 0.3)", "value": app.stat().st_size / 1e6},
            {"what": f"{interpreter.name}, MB", "value": installed_bytes(interpreter.name.split()[0]) / 1e6},
            {"what": "numpy, MB", "value": installed_bytes("numpy") / 1e6},
            memory(app, options.bundle, [local], options.rounds),
            memory(app, options.bundle, edge, options.rounds),
            {
                "what": "start to first answer, s (aim: below 1)",
                "value": start_s(app, options.bundle, local, Path(folder) / "one.npz", options.rounds),
            },
        ]
    rows = [
        {"what": row["what"], "value": row["value"], "of it before, MiB": row.get("of it before, MiB", "")}
        for row in rows
    ]
    show(rows, interpreter.name, f"median of {options.rounds} processes", as_json=options.json)


if __name__ == "__main__":
    main()
