"""Durations of things that share a cause: per split, and how all of them have moved."""

from __future__ import annotations

from typing import Dict, Mapping, Optional

_WEIGHT = 0.3
_MOST = 4.0


class Times:
    """Duration per split, where what is seen of one split tells of the others too.

    Each is the product of the split's own figure and of a factor that all share (a throttled board, a busy server).
    An observation moves both, each by a power of what it is off by, so a split that was not tried for long has its last
    figure scaled by how the others moved since. What is short next to the longest of the figures moves the shared
    factor as much less: a millisecond that took three tells nothing of a hundred.

    Args:
        initial_ns: first figure per split; right proportions are enough where a duration of 0 is exact.
    """

    def __init__(self, initial_ns: Mapping[str, float]) -> None:
        self._initial: Dict[str, float] = dict(initial_ns)
        self._own: Dict[str, float] = dict(initial_ns)
        self._shared = 1.0
        self._least: Optional[float] = None

    def __getitem__(self, split: str) -> float:
        return self._own[split] * self._shared

    def least(self, split: str) -> float:
        """The split's duration were things as fast as they have ever been seen; before anything was seen, as now."""
        return self[split] if self._least is None else min(self._initial[split] * self._least, self[split])

    def observe(self, split: str, took_ns: float) -> None:
        """Takes in one duration; a single one moves a prediction at most by a factor of 4 ** 0.6."""
        expected_ns = self[split]
        if expected_ns <= 0 or took_ns <= 0:
            return
        off = min(max(took_ns / expected_ns, 1 / _MOST), _MOST) ** _WEIGHT
        self._shared *= off ** (self._own[split] / max(self._own.values()))
        self._own[split] *= off
        share = self[split] / self._initial[split]
        self._least = share if self._least is None else min(self._least, share)
