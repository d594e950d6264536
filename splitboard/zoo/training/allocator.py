"""The allocator of the C library, for training on a CPU."""

from __future__ import annotations

import ctypes


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of handing it back to the kernel after every layer.

    With the default allocator a good part of a training step on the CPU is page faults: the system time goes down, by
    how much depends on the machine (`benchmarks/training_allocator.py`). Elsewhere than glibc: no effect.
    """
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 512 * 2**20)
