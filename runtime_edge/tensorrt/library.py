"""The installed TensorRT: 8.5 to 11 behind one set of calls, told apart by what they have and not by their numbers."""

from __future__ import annotations

import importlib
from typing import Any, List, NamedTuple, Tuple

from splitboard.contract.errors import UserError

INSTALL = (
    "TensorRT comes with JetPack: sudo apt install python3-libnvinfer",
    "in a virtual environment: python3 -m venv --system-site-packages",
)
_N_LINES = 20
"""Of the library's log, kept to explain a failure."""


class Library(NamedTuple):
    """An installed TensorRT.

    Attributes:
        module: the Python module.
        version: e.g. ``10.3.0``.
    """

    module: Any
    version: str

    @property
    def strongly_typed(self) -> bool:
        """Whether a network's types can be those of its graph (from 9.1 on); before, the builder chooses by flags."""
        return hasattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def weakly_typed(self) -> bool:
        """Whether the builder takes precisions as flags (until 10)."""
        return hasattr(self.module.BuilderFlag, "INT8")


def find_library() -> Library:
    """Imports TensorRT.

    Raises:
        UserError: it does not load, or it is too old.
    """
    try:
        module = importlib.import_module("tensorrt")
    except ImportError as error:
        raise UserError(f'TensorRT does not load: "{error}"', INSTALL) from error
    if not hasattr(module, "__version__"):  # a folder of that name, e.g. of type stubs
        raise UserError('TensorRT does not load: the package "tensorrt" holds no library', INSTALL)
    return checked_library(module)


def checked_library(module: Any) -> Library:
    """A module as a library that the runtime can work with.

    Raises:
        UserError: it knows its tensors by number only, as TensorRT before 8.5.
    """
    found = Library(module, str(module.__version__))
    if not (hasattr(module.ICudaEngine, "num_io_tensors") and hasattr(module.IExecutionContext, "execute_async_v3")):
        raise UserError(
            f'TensorRT "{found.version}" has no named tensors, which came with 8.5',
            ["JetPack 4 is measured by trtexec, from the host: splitboard trtexec BUNDLE --board STATION"],
        )
    return found


class Log:
    """What TensorRT said of late: warnings and errors.

    Attributes:
        logger: to be given to TensorRT.
    """

    def __init__(self, library: Library) -> None:
        self._lines: List[str] = []
        self.logger = _logger(library.module, self)

    def add(self, line: str) -> None:
        """Keeps a line."""
        self._lines = [*self._lines[1 - _N_LINES :], line]

    @property
    def last(self) -> str:
        """The last line, for an error; what to say where there is none."""
        return self._lines[-1] if self._lines else "TensorRT gives no reason"

    @property
    def lines(self) -> Tuple[str, ...]:
        """The last lines."""
        return tuple(self._lines)


def _logger(trt: Any, log: Log) -> Any:
    # The base class is the library's, so this class cannot be made before the library is there.
    told = (trt.ILogger.WARNING, trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)

    class _Logger(trt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in told:
                log.add(message.strip())

    return _Logger()
