"""How a link changes over time: rate, delay and loss as steps, from a CSV file."""

from __future__ import annotations

import csv
import json
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("time_s", "rate_mbps", "delay_ms", "loss")


@dataclass(frozen=True)
class Conditions:
    """What a link is like.

    Attributes:
        rate_bps: bits per second in each direction, IP packets counted whole; 0 for an outage, in which bytes wait.
        delay_s: one way, after the last bit was sent.
        loss: share of the packets that are lost, each on its own, from 0 to 1.
    """

    rate_bps: float
    delay_s: float
    loss: float = 0.0


@dataclass(frozen=True)
class Trace:
    """Conditions that hold from their time to the next one's; after the last it begins again.

    Attributes:
        times_s: ascending from 0.
        conditions: one per time.
        duration_s: after which it begins again, above the last time; infinite for one that never changes.
    """

    times_s: tuple[float, ...]
    conditions: tuple[Conditions, ...]
    duration_s: float

    def __post_init__(self) -> None:
        if not self.times_s or self.times_s[0] != 0 or list(self.times_s) != sorted(set(self.times_s)):
            raise ValueError("a trace's times must ascend from 0")
        if len(self.conditions) != len(self.times_s) or self.duration_s <= self.times_s[-1]:
            raise ValueError("a trace needs conditions for every time, and an end behind the last")
        if not any(one.rate_bps > 0 for one in self.conditions):
            raise ValueError("a trace must let something through at some time")

    @property
    def as_json(self) -> str:
        """One line, for `from_json`."""
        rows = [(one.rate_bps, one.delay_s, one.loss) for one in self.conditions]
        return json.dumps({"times_s": self.times_s, "conditions": rows, "duration_s": self.duration_s})

    def at(self, time_s: float) -> Conditions:
        """What holds then."""
        return self.conditions[bisect_right(self.times_s, time_s % self.duration_s) - 1]

    def until(self, time_s: float) -> float:
        """When the conditions that hold then are over, later than ``time_s``."""
        if self.duration_s == float("inf") and time_s >= self.times_s[-1]:
            return self.duration_s
        rounds, within = divmod(time_s, self.duration_s)
        following = bisect_right(self.times_s, within)
        end = self.times_s[following] if following < len(self.times_s) else self.duration_s
        return max(rounds * self.duration_s + end, time_s + 1e-9)

    def sent_by(self, start_s: float, n_bytes: float) -> float:
        """When bytes have crossed that begin to be sent at ``start_s``, before the delay."""
        left, time = 8.0 * n_bytes, start_s
        while True:
            now, end = self.at(time), self.until(time)
            if now.rate_bps > 0 and now.rate_bps * (end - time) >= left:
                return time + left / now.rate_bps
            left -= now.rate_bps * (end - time)
            time = end


def constant(rate_bps: float, delay_s: float, loss: float = 0.0) -> Trace:
    """A link that never changes."""
    return Trace((0.0,), (Conditions(rate_bps, delay_s, loss),), float("inf"))


def from_json(text: str) -> Trace:
    """The trace that `Trace.as_json` wrote."""
    read = json.loads(text)
    conditions = tuple(Conditions(*row) for row in read["conditions"])
    return Trace(tuple(read["times_s"]), conditions, read["duration_s"])


def read_trace(path: Path) -> Trace:
    """A trace from a CSV file: lines that begin with ``#``, a line with `COLUMNS`, one line per change.

    The last line says when the trace ends; its other columns are not used.

    Raises:
        ValueError: the file is of another form.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(line for line in file if not line.startswith("#"))
        if tuple(next(rows, ())) != COLUMNS:
            raise ValueError(f'"{path}" must have the columns {", ".join(COLUMNS)}')
        table = [tuple(map(float, row)) for row in rows]
    if len(table) < 2 or any(len(row) != len(COLUMNS) for row in table):
        raise ValueError(f'"{path}" must have two lines of numbers or more, {len(COLUMNS)} in each')
    times = tuple(row[0] for row in table)
    conditions = tuple(Conditions(rate * 1e6, delay / 1e3, loss) for _, rate, delay, loss in table[:-1])
    return Trace(times[:-1], conditions, times[-1])
