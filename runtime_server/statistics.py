"""What one served model has done so far, counted once and read by the protocol's statistics call and by Prometheus."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from splitboard.contract.wire import ServerTiming

BOUNDS_NS = tuple(
    round(seconds * 1e9)
    for seconds in (
        0.0001,
        0.00025,
        0.0005,
        0.001,
        0.0025,
        0.005,
        0.01,
        0.025,
        0.05,
        0.1,
        0.25,
        0.5,
        1.0,
        2.5,
        5.0,
        10.0,
    )
)
"""Upper ends of the histograms' buckets; what takes longer falls into one more."""

_LATEST_SHARE = 0.2
"""Of the latest request in what is usual."""


@dataclass(frozen=True)
class Histogram:
    """How durations are distributed.

    Attributes:
        counts: by bucket of `BOUNDS_NS`, the last one without an end; not cumulative.
        sum_ns: of all durations.
    """

    counts: tuple[int, ...]
    sum_ns: int


@dataclass(frozen=True)
class Snapshot:
    """One model's statistics, in the meaning of the protocol's ``ModelStatistics`` (Triton's statistics extension).

    Attributes:
        last_inference_ms: Unix time of the last success, 0 where there was none.
        inference_count: requests answered; every request is a batch of one of the protocol.
        execution_count: runs of the graph.
        success_ns: arrival to result, summed over successes.
        fail_count: requests refused after they had named this model.
        fail_ns: arrival to refusal, summed.
        failures: how many by reason.
        queue: waiting, of successes.
        decode: decoding, of successes (the protocol's ``compute_input``).
        compute: computing, of successes (``compute_infer``); a request waits for the whole of its batch.
        batches: by number of requests in a run, how many runs and their summed compute time.
    """

    last_inference_ms: int
    inference_count: int
    execution_count: int
    success_ns: int
    fail_count: int
    fail_ns: int
    failures: dict[str, int]
    queue: Histogram
    decode: Histogram
    compute: Histogram
    batches: dict[int, tuple[int, int]]


class _Times:
    """A histogram while it is filled."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_NS) + 1)
        self._sum_ns = 0

    def add(self, duration_ns: int) -> None:
        self._counts[bisect_left(BOUNDS_NS, duration_ns)] += 1
        self._sum_ns += duration_ns

    def read(self) -> Histogram:
        return Histogram(tuple(self._counts), self._sum_ns)


class ModelStatistics:
    """Counts for one model; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._usual_ns: float | None = None
        self._last_ms = 0
        self._success_ns = self._n_successes = 0
        self._fail_ns = 0
        self._failures: Counter[str] = Counter()
        self._queue, self._decode, self._compute = _Times(), _Times(), _Times()
        self._batches: dict[int, tuple[int, int]] = {}

    @property
    def usual_ns(self) -> float | None:
        """What a request has taken lately from its turn to its answer; ``None`` before the first."""
        return self._usual_ns

    def ran(self, timings: Sequence[ServerTiming]) -> None:
        """One run of the graph that answered these requests."""
        with self._lock:
            runs, sum_ns = self._batches.get(len(timings), (0, 0))
            self._batches[len(timings)] = (runs + 1, sum_ns + timings[0].compute_ns)
            self._last_ms = time.time_ns() // 1_000_000
            taken_ns = timings[0].decode_ns + timings[0].compute_ns
            before_ns = taken_ns if self._usual_ns is None else self._usual_ns
            self._usual_ns = before_ns + _LATEST_SHARE * (taken_ns - before_ns)
            for timing in timings:
                self._n_successes += 1
                self._success_ns += sum(timing)
                self._queue.add(timing.queue_ns)
                self._decode.add(timing.decode_ns)
                self._compute.add(timing.compute_ns)

    def failed(self, reason: str, duration_ns: int) -> None:
        """One request was refused."""
        with self._lock:
            self._failures[reason] += 1
            self._fail_ns += duration_ns

    def read(self) -> Snapshot:
        """The counts now, all of one moment."""
        with self._lock:
            return Snapshot(
                last_inference_ms=self._last_ms,
                inference_count=self._n_successes,
                execution_count=sum(runs for runs, _ in self._batches.values()),
                success_ns=self._success_ns,
                fail_count=self._failures.total(),
                fail_ns=self._fail_ns,
                failures=dict(self._failures),
                queue=self._queue.read(),
                decode=self._decode.read(),
                compute=self._compute.read(),
                batches=dict(self._batches),
            )
