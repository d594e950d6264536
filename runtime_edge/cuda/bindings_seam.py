"""CUDA through cuda-bindings, NVIDIA's own, which come as a wheel and capture graphs."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from types import TracebackType
from typing import Any, Callable, ContextManager, Optional, Tuple, Type

import numpy as np

from runtime_edge.cuda.seam import INSTALL, Mapped, Stream
from splitboard.contract.errors import UserError

_NOTHING = contextlib.nullcontext()


class CudaBindings:
    """See `runtime_edge.cuda.seam.Cuda`.

    The runtime's interface: it uses the primary context in every thread by itself.
    """

    def __init__(self) -> None:
        self._cuda: Any = importlib.import_module("cuda.bindings.runtime")
        self.name = f"cuda-bindings {importlib.import_module('cuda.bindings').__version__}"
        self.no_graphs: Optional[str] = None

    def __enter__(self) -> CudaBindings:
        try:
            self._call("cudaSetDevice", 0)
        except RuntimeError as error:
            raise UserError(f'{self.name} cannot open the GPU: "{error}"', INSTALL) from error
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        """The primary context is TensorRT's as well and ends with the process."""

    def current(self) -> ContextManager[None]:
        """See `runtime_edge.cuda.seam.Cuda.current`."""
        return _NOTHING

    def compute_capability(self) -> Tuple[int, int]:
        """See `runtime_edge.cuda.seam.Cuda.compute_capability`."""
        kinds = self._cuda.cudaDeviceAttr
        major = self._call("cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMajor, 0)
        minor = self._call("cudaDeviceGetAttribute", kinds.cudaDevAttrComputeCapabilityMinor, 0)
        return int(major), int(minor)

    def map(self, n_bytes: int) -> Mapped:
        """See `runtime_edge.cuda.seam.Cuda.map`."""
        memory = self._call("cudaHostAlloc", n_bytes, self._cuda.cudaHostAllocMapped)
        host = np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(int(memory)))
        host[:] = 0
        return Mapped(host, int(self._call("cudaHostGetDevicePointer", memory, 0)), memory)

    def free(self, memory: Mapped) -> None:
        """See `runtime_edge.cuda.seam.Cuda.free`."""
        self._call("cudaFreeHost", memory.handle)

    def stream(self) -> Stream:
        """See `runtime_edge.cuda.seam.Cuda.stream`."""
        made = self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)
        return Stream(int(made), made)

    def event(self) -> Any:
        """See `runtime_edge.cuda.seam.Cuda.event`."""
        return self._call("cudaEventCreate")

    def record(self, event: Any, stream: Stream) -> None:
        """See `runtime_edge.cuda.seam.Cuda.record`."""
        self._call("cudaEventRecord", event, stream.handle)

    def synchronise(self, stream: Stream) -> None:
        """See `runtime_edge.cuda.seam.Cuda.synchronise`."""
        self._call("cudaStreamSynchronize", stream.handle)

    def elapsed_ns(self, first: Any, last: Any) -> int:
        """See `runtime_edge.cuda.seam.Cuda.elapsed_ns`."""
        return round(float(self._call("cudaEventElapsedTime", first, last)) * 1e6)

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Any:
        """See `runtime_edge.cuda.seam.Cuda.capture`."""
        # Of this thread alone: what other threads do to the device meanwhile is not forbidden.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream.handle, mode)
        try:
            enqueue()
        except BaseException:
            self._cuda.cudaStreamEndCapture(stream.handle)  # else the stream could not be used any more
            raise
        graph = self._call("cudaStreamEndCapture", stream.handle)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: Stream) -> None:
        """See `runtime_edge.cuda.seam.Cuda.launch`."""
        self._call("cudaGraphLaunch", graph, stream.handle)

    def _call(self, name: str, *arguments: Any) -> Any:
        """What a call gives.

        Raises:
            RuntimeError: it failed; names the call and CUDA's error.
        """
        status, *found = getattr(self._cuda, name)(*arguments)
        if status != self._cuda.cudaError_t.cudaSuccess:
            raise RuntimeError(f"{name}: {getattr(status, 'name', status)}")
        return found[0] if found else None
