"""Energy windows: back-to-back inference between two readings of a cumulative counter, and the same without work."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable, Dict, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from runtime_edge.bench.meters import Meter
from runtime_edge.pipeline import Pipeline
from splitboard.contract.bundle import Split
from splitboard.contract.record import Window

N_WINDOWS = 5
WINDOW_S = 10.0
NOT_ASKED = "energy was not asked for (--energy)"


@dataclass(frozen=True)
class EnergyWindows:
    """Windows of one run.

    Attributes:
        by_split: by split id.
        idle: without inference.
        reason: why there are none, ``None`` where there are.
    """

    by_split: Dict[str, Tuple[Window, ...]]
    idle: Tuple[Window, ...]
    reason: Optional[str]


def measure_energy(
    pipeline: Pipeline,
    splits: Sequence[Split],
    images: NDArray[np.uint8],
    meter: Meter,
    progress: Callable[[int, int], None],
    n_windows: int = N_WINDOWS,
    window_s: float = WINDOW_S,
) -> EnergyWindows:
    """Rounds of one idle window and one window per split; the order rotates from round to round.

    Args:
        pipeline: made for ``splits``.
        splits: to be measured.
        images: ``[n, h, w, source_channels]``, uint8; used over and over.
        meter: a real one; with a `runtime_edge.bench.meters.NoMeter` nothing is timed.
        progress: called with the windows done and their number.
        n_windows: rounds.
        window_s: shortest length of a window.
    """
    if meter.resolution_j is None:
        return EnergyWindows({}, (), meter.source)
    by_split: Dict[str, Tuple[Window, ...]] = {split.id: () for split in splits}
    idle: Tuple[Window, ...] = ()
    done, total = 0, n_windows * (len(splits) + 1)
    for i in range(n_windows):
        idle += (_window(meter, window_s, None),)
        done += 1
        progress(done, total)
        first = i % len(splits)
        for split in [*splits[first:], *splits[:first]]:
            work = _BackToBack(pipeline, split, images)
            by_split[split.id] += (_window(meter, window_s, work),)
            done += 1
            progress(done, total)
    return EnergyWindows(by_split, idle, None)


class _BackToBack:
    """Inference after inference over the images."""

    def __init__(self, pipeline: Pipeline, split: Split, images: NDArray[np.uint8]) -> None:
        self._pipeline, self._split, self._images = pipeline, split, images
        self.n_done = 0

    def __call__(self) -> None:
        self._pipeline.infer(self._split, self._images[self.n_done % len(self._images)])
        self.n_done += 1


def _window(meter: Meter, window_s: float, work: Optional[_BackToBack]) -> Window:
    """One window; it ends with the first inference that ends after ``window_s``, so no inference is cut."""
    start_j, start_ns = meter.read_j(), time.perf_counter_ns()
    if work is None:
        time.sleep(window_s)
    else:
        while time.perf_counter_ns() - start_ns < window_s * 1e9:
            work()
    end_j, end_ns = meter.read_j(), time.perf_counter_ns()
    energy_j = None if start_j is None or end_j is None else end_j - start_j
    return Window(start_ns, end_ns, energy_j, meter.source, 0 if work is None else work.n_done)
