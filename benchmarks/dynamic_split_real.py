"""The dynamic split on a real link: network namespaces, TCP, the real server, and the real edge loop on a slowed board.

One trace is played once per run to `splitboard-edge run` with every fixed split and with `--split auto`, one run after
the other; it begins when the first image is answered, by when costs are measured and connections open. The edge's
process gets a share of one processor (cgroup v1), so that it is as slow as a board; the server has the rest.

The oracle of every image is the least latency that any fixed split had for it. That is an oracle of what was measured:
it picks out every run's lucky moments too, so the regret against it is somewhat too large.

Needs root, /dev/net/tun, iproute2, /sys/fs/cgroup/cpu, and a bundle with a local split.

Usage: python benchmarks/dynamic_split_real.py BUNDLE --data test.npz --trace held-out-steps [--share 0.2] [--limit 400]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the link emulator is the tests'

from network.emulator import TunNetwork
from network.traces import Trace, constant, read_trace
from output import show

from splitboard.contract.bundle import load_bundle

ROOT = Path(__file__).parents[1]
TRACES = Path(__file__).parent / "traces"
CGROUPS = Path("/sys/fs/cgroup/cpu")
PORT = 8000
_SHORTEST_US, _LEAST_QUOTA_US = 5_000, 1_000
"""The shorter the period, the less a short computation escapes its share; the kernel grants no less than 1 ms."""


@contextlib.contextmanager
def slow_board(share: float) -> Iterator[Path]:
    """A control group whose processes together get this share of one processor."""
    group = CGROUPS / f"slow-board-{os.getpid()}"
    group.mkdir()
    try:
        period_us = max(_SHORTEST_US, round(_LEAST_QUOTA_US / share))
        (group / "cpu.cfs_period_us").write_text(str(period_us))
        (group / "cpu.cfs_quota_us").write_text(str(max(_LEAST_QUOTA_US, round(share * period_us))))
        yield group
    finally:
        group.rmdir()


@contextlib.contextmanager
def server(network: TunNetwork, bundle: Path) -> Iterator[str]:
    """The server on the far side; gives its URL as the near side sees it."""
    command = [str(Path(sysconfig.get_path("scripts")) / "splitboard"), "serve", str(bundle)]
    process = network.start_far([*command, "--host", network.far_host, "--port", str(PORT)], stdout=subprocess.DEVNULL)
    url = "http://{}:{}".format(*network.reach(PORT))
    ask = f"import urllib.request; urllib.request.urlopen('{url}/v2/health/ready', timeout=1)"
    try:
        while network.start_near([sys.executable, "-c", ask], stderr=subprocess.DEVNULL).wait() != 0:
            if process.poll() is not None:
                raise RuntimeError("the server did not start")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def latencies(network: TunNetwork, trace: Trace, group: Path, argv: list[str]) -> tuple[list[float], list[str]]:
    """Milliseconds and split of every image of one run."""
    first = trace.at(0.0)
    network.play(constant(first.rate_bps, first.delay_s, first.loss))
    process = network.start_near(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    (group / "cgroup.procs").write_text(str(process.pid))
    ms, splits = [], []
    for number, line in enumerate(process.stdout):
        if number == 0:
            network.play(trace)
        image = json.loads(line)
        ms.append(image["total_ns"] / 1e6)
        splits.append(image["split"])
    if process.wait() != 0:
        raise RuntimeError(f"the run failed: {' '.join(argv)}")
    return ms[1:], splits[1:]


def main() -> None:
    """Plays, and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trace", default="held-out-steps", help="of benchmarks/traces")
    parser.add_argument("--share", type=float, default=0.2, help="of a processor, for the edge")
    parser.add_argument("--rate", type=float, default=5.0, help="images a second")
    parser.add_argument("--limit", type=int, default=400, help="images per run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    trace = read_trace(TRACES / f"{options.trace}.csv")
    splits = [split.id for split in load_bundle(options.bundle).splits]
    common = ["--bundle", str(options.bundle), "--data", str(options.data), "--limit", str(options.limit)]
    runs: dict[str, list[float]] = {}
    with TunNetwork() as network, server(network, options.bundle) as url, slow_board(options.share) as group:
        for split in [*splits, "auto"]:
            how = ["--split", split, "--server", url, "--rate", str(options.rate)]
            argv = [sys.executable, "-m", "runtime_edge", "run", *common, *how]
            runs[split], taken = latencies(network, trace, group, argv)
    oracle = [min(ms) for ms in zip(*(runs[split] for split in splits), strict=True)]
    rows = [
        {
            "split": split,
            "mean ms": sum(ms) / len(ms),
            "regret %": 100 * (sum(ms) / sum(oracle) - 1),
            "switches": sum(a != b for a, b in itertools.pairwise(taken)) if split == "auto" else 0,
        }
        for split, ms in runs.items()
    ]
    about = f"{options.trace}, {len(oracle)} images at {options.rate:g} per s, edge on {options.share:g} of a processor"
    show(rows, "splitboard-edge run", about, as_json=options.json)


if __name__ == "__main__":
    main()
