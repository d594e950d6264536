"""Writes the traces beside this file. They are synthetic: made here from the seeds below, recorded nowhere.

`tuning-*` were looked at while the split policy and its constants were made, `held-out-*` were not: other shapes, other
seeds, run when the constants stood. (Whenever the policy was changed after a look at them, they were replaced: the
tuning traces with seeds from 101 were held out first, then others of today's shapes with seeds from 1001.)
`constant-*` never change.

Usage: python benchmarks/traces/make_traces.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

DURATION_S = 120.0
STEP_S = 0.5

Rows = list[tuple[float, float, float, float]]
"""Time in s, rate in Mbit/s, delay one way in ms, loss."""


def constant(rate: float, delay: float) -> Rows:
    """One rate all along."""
    return [(0.0, rate, delay, 0.0)]


def levels(seed: int, rates: tuple[float, ...], shortest_s: float, longest_s: float, delay: float) -> Rows:
    """Jumps between rates, never to the same one; the delay stays."""
    random = np.random.default_rng(seed)
    rows: Rows = []
    time, rate = 0.0, float(random.choice(rates))
    while time < DURATION_S:
        rows.append((time, rate, delay, 0.0))
        time += float(random.uniform(shortest_s, longest_s))
        rate = float(random.choice([other for other in rates if other != rate]))
    return rows


def waves(low: float, high: float, period_s: float, shape: Callable[[float], float], delay: float) -> Rows:
    """Rates between two bounds, even on a logarithmic scale; ``shape`` maps a phase to 0 (low) to 1 (high)."""
    times = np.arange(0, DURATION_S, STEP_S)
    return [(t, low * (high / low) ** shape(t % period_s / period_s), delay, 0.0) for t in times.tolist()]


def outages(seed: int, rate: float, delay: float, between_s: float, longest_s: float) -> Rows:
    """A good link that is gone now and then: exponential times between outages, uniform lengths from 1 s."""
    random = np.random.default_rng(seed)
    rows: Rows = [(0.0, rate, delay, 0.0)]
    time = float(random.exponential(between_s))
    while time < DURATION_S:
        gone = float(random.uniform(1.0, longest_s))
        rows += [(time, 0.0, delay, 0.0), (time + gone, rate, delay, 0.0)]
        time += gone + float(random.exponential(between_s))
    return [row for row in rows if row[0] < DURATION_S]


def car(seed: int, typical: float, memory_s: float, spread: float) -> Rows:
    """A car in a cellular network.

    The logarithm of the rate follows a first-order autoregression (slow shadowing) with fades of some seconds to a
    tenth (bridges, handovers); the delay is 15 ms and, as a queue in the network, grows as the rate falls.
    """
    random = np.random.default_rng(seed)
    keep = float(np.exp(-STEP_S / memory_s))
    level, fade_until = 0.0, -1.0
    rows: Rows = []
    for time in np.arange(0, DURATION_S, STEP_S).tolist():
        level = keep * level + spread * float(np.sqrt(1 - keep**2) * random.normal())
        if time > fade_until and random.random() < STEP_S / 25:
            fade_until = time + float(random.uniform(2, 6))
        rate = typical * float(np.exp(level)) * (0.1 if time < fade_until else 1.0)
        rows.append((time, rate, 15 + 30 / max(rate, 0.5), 0.0))
    return rows


def states(seed: int, rates: tuple[float, ...], stay_s: float) -> Rows:
    """Indoors with Wi-Fi: a chain of states, each kept for an exponential time, left for a neighbour."""
    random = np.random.default_rng(seed)
    rows: Rows = []
    time, state = 0.0, len(rates) // 2
    while time < DURATION_S:
        rows.append((time, rates[state] * float(random.uniform(0.8, 1.2)), 2 + 8 / rates[state], 0.0))
        time += float(random.exponential(stay_s)) + STEP_S
        state = min(max(state + int(random.choice((-1, 1))), 0), len(rates) - 1)
    return rows


def triangle(phase: float) -> float:
    """Up and down at the same pace."""
    return 1 - abs(2 * phase - 1)


def sawtooth(phase: float) -> float:
    """Slowly up, down at once."""
    return phase


def sine(phase: float) -> float:
    """Round turns."""
    return float(0.5 - 0.5 * np.cos(2 * np.pi * phase))


def stairs(phase: float) -> float:
    """Up in four steps, then from the beginning."""
    return float(int(4 * phase)) / 3


TRACES = {
    **{f"constant-{rate:g}": lambda rate=rate: constant(rate, 5.0) for rate in (1.0, 3.0, 10.0, 30.0, 100.0)},
    "tuning-steps": lambda: levels(1, (1.0, 5.0, 20.0, 80.0), 8, 25, 5.0),
    "tuning-ramps": lambda: waves(0.7, 70.0, 40.0, triangle, 5.0),
    "tuning-outages": lambda: outages(2, 20.0, 10.0, 15.0, 6.0),
    "tuning-car": lambda: car(3, 10.0, 8.0, 0.9),
    "tuning-wifi": lambda: states(4, (0.8, 4.0, 15.0, 50.0), 7.0),
    "tuning-steps-2": lambda: levels(101, (0.6, 3.0, 12.0, 40.0), 6, 20, 12.0),
    "tuning-tenfold": lambda: levels(102, (2.0, 20.0), 10, 20, 8.0),
    "tuning-sawtooth": lambda: waves(1.0, 50.0, 30.0, sawtooth, 8.0),
    "tuning-sine": lambda: waves(0.5, 40.0, 25.0, sine, 3.0),
    "tuning-outages-2": lambda: outages(103, 12.0, 15.0, 20.0, 10.0),
    "tuning-car-2": lambda: car(104, 7.0, 6.0, 1.1),
    "tuning-wifi-2": lambda: states(105, (1.0, 6.0, 25.0, 90.0), 9.0),
    "held-out-steps": lambda: levels(2001, (0.8, 4.0, 16.0, 60.0), 7, 22, 7.0),
    "held-out-tenfold": lambda: levels(2002, (1.2, 12.0), 9, 24, 6.0),
    "held-out-fourfold": lambda: levels(2003, (5.0, 20.0), 9, 24, 15.0),
    "held-out-stairs": lambda: waves(0.8, 50.0, 60.0, stairs, 10.0),
    "held-out-fall": lambda: waves(1.0, 60.0, 35.0, lambda phase: 1 - phase, 6.0),
    "held-out-outages": lambda: outages(2004, 15.0, 12.0, 18.0, 8.0),
    "held-out-car": lambda: car(2005, 8.0, 7.0, 1.0),
    "held-out-car-2": lambda: car(2006, 15.0, 5.0, 1.2),
    "held-out-wifi": lambda: states(2007, (0.9, 5.0, 20.0, 70.0), 8.0),
}


def main() -> None:
    """Writes every trace."""
    header = "# Synthetic, made by benchmarks/traces/make_traces.py. delay_ms is one way. The last line is the end.\n"
    for name, make in TRACES.items():
        rows = make()
        end = (DURATION_S, *rows[-1][1:])
        lines = [f"{t:.2f},{rate:.3f},{delay:.2f},{loss:g}\n" for t, rate, delay, loss in [*rows, end]]
        text = header + "time_s,rate_mbps,delay_ms,loss\n" + "".join(lines)
        (Path(__file__).parent / f"{name}.csv").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
