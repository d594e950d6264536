"""CUDA through pycuda, which is built on the board once."""

from __future__ import annotations

import importlib
from types import TracebackType
from typing import Any, Callable, Optional, Tuple, Type

import numpy as np

from runtime_edge.cuda.seam import INSTALL, Mapped, Stream
from splitboard.contract.errors import UserError

_NON_BLOCKING = 1
"""``CU_STREAM_NON_BLOCKING``, for which pycuda has no name."""


class PyCuda:
    """See `runtime_edge.cuda.seam.Cuda`."""

    def __init__(self) -> None:
        self._driver: Any = importlib.import_module("pycuda.driver")
        self.name = f"pycuda {importlib.import_module('pycuda').VERSION_TEXT}"
        self.no_graphs: Optional[str] = "pycuda captures none"
        self._context: Any = None

    def __enter__(self) -> PyCuda:
        try:
            self._driver.init()
            self._device = self._driver.Device(0)
            self._context = self._device.retain_primary_context()
        except self._driver.Error as error:
            raise UserError(f'{self.name} cannot open the GPU: "{error}"', INSTALL) from error
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._context.detach()
        self._context = None

    def current(self) -> _Current:
        """See `runtime_edge.cuda.seam.Cuda.current`."""
        return _Current(self._driver, self._context)

    def compute_capability(self) -> Tuple[int, int]:
        """See `runtime_edge.cuda.seam.Cuda.compute_capability`."""
        major, minor = self._device.compute_capability()
        return int(major), int(minor)

    def map(self, n_bytes: int) -> Mapped:
        """See `runtime_edge.cuda.seam.Cuda.map`."""
        host = self._driver.pagelocked_zeros(n_bytes, np.uint8, mem_flags=self._driver.host_alloc_flags.DEVICEMAP)
        return Mapped(host, int(host.base.get_device_pointer()), host.base)

    def free(self, memory: Mapped) -> None:
        """See `runtime_edge.cuda.seam.Cuda.free`."""
        memory.handle.free()

    def stream(self) -> Stream:
        """See `runtime_edge.cuda.seam.Cuda.stream`."""
        made = self._driver.Stream(_NON_BLOCKING)
        return Stream(int(made.handle), made)

    def event(self) -> Any:
        """See `runtime_edge.cuda.seam.Cuda.event`."""
        return self._driver.Event()

    def record(self, event: Any, stream: Stream) -> None:
        """See `runtime_edge.cuda.seam.Cuda.record`."""
        event.record(stream.handle)

    def synchronise(self, stream: Stream) -> None:
        """See `runtime_edge.cuda.seam.Cuda.synchronise`."""
        stream.handle.synchronize()

    def elapsed_ns(self, first: Any, last: Any) -> int:
        """See `runtime_edge.cuda.seam.Cuda.elapsed_ns`."""
        return round(float(last.time_since(first)) * 1e6)

    def capture(self, _: Stream, __: Callable[[], None]) -> Any:
        """See `runtime_edge.cuda.seam.Cuda.capture`."""
        raise RuntimeError(self.no_graphs)

    def launch(self, _: Any, __: Stream) -> None:
        """See `runtime_edge.cuda.seam.Cuda.launch`."""
        raise RuntimeError(self.no_graphs)


class _Current:
    """Pushes a context, and pops it whatever becomes of the block."""

    def __init__(self, driver: Any, context: Any) -> None:
        self._driver, self._context = driver, context

    def __enter__(self) -> None:
        self._context.push()

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._driver.Context.pop()
