"""Energy windows: back-to-back inference between two readings of a meter, and the same without work."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from runtime_edge.meters.meter import Meter, Reading
from runtime_edge.pipeline import Pipeline
from splitboard.contract.bundle import Split
from splitboard.contract.record import MeterFacts, Window

N_WINDOWS = 5
WINDOW_S = 10.0
NOT_ASKED = "energy was not asked for (--energy)"

_DEAD_SAMPLES = 10
"""So many samples and not a single joule: that is no board, it is a sensor that does not measure."""


@dataclass(frozen=True)
class EnergyWindows:
    """Windows of one run.

    Attributes:
        by_split: by split id.
        idle: without inference.
        reason: why there are none, ``None`` where there are.
        meter: that read them, ``None`` where there is none.
        check_by_split: the same windows by a second meter.
        check_meter: the second meter.
    """

    by_split: Dict[str, Tuple[Window, ...]]
    idle: Tuple[Window, ...]
    reason: Optional[str]
    meter: Optional[MeterFacts] = None
    check_by_split: Optional[Dict[str, Tuple[Window, ...]]] = None
    check_meter: Optional[MeterFacts] = None


@dataclass(frozen=True)
class Plan:
    """How long energy is measured.

    Attributes:
        n_windows: rounds, each of one idle window and one per split.
        window_s: shortest length of a window.
    """

    n_windows: int = N_WINDOWS
    window_s: float = WINDOW_S


WHOLE_PLAN = Plan()


def measure_energy(
    pipeline: Pipeline,
    splits: Sequence[Split],
    images: NDArray[np.uint8],
    meter: Meter,
    progress: Callable[[int, int], None],
    plan: Plan = WHOLE_PLAN,
    check: Optional[Meter] = None,
) -> EnergyWindows:
    """Rounds of one idle window and one window per split; the order rotates from round to round.

    A window holds whole inferences: reading the image, the edge half, the radio, the wait for the server.

    Args:
        pipeline: made for ``splits``.
        splits: to be measured.
        images: ``[n, h, w, source_channels]``, uint8; used over and over.
        meter: a real one; with a `runtime_edge.meters.meter.NoMeter` nothing is timed.
        progress: called with the windows done and their number.
        plan: how long.
        check: a second meter over the same windows.
    """
    if meter.facts() is None:
        return EnergyWindows({}, (), meter.source)
    meters = [meter] if check is None else [meter, check]
    windows: Dict[str, List[Tuple[Window, ...]]] = {split.id: [] for split in splits}
    idle: Tuple[Window, ...] = ()
    done, total = 0, plan.n_windows * (len(splits) + 1)
    with contextlib.ExitStack() as stack:
        for one in meters:
            stack.enter_context(one)
        for i in range(plan.n_windows):
            idle += _window(meters, plan.window_s, None)[:1]
            done += 1
            progress(done, total)
            first = i % len(splits)
            for split in [*splits[first:], *splits[:first]]:
                work = _BackToBack(pipeline, split, images)
                windows[split.id].append(_window(meters, plan.window_s, work))
                done += 1
                progress(done, total)
    return EnergyWindows(
        by_split={split_id: tuple(one[0] for one in made) for split_id, made in windows.items()},
        idle=idle,
        reason=None,
        meter=meter.facts(),
        check_by_split=None
        if check is None
        else {split_id: tuple(one[1] for one in made) for split_id, made in windows.items()},
        check_meter=None if check is None else check.facts(),
    )


class _BackToBack:
    """Inference after inference over the images."""

    def __init__(self, pipeline: Pipeline, split: Split, images: NDArray[np.uint8]) -> None:
        self._pipeline, self._split, self._images = pipeline, split, images
        self.n_done = 0

    def __call__(self) -> None:
        self._pipeline.infer(self._split, self._images[self.n_done % len(self._images)])
        self.n_done += 1


def _window(meters: Sequence[Meter], window_s: float, work: Optional[_BackToBack]) -> Tuple[Window, ...]:
    """One window, by every meter.

    It ends with the first inference that ends after ``window_s``, so no inference is cut.
    """
    starts = [meter.read() for meter in meters]
    start_ns = time.perf_counter_ns()
    if work is None:
        time.sleep(window_s)
    else:
        while time.perf_counter_ns() - start_ns < window_s * 1e9:
            work()
    ends = [meter.read() for meter in meters]
    n_done = 0 if work is None else work.n_done
    return tuple(between(meter.source, start, end, n_done) for meter, start, end in zip(meters, starts, ends))


def between(source: str, start: Reading, end: Reading, n_inferences: int) -> Window:
    """The window between two readings of a meter.

    Args:
        source: the meter.
        start: at its beginning.
        end: at its end.
        n_inferences: that ended in it.

    Returns:
        Without energy, and with the reason as its source, where a reading failed, where the samples had a gap, or where
        a power sensor told no power all the time.
    """
    n_power, n_failed = end.n_samples - start.n_samples, max(0, end.n_failed - start.n_failed)
    rails_j = {rail: joules - start.rails_j[rail] for rail, joules in end.rails_j.items() if rail in start.rails_j}
    reason = _why_none(start, end, rails_j, n_power)
    if reason is not None or start.energy_j is None or end.energy_j is None:
        return Window(
            start.time_ns, end.time_ns, None, f"{source}: {reason}", n_inferences, None, n_power, n_failed, rails_j
        )
    error_j = end.error_j - start.error_j + start.edge_j + end.edge_j
    energy_j = end.energy_j - start.energy_j
    return Window(start.time_ns, end.time_ns, energy_j, source, n_inferences, error_j, n_power, n_failed, rails_j)


def _why_none(start: Reading, end: Reading, rails_j: Dict[str, float], n_power: int) -> Optional[str]:
    for reading in (start, end):
        if reading.energy_j is None:
            return reading.reason
    if end.n_gaps > start.n_gaps:
        return end.reason
    if n_power >= _DEAD_SAMPLES and not any(rails_j.values()):
        return "the sensor tells 0 W all the time"
    return None
