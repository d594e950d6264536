"""Known powers, and their exact integral."""

from __future__ import annotations

from itertools import pairwise

from splitboard.contract.record import Window

Points = list[tuple[float, float]]
"""Seconds and watts, straight lines between, over and over."""

STEPS: Points = [(0, 2.1), (1.7, 2.1), (1.7, 7.3), (4.05, 7.3), (4.05, 4.4), (6.9, 4.4)]
RAMPS: Points = [(0, 2.0), (1.3, 9.5), (1.9, 9.5), (2.6, 3.2), (3.4, 3.2), (4.7, 2.0)]
# One inference after the other: 200 ms of work and 330 ms of waiting for the server.
BURSTS: Points = [(0, 2.4), (0.33, 2.4), (0.33, 6.8), (0.53, 6.8)]


def exact_j(points: Points, window: Window) -> float:
    """The integral of the repeated polygon, by the area of every straight piece in the window."""
    period = points[-1][0]
    once = sum((b - a) * (p + q) / 2 for (a, p), (b, q) in pairwise(points))

    def until(at_s: float) -> float:
        rounds, rest = divmod(at_s, period)
        area = rounds * once
        for (a, p), (b, q) in pairwise(points):
            if rest <= a:
                break
            end = min(b, rest)
            if b > a:
                area += (end - a) * (p + (p + (q - p) * (end - a) / (b - a))) / 2
        return area

    return until(window.end_ns / 1e9) - until(window.start_ns / 1e9)
