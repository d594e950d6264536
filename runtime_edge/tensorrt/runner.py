"""One engine, ready to run: memory mapped, addresses set, its work captured as a CUDA graph where that can be."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from runtime_edge.cuda.seam import Cuda, Mapped, Stream
from runtime_edge.engines.engine import Array
from runtime_edge.tensorrt.library import Library, Log
from splitboard.contract.errors import UserError

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8", "UINT8": "uint8", "INT32": "int32", "INT64": "int64"}
"""TensorRT's names of types, and numpy's. The library's own `nptype` fails in 8.5 with numpy 1.24 and newer."""


class Loaded(NamedTuple):
    """A deserialised engine.

    Attributes:
        runtime: that it belongs to and that must outlive it.
        engine: TensorRT's.
        log: of both.
    """

    runtime: Any
    engine: Any
    log: Log


class Tensor(NamedTuple):
    """One input or output of an engine.

    Attributes:
        name: as in the ONNX file.
        shape: fixed.
        dtype: numpy's name.
        is_input: whether it goes in.
    """

    name: str
    shape: Tuple[int, ...]
    dtype: str
    is_input: bool


def load(library: Library, plan: bytes, dla: Optional[int], what: str) -> Loaded:
    """Deserialises an engine that was verified.

    Args:
        library: of the version that built it.
        plan: the engine.
        dla: the core to run on.
        what: for an error, e.g. the split.

    Raises:
        UserError: TensorRT does not take it.
    """
    log = Log(library)
    runtime = library.module.Runtime(log.logger)
    if dla is not None:
        runtime.DLA_core = dla
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise UserError(f'TensorRT {library.version} does not load the engine of "{what}": {log.last}', _AGAIN)
    return Loaded(runtime, engine, log)


_AGAIN = ["build it again: delete the folder of --engine-cache, then trt-build"]


def tensors(library: Library, loaded: Loaded) -> List[Tensor]:
    """What an engine takes and gives."""
    engine, inputs = loaded.engine, library.module.TensorIOMode.INPUT
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return [
        Tensor(
            name=name,
            shape=tuple(int(size) for size in engine.get_tensor_shape(name)),
            dtype=_DTYPES.get(engine.get_tensor_dtype(name).name, engine.get_tensor_dtype(name).name.lower()),
            is_input=engine.get_tensor_mode(name) == inputs,
        )
        for name in names
    ]


class Runner:
    """Runs one engine on one stream; not by two threads at once.

    Args:
        loaded: the engine.
        found: its tensors, one of them an input.
        cuda: entered, and current in this thread.
        stream: to run on.
        image: mapped memory of the input, which several runners may share.

    Attributes:
        no_graph: why the work is not captured as a graph; ``None`` where it is.
    """

    def __init__(self, loaded: Loaded, found: List[Tensor], cuda: Cuda, stream: Stream, image: Mapped) -> None:
        self._loaded, self._cuda, self._stream = loaded, cuda, stream
        self._context = loaded.engine.create_execution_context()
        if self._context is None:
            raise UserError(f'no memory to run the engine: "{loaded.log.last}"', ["name fewer splits"])
        self._memory: List[Mapped] = []
        self._outputs: Dict[str, Array] = {}
        for tensor in found:
            memory = image if tensor.is_input else self._map(tensor)
            self._context.set_tensor_address(tensor.name, memory.address)
            view = memory.host[: _n_bytes(tensor)].view(tensor.dtype).reshape(tensor.shape)
            if tensor.is_input:
                self._input = view
            else:
                self._outputs[tensor.name] = view
        self._first, self._last = cuda.event(), cuda.event()
        self.no_graph: Optional[str] = cuda.no_graphs
        self._start: Callable[[], None] = self._enqueue
        try:
            self._capture()
        except BaseException:
            self.close()
            raise

    def run(self, image: Array) -> Tuple[Dict[str, Array], int]:
        """Runs the engine.

        Args:
            image: of the input's shape and dtype.

        Returns:
            Copies of the outputs by name, and the time of the GPU in ns.
        """
        np.copyto(self._input, image, casting="equiv")
        self._cuda.record(self._first, self._stream)
        self._start()
        self._cuda.record(self._last, self._stream)
        self._cuda.synchronise(self._stream)
        outputs = {name: view.copy() for name, view in self._outputs.items()}
        return outputs, self._cuda.elapsed_ns(self._first, self._last)

    def watch(self, profiler: Any) -> None:
        """Has every layer's time told to a profiler from now on; without a graph, of which TensorRT tells none."""
        self._context.profiler = profiler
        self._start = self._enqueue
        self.no_graph = "profiled"

    def close(self) -> None:
        """Gives memory back; it cannot run any more."""
        self._start = self._enqueue  # lets go of the graph, which uses that memory
        self._context = None
        self._outputs = {}
        for memory in self._memory:
            self._cuda.free(memory)
        self._memory = []

    def _map(self, tensor: Tensor) -> Mapped:
        self._memory.append(self._cuda.map(_n_bytes(tensor)))
        return self._memory[-1]

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.address):
            raise RuntimeError(f"TensorRT does not run the engine: {self._loaded.log.last}")

    def _capture(self) -> None:
        """Shapes and addresses never change, so what is captured once holds for good."""
        self._enqueue()  # what an engine sets up at its first run must not be captured
        self._cuda.synchronise(self._stream)
        if self.no_graph is not None:
            return
        try:
            graph = self._cuda.capture(self._stream, self._enqueue)
        except RuntimeError as error:  # e.g. an engine with DLA, which waits in between
            self.no_graph = str(error)
            return
        self._start = lambda: self._cuda.launch(graph, self._stream)


def _n_bytes(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize
