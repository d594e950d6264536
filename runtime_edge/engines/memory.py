"""Memory that an engine may take."""

from __future__ import annotations

from pathlib import Path


def free_bytes(root: Path = Path("/")) -> int:
    """Memory that can be had without swapping, as the kernel estimates it (``MemAvailable``, proc(5)); 0 if unknown."""
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return 0
