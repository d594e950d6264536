"""The engine that a bundle's edge half needs, made for this board."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, Optional, Sequence, Tuple

from runtime_edge.engines.engine import Engine, edge_splits
from runtime_edge.engines.litert import LiteRtEngine
from runtime_edge.engines.onnxrt import OnnxRuntimeEngine
from splitboard.contract.bundle import Bundle, Split
from splitboard.contract.errors import UserError


class Resources(NamedTuple):
    """What an engine may use.

    Attributes:
        threads: of the interpreter.
        arena_bytes: memory for signatures that are set up before they are used; ``None`` for half of what is free.
    """

    threads: int = 1
    arena_bytes: Optional[int] = None


def make_engine(folder: Path, bundle: Bundle, splits: Sequence[Split], resources: Resources) -> Optional[Engine]:
    """The engine for these splits, not entered; ``None`` where none of them has an edge half.

    Args:
        folder: the bundle.
        bundle: its manifest.
        splits: that will be run.
        resources: that it may use.

    Raises:
        UserError: what it needs is not installed.
    """
    edge = edge_splits(splits)
    if not edge:
        return None
    if all(str(split.edge).endswith(".onnx") for split in edge.values()):
        return OnnxRuntimeEngine(folder, bundle, splits, resources.threads)
    arena_bytes = free_bytes() // 2 if resources.arena_bytes is None else resources.arena_bytes
    return LiteRtEngine(folder, bundle, splits, resources.threads, arena_bytes)


def free_bytes(root: Path = Path("/")) -> int:
    """Memory that can be had without swapping, as the kernel estimates it (``MemAvailable``, proc(5))."""
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return 0


def bind_cpus(text: str) -> Tuple[int, ...]:
    """Keeps this process, and every thread that it starts from now on, on some processors.

    Args:
        text: their numbers, ``0,2``.

    Raises:
        UserError: they are no numbers, or this machine has no such processor.
    """
    try:
        wanted = {int(part) for part in text.split(",")}
        if not wanted <= os.sched_getaffinity(0):
            raise ValueError("the kernel would pass over those that are not there")
        os.sched_setaffinity(0, wanted)
    except (ValueError, OSError) as error:
        known = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        raise UserError(f'cannot run on the processors "{text}"', [f"this process may use: {known}"]) from error
    return tuple(sorted(wanted))
