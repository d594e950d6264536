"""Joules per inference from energy windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from splitboard.contract.record import RunRecord, Window

MIN_WINDOWS = 5
"""Windows whose median is given."""

MIN_WINDOW_S = 10.0
"""Length of a window in seconds that lets the meter's resolution and its sampling average out."""

_NS_PER_S = 1e9


@dataclass(frozen=True)
class Energy:
    """Energy per inference.

    Attributes:
        whole_j: median over the windows of joules per inference; ``None`` where not measured.
        above_idle_j: the same with the idle power subtracted; ``None`` where idle was not measured either.
        source: the meter with its rail, contains ``estimate`` where it is one; ``None`` where not measured.
        reason: why there is none, ``None`` where there is.
    """

    whole_j: float | None
    above_idle_j: float | None
    source: str | None
    reason: str | None


def energy_per_inference(record: RunRecord) -> Energy:
    """The median joules per inference of a record's windows."""
    usable = [window for window in _metered(record.windows) if window.n_samples > 0]
    if len(usable) < MIN_WINDOWS:
        return Energy(None, None, None, _why_not(record, len(usable)))
    idle_w = [_joules(window) / _seconds(window) for window in _metered(record.idle_windows)]
    return Energy(
        whole_j=median(_joules(window) / window.n_samples for window in usable),
        above_idle_j=median(
            (_joules(window) - median(idle_w) * _seconds(window)) / window.n_samples for window in usable
        )
        if idle_w
        else None,
        source=", ".join(dict.fromkeys(window.source for window in usable)),
        reason=None,
    )


def _metered(windows: Sequence[Window]) -> list[Window]:
    return [window for window in windows if window.energy_j is not None and _seconds(window) >= MIN_WINDOW_S]


def _joules(window: Window) -> float:
    assert window.energy_j is not None  # `_metered` keeps no other
    return window.energy_j


def _seconds(window: Window) -> float:
    return (window.end_ns - window.start_ns) / _NS_PER_S


def _why_not(record: RunRecord, n_usable: int) -> str:
    if record.energy_reason is not None:
        return record.energy_reason
    unmetered = [window.source for window in record.windows if window.energy_j is None]
    if unmetered:
        return unmetered[0]
    return f"{n_usable} windows of at least {MIN_WINDOW_S:g} s, {MIN_WINDOWS} are needed"
