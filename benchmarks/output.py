"""How every benchmark prints: a small table and its environment, or one JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from runtime_edge.bench.environment import read_environment

_RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """How two variants compare that were measured in the same rounds.

    Attributes:
        value: median of the first over median of the second.
        low: lower end of the 95 % bootstrap interval over rounds.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Ratio of medians; the rounds are resampled as pairs, since what disturbs a round disturbs both."""
    a, b = np.asarray(first), np.asarray(second)
    chosen = np.random.default_rng(0).integers(0, len(a), (_RESAMPLES, len(a)))
    ratios = np.median(a[chosen], axis=1) / np.median(b[chosen], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Ratio(float(np.median(a) / np.median(b)), float(low), float(high))


def show(rows: Sequence[Mapping[str, Any]], runtime: str, about: str, *, as_json: bool) -> None:
    """Prints the rows with the environment that they were measured in.

    Args:
        rows: one measurement each, with the same keys.
        runtime: what ran, with its version.
        about: one line on how it was measured.
        as_json: one JSON object in place of the table.
    """
    environment = asdict(read_environment(runtime))
    if as_json:
        plain = [{key: asdict(cell) if isinstance(cell, Ratio) else cell for key, cell in row.items()} for row in rows]
        print(json.dumps({"about": about, "rows": plain, "environment": environment}))
        return
    cells = [[*rows[0]], *([_text(cell) for cell in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(f"\n{about}")
    known = {
        key: value for key, value in environment.items() if value is not None and key not in ("missing", "unix_ns")
    }
    print(", ".join(f"{key} {value}" for key, value in known.items()))


def _text(cell: object) -> str:
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)
