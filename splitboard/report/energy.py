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
class EnergyDetail:
    """How the energy of a split was measured, and how well.

    Attributes:
        low_j: joules per inference of the lowest window.
        high_j: of the highest.
        error_j: bound of the error per inference for resolution, sampling and ends of the windows, median over the
            windows; it holds where no peak of power is shorter than the time between two samples. Null where the meter
            states none.
        above_idle_error_j: the same with that of the idle power on top.
        power_w: mean power in the windows, median.
        idle_power_w: without inference, median; null where not measured.
        n_windows: that count.
        window_s: length of the shortest.
        sampling_hz: readings of the sensor per second, median; null where a counter was read.
        n_failed: readings that failed, over all windows.
        resolution_w: how far power may be off for the sensor's steps alone; null for a counter.
        resolution_j: one step of a counter; null for a power sensor.
        method: a counter of joules, or samples of power.
        rails_w: mean power by rail, median; those that are part of another included.
        total: rails that the energy is the sum of.
        leaves_out: what draws power beside them.
        check_source: a second meter over the same windows, null where there is none.
        check_j: joules per inference by it, median.
        check_difference: by how much that is more than the first meter's, as a share of the first's.
    """

    low_j: float
    high_j: float
    error_j: float | None
    above_idle_error_j: float | None
    power_w: float
    idle_power_w: float | None
    n_windows: int
    window_s: float
    sampling_hz: float | None
    n_failed: int
    resolution_w: float | None
    resolution_j: float | None
    method: str | None
    rails_w: dict[str, float]
    total: tuple[str, ...]
    leaves_out: str | None
    check_source: str | None
    check_j: float | None
    check_difference: float | None


@dataclass(frozen=True)
class Energy:
    """Energy per inference.

    Attributes:
        whole_j: median over the windows of joules per inference; ``None`` where not measured.
        above_idle_j: the same with the idle power subtracted; ``None`` where idle was not measured either.
        source: the meter with its rail, contains ``estimate`` where it is one; ``None`` where not measured.
        reason: why there is none, ``None`` where there is.
        detail: how and how well, ``None`` where not measured.
    """

    whole_j: float | None
    above_idle_j: float | None
    source: str | None
    reason: str | None
    detail: EnergyDetail | None


def energy_per_inference(record: RunRecord) -> Energy:
    """The median joules per inference of a record's windows."""
    usable = _usable(record.windows)
    if len(usable) < MIN_WINDOWS:
        return Energy(None, None, None, _why_not(record, len(usable)), None)
    idle = _metered(record.idle_windows)
    idle_w = median(map(_watts, idle)) if idle else None
    whole_j = median(map(_each_j, usable))
    return Energy(
        whole_j=whole_j,
        above_idle_j=None
        if idle_w is None
        else median((_joules(window) - idle_w * _seconds(window)) / window.n_samples for window in usable),
        source=", ".join(dict.fromkeys(window.source for window in usable)),
        reason=None,
        detail=_detail(record, usable, idle, whole_j),
    )


def _detail(record: RunRecord, usable: Sequence[Window], idle: Sequence[Window], whole_j: float) -> EnergyDetail:
    meter = record.meter
    error_j, idle_error_w = _errors(usable), _idle_error_w(idle)
    seconds_each = median(_seconds(window) / window.n_samples for window in usable)
    checked = _usable(record.check_windows)
    check_j = median(map(_each_j, checked)) if checked else None
    samples_hz = [window.n_power_samples / _seconds(window) for window in usable if window.n_power_samples]
    return EnergyDetail(
        low_j=min(map(_each_j, usable)),
        high_j=max(map(_each_j, usable)),
        error_j=error_j,
        above_idle_error_j=None if error_j is None or idle_error_w is None else error_j + idle_error_w * seconds_each,
        power_w=median(map(_watts, usable)),
        idle_power_w=median(map(_watts, idle)) if idle else None,
        n_windows=len(usable),
        window_s=min(map(_seconds, usable)),
        sampling_hz=median(samples_hz) if samples_hz else None,
        n_failed=sum(window.n_failed for window in usable),
        resolution_w=meter.resolution_w if meter else None,
        resolution_j=meter.resolution_j if meter else None,
        method=meter.method if meter else None,
        rails_w=_rails_w(usable),
        total=meter.total if meter else (),
        leaves_out=meter.leaves_out if meter else None,
        check_source=record.check_meter.source if record.check_meter and checked else None,
        check_j=check_j,
        check_difference=check_j / whole_j - 1 if check_j is not None and whole_j else None,
    )


def _errors(usable: Sequence[Window]) -> float | None:
    """The median bound per inference; none where a window has none."""
    errors = [window.error_j / window.n_samples for window in usable if window.error_j is not None]
    return median(errors) if len(errors) == len(usable) else None


def _idle_error_w(idle: Sequence[Window]) -> float | None:
    errors = [window.error_j / _seconds(window) for window in idle if window.error_j is not None]
    return median(errors) if errors else None


def _rails_w(usable: Sequence[Window]) -> dict[str, float]:
    rails = dict.fromkeys(rail for window in usable for rail in window.rails_j)
    return {rail: median(window.rails_j.get(rail, 0.0) / _seconds(window) for window in usable) for rail in rails}


def _usable(windows: Sequence[Window]) -> list[Window]:
    return [window for window in _metered(windows) if window.n_samples > 0]


def _metered(windows: Sequence[Window]) -> list[Window]:
    return [window for window in windows if window.energy_j is not None and _seconds(window) >= MIN_WINDOW_S]


def _each_j(window: Window) -> float:
    return _joules(window) / window.n_samples


def _watts(window: Window) -> float:
    return _joules(window) / _seconds(window)


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
    short = [_seconds(window) for window in record.windows if _seconds(window) < MIN_WINDOW_S]
    but = f"; {len(short)} are shorter, down to {min(short):.3g} s" if short else ""
    return f"{n_usable} windows of at least {MIN_WINDOW_S:g} s, {MIN_WINDOWS} are needed{but}"
