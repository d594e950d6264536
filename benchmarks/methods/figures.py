"""Statistics of runs that differ in their seed, and tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Spread:
    """Figures of several seeds.

    Attributes:
        values: one per seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; ``None`` for one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def half_width(self) -> float | None:
        """Half of the 95 % interval of the mean (Student's t over the seeds); ``None`` for one seed."""
        if self.deviation is None:
            return None
        n = len(self.values)
        return float(stats.t.ppf(0.975, n - 1)) * self.deviation / n**0.5

    def text(self, digits: int = 2) -> str:
        """Mean and standard deviation; the mean alone for one seed."""
        if self.deviation is None:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f}"


def paired(first: Sequence[float], second: Sequence[float]) -> Spread:
    """First less second, seed by seed."""
    return Spread(tuple(a - b for a, b in zip(first, second, strict=True)))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table.

    Args:
        header: of the columns.
        rows: their cells.
        left: so many columns are text, the others figures.
    """
    marks = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, marks, *rows)).replace("| ---", "|---")
