"""Long work in pieces that are kept: whatever was finished is not done again, however the last run ended."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

WORKERS = 2
"""Trainings at a time, a thread each: their results do not depend on it, and nothing is timed meanwhile."""


class Job(Protocol):
    """A piece of work: ``repr`` says all that its result depends on."""

    @property
    def name(self) -> str:
        """Of its files, unique."""
        ...


J = TypeVar("J", bound=Job)


@dataclass(frozen=True)
class Store:
    """A folder of finished pieces, one JSON file each, and of what they left beside it.

    Attributes:
        root: the folder; made where it is missing.
    """

    root: Path

    def path(self, name: str) -> Path:
        """Where files of this piece go; the suffix is the caller's."""
        self.root.mkdir(parents=True, exist_ok=True)
        return self.root / name

    def read(self, job: Job) -> Mapping[str, Any] | None:
        """The result, ``None`` if there is none or it is of another request under this name."""
        file = self.path(f"{job.name}.json")
        if not file.exists():
            return None
        kept = json.loads(file.read_text(encoding="utf-8"))
        return kept["result"] if kept["request"] == repr(job) else None

    def write(self, job: Job, result: Mapping[str, Any]) -> None:
        """Keeps a result, whole or not at all."""
        file = self.path(f"{job.name}.json")
        beside = file.with_suffix(".part")
        beside.write_text(json.dumps({"request": repr(job), "result": result}, indent=1), encoding="utf-8")
        beside.replace(file)


def work_off(
    jobs: Sequence[J], store: Store, do: Callable[[J, Store], Mapping[str, Any]], workers: int = WORKERS
) -> None:
    """Does what is not done yet, in processes of their own, and tells about every piece.

    Args:
        jobs: in the order that they are begun.
        store: has the results afterwards.
        do: a module's function, so that another process finds it.
        workers: processes at a time.
    """
    left = [job for job in jobs if store.read(job) is None]
    print(f"{len(jobs) - len(left)} of {len(jobs)} done before", flush=True)
    started = time.monotonic()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        running = {pool.submit(do, job, store): job for job in left}
        try:
            for number, future in enumerate(as_completed(running), 1):
                job = running[future]
                store.write(job, future.result())
                minutes = (time.monotonic() - started) / 60
                print(f"{number} of {len(left)}: {job.name} ({minutes:.1f} min so far)", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # or all that is left would run before anybody hears of it
            raise
