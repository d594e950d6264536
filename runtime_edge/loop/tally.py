"""Sums over a run that take the same memory however long it is."""

from __future__ import annotations

import math
from collections import Counter
from time import perf_counter_ns
from typing import Dict, Mapping, Optional, Sequence

from runtime_edge.loop.session import Answered
from splitboard.contract.answers import RunSums, TaskSum

BUCKETS_PER_OCTAVE = 64
"""Buckets are 2 ** (1 / 64) wide: 1.1 %."""


class Histogram:
    """Durations in buckets of equal relative width."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, duration_ns: int) -> None:
        """Counts one."""
        self._counts[round(BUCKETS_PER_OCTAVE * math.log2(max(duration_ns, 1)))] += 1

    def percentile_ns(self, percent: float) -> Optional[int]:
        """The middle of the bucket that holds it (nearest rank); ``None`` while there is nothing."""
        total = sum(self._counts.values())
        below = 0
        for bucket in sorted(self._counts):
            below += self._counts[bucket]
            if 100 * below >= percent * total:
                return round(2 ** (bucket / BUCKETS_PER_OCTAVE))
        return None


class _Task:
    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.labelled: Counter[str] = Counter()
        self.right: Counter[str] = Counter()
        self.times = Histogram()

    def sums(self) -> TaskSum:
        n, n_labelled = sum(self.answers.values()), sum(self.labelled.values())
        return TaskSum(
            answers=dict(self.answers),
            exit_rate=self.answers["exit"] / n if n else 0.0,
            n_labelled=n_labelled,
            accuracy=sum(self.right.values()) / n_labelled if n_labelled else None,
            accuracy_by={by: self.right[by] / count for by, count in self.labelled.items()},
            p50_ns=self.times.percentile_ns(50),
            p95_ns=self.times.percentile_ns(95),
        )


class Tally:
    """Counts what becomes of the images of one run.

    Args:
        tasks: their names.
        deadline_ns: of every image; ``None`` for none.
    """

    def __init__(self, tasks: Sequence[str], deadline_ns: Optional[int] = None) -> None:
        self._deadline_ns = deadline_ns
        self._late = 0
        self._start_ns = self._end_ns = perf_counter_ns()
        self._tasks: Dict[str, _Task] = {task: _Task() for task in tasks}
        self._times = Histogram()
        self._splits: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._last: Optional[str] = None
        self._switches = 0

    def add(self, done: Answered, labels: Mapping[str, int]) -> None:
        """Counts one image.

        Args:
            done: what became of it.
            labels: true class by task, where known.
        """
        self._end_ns = perf_counter_ns()
        self._times.add(done.total_ns)
        self._late += self._deadline_ns is not None and done.total_ns > self._deadline_ns
        self._splits[done.split] += 1
        self._switches += self._last not in (None, done.split)
        self._last = done.split
        if done.failure is not None:
            self._failures[done.failure] += 1
        for name, answer in done.tasks.items():
            task = self._tasks[name]
            task.answers[answer.by] += 1
            if answer.scores is None:
                continue
            task.times.add(answer.after_ns)
            if name in labels:
                task.labelled[answer.by] += 1
                task.right[answer.by] += answer.scores.index(max(answer.scores)) == labels[name]

    def sums(self, interrupted: bool) -> RunSums:
        """All of it."""
        n, seconds = sum(self._splits.values()), (self._end_ns - self._start_ns) / 1e9
        return RunSums(
            n=n,
            seconds=seconds,
            images_per_s=n / seconds if n else None,
            p50_ns=self._times.percentile_ns(50),
            p95_ns=self._times.percentile_ns(95),
            tasks={name: task.sums() for name, task in self._tasks.items()},
            splits=dict(self._splits),
            switches=self._switches,
            failures=dict(self._failures),
            late=self._late,
            interrupted=interrupted,
        )
