"""Packages like ``pycuda``: as much of its driver as `runtime_edge.cuda.pycuda_seam` uses, on host memory.

Names and arguments are those of pycuda's ``src/wrapper/wrap_cudadrv.cpp``. It refuses what pycuda refuses: any call
without a context that is current in the thread, and a stack of contexts that is popped too often.
"""

from __future__ import annotations

import sys
import threading
import time
import types
from typing import Any

import numpy as np
import pytest


class Error(Exception):
    pass


class LogicError(Error):
    pass


_stack = threading.local()


def _contexts() -> list[Context]:
    if not hasattr(_stack, "contexts"):
        _stack.contexts = []
    found: list[Context] = _stack.contexts
    return found


def _check() -> None:
    if not _contexts():
        raise LogicError("context::get_device failed: invalid device context - no currently active context?")


class Context:
    detached = 0

    def push(self) -> None:
        _contexts().append(self)

    @staticmethod
    def pop() -> None:
        _check()
        _contexts().pop()

    def detach(self) -> None:
        Context.detached += 1


class Device:
    def __init__(self, number: int) -> None:
        if number != 0:
            raise LogicError("cuDeviceGet failed: invalid device ordinal")

    def compute_capability(self) -> tuple[int, int]:
        return 8, 7

    def retain_primary_context(self) -> Context:
        return Context()


class HostAllocation:
    def __init__(self, data: np.ndarray[Any, Any]) -> None:
        self._data, self._freed = data, False

    def get_device_pointer(self) -> int:
        _check()
        return int(self._data.ctypes.data)

    def free(self) -> None:
        _check()
        if self._freed:
            raise LogicError("host allocation is freed already")
        self._freed = True


class _Array(np.ndarray):  # type: ignore[type-arg]
    """As pycuda's: its ``base`` is the allocation."""

    allocation: HostAllocation

    @property
    def base(self) -> Any:
        return self.allocation


def pagelocked_zeros(shape: int, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
    _check()
    assert mem_flags & host_alloc_flags.DEVICEMAP
    made = np.zeros(shape, dtype).view(_Array)
    made.allocation = HostAllocation(np.asarray(made))
    return made


class host_alloc_flags:  # noqa: N801
    PORTABLE, DEVICEMAP, WRITECOMBINED = 1, 2, 4


class Stream:
    def __init__(self, flags: int = 0) -> None:
        _check()
        assert flags == 1  # CU_STREAM_NON_BLOCKING
        self.handle = 7

    def synchronize(self) -> None:
        _check()


class Event:
    def __init__(self, _flags: int = 0) -> None:
        _check()
        self._ns = 0

    def record(self, _stream: Stream) -> Event:
        _check()
        self._ns = time.perf_counter_ns()
        return self

    def time_since(self, event: Event) -> float:
        return (self._ns - event._ns) / 1e6


def init(flags: int = 0) -> None:
    """A driver is there."""


def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes ``import pycuda.driver`` give this; returns that module."""
    package, driver = types.ModuleType("pycuda"), types.ModuleType("pycuda.driver")
    package.VERSION_TEXT = "2024.1.2"  # type: ignore[attr-defined]
    package.driver = driver  # type: ignore[attr-defined]
    for name in ("Context", "Device", "Error", "Event", "LogicError", "Stream", "host_alloc_flags", "init"):
        setattr(driver, name, getattr(sys.modules[__name__], name))
    driver.pagelocked_zeros = pagelocked_zeros  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    return driver
