"""Dynamic split computing on the natural bottlenecks of the EfficientNet family: what the product's policy gains.

Measured latency tables (`latency_tables.py`) meet links of a constant rate from 1 Mbit/s to 1 Gbit/s, batches of 1 to
16 images, servers that are loaded 1 to 8 times, boards as fast as the measured thread, 4 and 16 times slower, and the
held-out traces of `benchmarks/traces`. Every static split, the policy and an oracle play under the same conditions
(`split_conditions.py`). Beside that stands what each split does to the answers (`split_accuracy.py`).

Writes `docs/results/dynamic-split.md`, its pictures and its data. What was done before is not done again; the quick
form writes into `build/results/quick` instead.

Usage: python benchmarks/methods/dynamic_split.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dynamic_split_page import write_page
from dynamic_split_results import Results, read_results, write_results
from jobs import Store, work_off
from latency_tables import BATCHES, measured_tables
from split_accuracy import measured_accuracies
from split_conditions import (
    JPEG,
    PERIOD_S,
    RAW,
    ROOT,
    Cell,
    Rows,
    Setting,
    candidates,
    cells,
    compare,
    from_json,
    steady,
    to_json,
    told_costs,
    true_costs,
)
from stamp import take_stamp

from network.traces import read_trace  # isort: skip - importable behind split_conditions
from split_simulation import World, dynamic, fixed  # isort: skip

WORK = ROOT / "build" / "results" / "dynamic-split"
QUICK = ROOT / "build" / "results" / "quick"
DOCS = ROOT / "docs" / "results"
TRACES = ROOT / "benchmarks" / "traces"

RATES_MBPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
RTT_MS = 5.0
LOADS = (1, 2, 4, 8)
EDGES = (1, 4, 16)
"""1: the board is one thread of the machine that the tables are of. The others are assumed; where that thread is
several times as fast in INT8 as the server in float, 4 is a board about as fast as its server."""

TRACE_SETTINGS = ((1, 1), (1, 4), (16, 1))
"""Batch and load."""

TIMELINE = "steps"
"""The trace that is shown along its time."""

N_REQUESTS, N_QUICK = 200, 60
TRACE_S = 120.0
SEED = 1000


@dataclass(frozen=True)
class Simulation:
    """One network on one board, under every condition.

    Attributes:
        table: name of the latency table.
        remote: the form of remote only, `RAW` or `JPEG`.
        edge: what the board's times are multiplied by.
        n_requests: on every constant link.
        rows: the table's, as JSON: another measurement is another job.
    """

    table: str
    remote: str
    edge: float
    n_requests: int
    rows: str

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.table}-{self.remote}-x{self.edge:g}"


def constant_settings() -> Iterator[tuple[int, float]]:
    """Batch and load: every load for single images, every batch on an idle server."""
    yield from ((1, load) for load in LOADS)
    yield from ((batch, 1) for batch in BATCHES[1:])


def simulate(job: Simulation, _: Store) -> dict[str, Any]:
    """All conditions of one job."""
    rows = candidates(json.loads(job.rows), job.remote)
    constant = [
        compare(rows, Setting(job.edge, batch, load), f"{rate:g}", steady(rate, RTT_MS), job.n_requests, SEED)
        for batch, load in constant_settings()
        for rate in RATES_MBPS
    ]
    varying = [
        compare(
            rows,
            Setting(job.edge, batch, load),
            path.stem.removeprefix("held-out-"),
            read_trace(path),
            max(math.ceil(TRACE_S / (PERIOD_S * batch) * job.n_requests / N_REQUESTS), job.n_requests),
            SEED,
        )
        for batch, load in TRACE_SETTINGS
        for path in sorted(TRACES.glob("held-out-*.csv"))
    ]
    return {"constant": [to_json(one) for one in constant], "varying": [to_json(one) for one in varying]}


def simulated(tables: Mapping[str, Any], n_requests: int, store: Store) -> dict[str, dict[str, list[Cell]]]:
    """Every table's simulations, by job name, then ``constant`` or ``varying``."""
    jobs = [
        Simulation(name, remote, edge, n_requests, json.dumps(table["rows"]))
        for name, table in tables.items()
        if table["precision"] == "int8"
        for remote in ((RAW, JPEG) if any(row["split"] == JPEG for row in table["rows"]) else (RAW,))
        for edge in EDGES
    ]
    work_off(jobs, store, simulate)
    found: dict[str, dict[str, list[Cell]]] = {}
    for job in jobs:
        kept = store.read(job)
        if kept is None:
            raise RuntimeError(f"{job.name} was worked off and is not there")
        found[job.name] = {
            kind: cells([from_json(one) for one in kept[kind]], job.remote) for kind in ("constant", "varying")
        }
    return found


def timeline(rows: Rows, trace: str, edge: float) -> dict[str, Any]:
    """One trace in single images: the link, what the policy took, and what the best static split took."""
    link = read_trace(TRACES / f"held-out-{trace}.csv")
    setting, n = Setting(edge, 1, 1), round(TRACE_S / PERIOD_S)
    chosen = candidates(rows, RAW)
    world = World(link, true_costs(chosen, setting), n, SEED)
    taken = dynamic(world, told_costs(chosen, setting))
    statics = {split: fixed(world, split) for split in world.costs}
    best = min(statics, key=lambda split: statics[split].total_s)
    times = [PERIOD_S * i for i in range(n)]
    return {
        "trace": trace,
        "time_s": [round(time, 1) for time in times],
        "rate_mbps": [round(link.at(time).rate_bps / 1e6, 3) for time in times],
        "splits": list(taken.splits),
        "dynamic_ms": [round(1e3 * value, 1) for value in taken.latencies_s],
        "best": best,
        "best_ms": [round(1e3 * value, 1) for value in statics[best].latencies_s],
    }


def main() -> None:
    """Measures and simulates what is missing, writes the page from what it stored."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="EfficientNet-Lite0 in INT8 alone, few requests and images"
    )
    parser.add_argument("--page", action="store_true", help="only write the page again, from docs/results/data")
    options = parser.parse_args()
    target = QUICK if options.quick else DOCS
    if not options.page:
        tables = measured_tables(quick=options.quick)
        n_requests = N_QUICK if options.quick else N_REQUESTS
        results = Results(
            tables=tables,
            simulations=simulated(tables, n_requests, Store(WORK / "quick" if options.quick else WORK)),
            accuracies=measured_accuracies(quick=options.quick),
            timeline=timeline(next(iter(tables.values()))["rows"], TIMELINE, EDGES[-1]),
            rtt_ms=RTT_MS,
            stamp=take_stamp((SEED,)),
        )
        write_results(target, results)
    write_page(target, read_results(target))
    print(target / "dynamic-split.md")


if __name__ == "__main__":
    main()
