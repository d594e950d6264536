"""Does a board that answers for days grow, or its server? Many requests through the real loop, memory sampled.

A session with an engine, a link and a watch asks a server in a process of its own for one split, again and again.
Shown are the resident sizes of both processes over the run; flat means that the second half is not above the first one
by more than a few pages per thousand requests.

Usage: python benchmarks/soak.py mine.bundle --requests 200000
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from output import show

from runtime_edge.engines.litert import LiteRtEngine, find_interpreter
from runtime_edge.link.link import Link
from runtime_edge.link.sender import Sender
from runtime_edge.link.watch import ServerWatch
from runtime_edge.loop.session import Manners, Session
from runtime_edge.pipeline import Pipeline
from runtime_edge.policy.choosers import FixedSplit
from splitboard.cli.bench import serving
from splitboard.contract.bundle import bundle_sha256, load_bundle

N_ROWS = 10


def resident_kib(pid: int) -> int:
    """Resident size (proc(5))."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def listening_pid(url: str) -> int:
    """The process that listens at a loopback URL: the newest child of ours that serves."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(_own())], capture_output=True, text=True, check=True
    )
    return next(int(line.split()[0]) for line in listed.stdout.splitlines() if " serve " in line or url in line)


def _own() -> int:
    return int(Path("/proc/self").resolve().name)


def soak(folder: Path, split_id: str, requests: int) -> list[dict[str, Any]]:
    """Rows of memory and throughput, one per tenth of the run."""
    bundle = load_bundle(folder)
    split, local = bundle.split(split_id), bundle.splits[-1]
    spec = bundle.preprocessing
    images = np.random.default_rng(0).integers(
        0, 256, (64, spec.height, spec.width, spec.source_channels), dtype=np.uint8
    )
    rows = []
    with serving(folder) as url, LiteRtEngine(folder, bundle, [split, local]) as engine, Link(url) as link:
        server = listening_pid(url)
        pipeline = Pipeline(bundle, bundle_sha256(folder), (split, local), engine, Sender(link))
        with ServerWatch(Link(url), pipeline.interfaces[split.id]) as watch:
            session = Session(pipeline, (split, local), FixedSplit(split.id, local.id, 0.0), watch, Manners())
            failures = 0
            for row in range(N_ROWS + 1):
                rows.append(
                    {
                        "requests": row * requests // N_ROWS,
                        "edge KiB": resident_kib(_own()),
                        "server KiB": resident_kib(server),
                        "failures": failures,
                    }
                )
                if row == N_ROWS:
                    break
                start = time.perf_counter()
                for number in range(requests // N_ROWS):
                    done = session.finish(session.begin(images[number % len(images)]))
                    session.settle(done)
                    failures += done.failure is not None
                rate = requests // N_ROWS / (time.perf_counter() - start)
                sys.stderr.write(f"\r{(row + 1) * 10} %, {rate:.0f} requests a second ")
                sys.stderr.flush()
    sys.stderr.write("\n")
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--split", help="default: the first with an edge half")
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    bundle = load_bundle(options.bundle)
    split = options.split or next(one.id for one in bundle.splits if not one.is_remote and not one.is_local)
    rows = soak(options.bundle, split, options.requests)
    half = rows[len(rows) // 2]
    grown = {name: rows[-1][name] - half[name] for name in ("edge KiB", "server KiB")}
    about = f"split {split}; growth in the second half: " + ", ".join(f"{name} {kib}" for name, kib in grown.items())
    show(rows, find_interpreter().name, about, as_json=options.json)


if __name__ == "__main__":
    main()
