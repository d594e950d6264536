"""What a result says of itself: the machine, the versions, the commit, the day, the seeds."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from runtime_edge.bench.environment import read_environment

ROOT = Path(__file__).parents[2]
PACKAGES = ("splitboard", "torch", "onnxruntime", "ai-edge-litert", "litert-torch", "litert-quantizer", "numpy")
"""Whose versions can change a result."""

_WRITTEN = "docs/results"
"""What the scripts write themselves, which makes no tree dirty."""


@dataclass(frozen=True)
class Stamp:
    """Where a result comes from.

    Attributes:
        processor: its model, as the machine tells; ``None`` where it does not.
        cores: that the process may use.
        memory_gib: of the machine, in GiB.
        python: version.
        packages: version by distribution; those that are not installed are left out.
        commit: of the repository, ``None`` outside of one.
        dirty: whether files differed from the commit, results aside.
        date: the day in UTC, ISO 8601.
        seeds: of everything random in the result.
    """

    processor: str | None
    cores: int
    memory_gib: float
    python: str
    packages: Mapping[str, str]
    commit: str | None
    dirty: bool
    date: str
    seeds: tuple[int, ...]


def take_stamp(seeds: Sequence[int] = ()) -> Stamp:
    """The stamp of a result that is made here and now."""
    environment = read_environment("none")
    status = _git("status", "--porcelain", "--", ".", f":(exclude){_WRITTEN}")
    return Stamp(
        processor=environment.cpu_model,
        cores=environment.cpu_count,
        memory_gib=round(memory_bytes(Path("/proc/meminfo").read_text(encoding="utf-8")) / (1 << 30), 1),
        python=platform.python_version(),
        packages={name: found for name in PACKAGES if (found := _version(name)) is not None},
        commit=_git("rev-parse", "HEAD"),
        dirty=bool(status),
        date=datetime.now(timezone.utc).date().isoformat(),
        seeds=tuple(seeds),
    )


def from_json(read: Mapping[str, Any]) -> Stamp:
    """The stamp that was written as its fields."""
    return Stamp(**{**read, "seeds": tuple(read["seeds"])})


def paragraph(stamp: Stamp) -> str:
    """One paragraph of Markdown."""
    tree = "outside of a repository"
    if stamp.commit is not None:
        tree = f"commit `{stamp.commit[:12]}`{' with changes that are not committed' if stamp.dirty else ''}"
    seeds = f"; seeds {', '.join(map(str, stamp.seeds))}" if stamp.seeds else ""
    packages = ", ".join(f"{name} {number}" for name, number in stamp.packages.items())
    return (
        f"Made on {stamp.date}, {tree}, on {stamp.processor or 'a processor that does not tell its name'} "
        f"({stamp.cores} cores, {stamp.memory_gib:g} GiB), Python {stamp.python}, {packages}{seeds}."
    )


def memory_bytes(meminfo: str) -> int:
    """The machine's memory, from the text of ``/proc/meminfo`` (proc(5): the unit is KiB).

    Raises:
        ValueError: the text does not tell.
    """
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            return int(rest.split()[0]) * 1024
    raise ValueError("/proc/meminfo has no MemTotal")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    """What git says, ``None`` where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
