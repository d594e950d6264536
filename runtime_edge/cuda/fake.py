"""CUDA without a GPU: host memory stands for the device's, and work is done when it is put into the stream."""

from __future__ import annotations

import threading
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Callable, Dict, List, Optional, Tuple, Type

import numpy as np

from runtime_edge.cuda.seam import Mapped, Stream


class _Thread(threading.local):
    """What a thread has: blocks that it is in."""

    depth = 0


class _Current:
    def __init__(self, thread: _Thread) -> None:
        self._thread = thread

    def __enter__(self) -> None:
        self._thread.depth += 1

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._thread.depth -= 1


class FakeCuda:
    """For tests, and for trying the runtime without a board; see `runtime_edge.cuda.seam.Cuda`.

    It refuses what a real binding dies of: a call in a thread without a `current` block, memory that is freed twice.

    Args:
        graphs: whether it captures; a graph is what was enqueued, done again at every launch.
        capability: of the device.

    Attributes:
        in_use: addresses of memory that was not given back.
    """

    def __init__(self, graphs: bool = True, capability: Tuple[int, int] = (8, 7)) -> None:
        self.name = "fake"
        self.no_graphs: Optional[str] = None if graphs else "this fake captures none"
        self.in_use: Dict[int, Mapped] = {}
        self._capability = capability
        self._entered = False
        self._thread = _Thread()

    def __enter__(self) -> FakeCuda:
        self._entered = True
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._entered = False

    def current(self) -> _Current:
        """See `runtime_edge.cuda.seam.Cuda.current`."""
        if not self._entered:
            raise RuntimeError("the device is not open")
        return _Current(self._thread)

    def compute_capability(self) -> Tuple[int, int]:
        """See `runtime_edge.cuda.seam.Cuda.compute_capability`."""
        return self._capability

    def map(self, n_bytes: int) -> Mapped:
        """See `runtime_edge.cuda.seam.Cuda.map`."""
        self._check()
        host = np.zeros(n_bytes, np.uint8)
        made = Mapped(host, host.ctypes.data, host)
        self.in_use[made.address] = made
        return made

    def free(self, memory: Mapped) -> None:
        """See `runtime_edge.cuda.seam.Cuda.free`."""
        self._check()
        del self.in_use[memory.address]

    def stream(self) -> Stream:
        """See `runtime_edge.cuda.seam.Cuda.stream`."""
        self._check()
        return Stream(1, None)

    def event(self) -> List[int]:
        """See `runtime_edge.cuda.seam.Cuda.event`."""
        self._check()
        return []

    def record(self, event: List[int], _: Stream) -> None:
        """See `runtime_edge.cuda.seam.Cuda.record`."""
        self._check()
        event[:] = [perf_counter_ns()]

    def synchronise(self, _: Stream) -> None:
        """See `runtime_edge.cuda.seam.Cuda.synchronise`."""
        self._check()

    def elapsed_ns(self, first: List[int], last: List[int]) -> int:
        """See `runtime_edge.cuda.seam.Cuda.elapsed_ns`."""
        return last[0] - first[0]

    def capture(self, _: Stream, enqueue: Callable[[], None]) -> Any:
        """See `runtime_edge.cuda.seam.Cuda.capture`."""
        self._check()
        if self.no_graphs is not None:
            raise RuntimeError(self.no_graphs)
        return enqueue

    def launch(self, graph: Any, _: Stream) -> None:
        """See `runtime_edge.cuda.seam.Cuda.launch`."""
        self._check()
        graph()

    def _check(self) -> None:
        if self._thread.depth == 0:
            raise RuntimeError("no context is current in this thread")
