"""How much does the dynamic split lose against an oracle, and what does it gain over fixed splits?

Every trace of `benchmarks/traces` is played to three kinds of runner: an oracle, which knows the trace and every
request's own disturbances and takes the best split each time; every fixed split; and the policy, which knows what a
board can know. Regret is the sum of a run's latencies over the oracle's, minus one.

Time is simulated (`split_simulation.py` says how), 1200 frames at 10 per second, on the four boards below. The times of
`here` are the demo's, from README.md; the others' are these times multiplied, not measured. `dynamic_split_real.py`
sends real requests over a real link.

Usage: python benchmarks/dynamic_split.py [--traces held-out] [--json]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the link emulator is the tests'

from network.traces import Trace, read_trace
from output import show
from split_simulation import Run, World, dynamic, fixed, oracle

from runtime_edge.policy.dynamic_split import SplitCost

TRACES = Path(__file__).parent / "traces"
N_REQUESTS = 1200
MATTERS = 0.05
"""Where the best fixed split is within this of the oracle, no policy can gain much, and none is asked to."""

# README.md: split, edge ms, payload bytes, server ms; 1 ms of preparing is added to every edge half.
_DEMO = (
    ("s00", 0.0, 50176, 17.89),
    ("s17", 6.92, 31360, 9.54),
    ("s31", 10.90, 21952, 5.18),
    ("s39", 13.40, 9408, 2.02),
    ("s49", 14.72, 0, 0.0),
)
_SCALES = {"here": (1.0, 1.0), "x1.5, fast server": (1.5, 0.2), "x3": (3.0, 0.5), "x10": (10.0, 1.0)}
"""By board: what the demo's edge and server times are multiplied by."""


def board(name: str) -> list[SplitCost]:
    """The splits of the demo on one of the boards."""
    edge, server = _SCALES[name]
    return [SplitCost(split, (1 + ms * edge) * 1e6, size, there * server * 1e6) for split, ms, size, there in _DEMO]


@dataclass(frozen=True)
class Compared:
    """What the runs over one trace on one board took."""

    trace: str
    board: str
    oracle: Run
    fixed: dict[str, Run]
    dynamic: Run

    @property
    def best_fixed(self) -> str:
        """The fixed split whose latencies sum up to least."""
        return min(self.fixed, key=lambda split: self.fixed[split].total_s)

    def row(self) -> dict[str, object]:
        """For the table; shares in percent."""
        best, best_s = self.best_fixed, self.fixed[self.best_fixed].total_s
        return {
            "trace": self.trace,
            "board": self.board,
            "oracle ms": 1e3 * self.oracle.total_s / len(self.oracle.splits),
            "best fixed": best,
            "its regret %": 100 * (best_s / self.oracle.total_s - 1),
            "regret %": 100 * (self.dynamic.total_s / self.oracle.total_s - 1),
            "against best fixed %": 100 * (self.dynamic.total_s / best_s - 1),
            "switches": self.dynamic.n_switches,
        }


def compare(name: str, trace: Trace, on: str, seed: int) -> Compared:
    """All runs over one trace on one board."""
    costs = board(on)
    world = World(trace, costs, N_REQUESTS, seed)
    every = {cost.split: fixed(world, cost.split) for cost in costs}
    return Compared(name, on, oracle(world), every, dynamic(world, costs))


def simulate(prefix: str, seed: int) -> Iterator[Compared]:
    """Every trace whose name begins so, on every board."""
    for path in sorted(TRACES.glob(f"{prefix}*.csv")):
        for on in _SCALES:
            yield compare(path.stem, read_trace(path), on, seed)


def summary(rows: list[Compared]) -> str:
    """What the aims are about."""
    regrets = sorted(one.dynamic.total_s / one.oracle.total_s - 1 for one in rows)
    told = [f"median regret {regrets[len(regrets) // 2]:.1%}, worst {regrets[-1]:.1%}"]
    told.append(f"above 5 %: {sum(regret > 0.05 for regret in regrets)} of {len(regrets)}")
    constant = [one for one in rows if one.trace.startswith("constant")]
    if constant:
        over = max(one.dynamic.total_s / one.fixed[one.best_fixed].total_s - 1 for one in constant)
        told.append(f"constant links: at most {over:.1%} over the best fixed split")
    matter = [
        one
        for one in rows
        if one not in constant and one.fixed[one.best_fixed].total_s > (1 + MATTERS) * one.oracle.total_s
    ]
    better = sum(one.dynamic.total_s < one.fixed[one.best_fixed].total_s for one in matter)
    told.append(
        f"varying links where the best fixed split loses more than {MATTERS:.0%}: better than every fixed split on "
        f"{better} of {len(matter)}"
    )
    return "; ".join(told)


def main() -> None:
    """Simulates, or measures, and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--traces", default="held-out", help="how their names begin: constant, tuning, held-out")
    parser.add_argument("--seed", type=int, default=1000, help="of the disturbances")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = list(simulate(options.traces, options.seed))
    about = f"{N_REQUESTS} requests each, simulated; {summary(rows)}"
    show([one.row() for one in rows], "simulation", about, as_json=options.json)


if __name__ == "__main__":
    main()
