"""The few calls of CUDA that running an engine needs, and the choice among the bindings that have them."""

from __future__ import annotations

import importlib
from types import TracebackType
from typing import Any, Callable, ContextManager, NamedTuple, Optional, Protocol, Tuple, Type

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.errors import UserError

INSTALL = (
    "build pycuda once, with the image's own compiler: PATH=/usr/local/cuda/bin:$PATH python3 -m pip install pycuda",
    'or the wheel for the image\'s CUDA, e.g. 12: python3 -m pip install "cuda-bindings<13"; 13: cuda-bindings',
)
"""How a board gets a binding."""


class Mapped(NamedTuple):
    """Pinned host memory that the GPU reads and writes in place.

    Attributes:
        host: the bytes, uint8.
        address: of the same bytes, for the GPU.
        handle: what the binding frees it by.
    """

    host: NDArray[np.uint8]
    address: int
    handle: Any


class Stream(NamedTuple):
    """A queue of work for the GPU.

    Attributes:
        address: as TensorRT takes it.
        handle: the binding's own object.
    """

    address: int
    handle: Any


class Cuda(Protocol):
    """One GPU through one binding.

    A context manager: nothing touches the device before ``__enter__``. The device's primary context is used, which is
    the one that TensorRT's own runtime calls use; it belongs to a thread for as long as that is in a `current` block.

    Attributes:
        name: the binding and its version, as it goes into records.
        no_graphs: why this binding captures no CUDA graphs, ``None`` where it does.
    """

    name: str
    no_graphs: Optional[str]

    def __enter__(self) -> Cuda:
        """Opens the device.

        Raises:
            UserError: there is none, or no driver.
        """

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        """Lets go of the device."""

    def current(self) -> ContextManager[None]:
        """Makes the context this thread's for as long as the block lasts; blocks may nest."""
        ...

    def compute_capability(self) -> Tuple[int, int]:
        """Of the device, e.g. 8 and 7 for Orin."""
        ...

    def map(self, n_bytes: int) -> Mapped:
        """Pinned, mapped memory, all zero: on a board with shared memory nothing is copied.

        GPUs older than compute capability 7.2 read it uncached (CUDA for Tegra, memory management); none of those
        runs an engine here.
        """
        ...

    def free(self, memory: Mapped) -> None:
        """Gives memory back; its arrays must not be used any more."""
        ...

    def stream(self) -> Stream:
        """A new stream that waits for no other."""
        ...

    def event(self) -> Any:
        """A new mark that can be put into a stream."""
        ...

    def record(self, event: Any, stream: Stream, /) -> None:
        """Puts a mark behind what the stream holds."""
        ...

    def synchronise(self, stream: Stream, /) -> None:
        """Waits until the stream is empty."""
        ...

    def elapsed_ns(self, first: Any, last: Any) -> int:
        """Time of the GPU between two marks that it has passed."""
        ...

    def capture(self, stream: Stream, enqueue: Callable[[], None], /) -> Any:
        """A graph of what ``enqueue`` puts into the stream, which is not run.

        Raises:
            RuntimeError: something in there cannot be captured.
        """
        ...

    def launch(self, graph: Any, stream: Stream, /) -> None:
        """Puts a captured graph into a stream."""
        ...


def find_cuda() -> Cuda:
    """The best binding that is installed: pycuda, else cuda-bindings.

    Raises:
        UserError: there is none, or the one that there is does not load.
    """
    for package, module, name in (
        ("pycuda", "runtime_edge.cuda.pycuda_seam", "PyCuda"),
        ("cuda", "runtime_edge.cuda.bindings_seam", "CudaBindings"),
    ):
        try:
            found: Cuda = getattr(importlib.import_module(module), name)()
        except ModuleNotFoundError as error:
            if error.name is not None and error.name.split(".")[0] == package:
                continue
            raise UserError(f'{package} is installed without "{error.name}"', INSTALL) from error
        except ImportError as error:
            raise UserError(f'{package} is installed and does not load: "{error}"', INSTALL) from error
        return found
    raise UserError('no CUDA binding: neither "pycuda" nor "cuda-bindings" is installed', INSTALL)
