"""ONNX Runtime with its optimiser off: on the host, the faithful simulation of a Q/DQ edge half.

Nothing is fused, so every QuantizeLinear rounds where the file says. For a board this is the reference, not a runtime.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Dict, List, Optional, Sequence, Tuple, Type

from runtime_edge.engines.engine import Array, made_tensors, scored
from splitboard.contract.bundle import Bundle, Split, TensorSpec
from splitboard.contract.errors import UserError

_TYPES = {"tensor(float)": "float32", "tensor(int8)": "int8", "tensor(int32)": "int32", "tensor(int64)": "int64"}
"""ONNX Runtime's names of the types of what crosses, and numpy's."""


def find_onnxruntime() -> Any:
    """Imports ONNX Runtime.

    Raises:
        UserError: it does not load.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f'ONNX Runtime does not load: "{error}"', ["python3 -m pip install onnxruntime"]) from error
    return onnxruntime


class OnnxRuntimeEngine:
    """One session per split, each with a file of its own: weights that splits share are in memory several times.

    Args:
        folder: the bundle.
        bundle: its manifest.
        splits: that will be run; those without an edge half are passed over.
        threads: of each session.
    """

    device_ns: Optional[int] = None

    def __init__(self, folder: Path, bundle: Bundle, splits: Sequence[Split], threads: int = 1) -> None:
        if threads < 1:
            raise UserError(f'threads is "{threads}"', ["--threads 1"])
        self._runtime = find_onnxruntime()
        self.name = f"onnxruntime {self._runtime.__version__}"
        self._folder = folder
        self._bundle = bundle
        self._splits = [split for split in splits if split.edge is not None]
        self._threads = threads
        self._sessions: Dict[str, Tuple[Any, List[str]]] = {}

    def __enter__(self) -> OnnxRuntimeEngine:
        for split in self._splits:
            path = self._folder / str(split.edge)
            session = self._session(path)
            self._sessions[split.id] = (session, self._outputs(path, split, session))
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._sessions = {}

    def infer(self, split_id: str, image: Array) -> Dict[str, Array]:
        """Runs one edge half on float32 NCHW; see `runtime_edge.engines.engine.Engine.infer`."""
        session, names = self._sessions[split_id]
        return dict(zip(names, session.run(names, {self._bundle.edge_input.name: image})))

    def _session(self, path: Path) -> Any:
        options = self._runtime.SessionOptions()
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 4  # what goes wrong comes as an exception
        try:
            return self._runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common base class but this one
            raise _broken(path, f'does not load: "{error}"') from error

    def _outputs(self, path: Path, split: Split, session: Any) -> List[str]:
        """Checks the file against the manifest and returns the names of what it is to give."""
        inputs = {one.name: one for one in session.get_inputs()}
        image = self._bundle.edge_input
        if list(inputs) != [image.name]:
            raise _broken(path, f'takes "{", ".join(inputs)}", the manifest says {image.name}')
        _check(path, inputs[image.name], image)
        outputs = {one.name: one for one in session.get_outputs()}
        wires = made_tensors(self._bundle, split)
        scores = scored(split)
        wanted = [*(wire.name for wire in wires), *scores]
        if sorted(outputs) != sorted(wanted):
            raise _broken(path, f'gives "{", ".join(outputs)}", split {split.id} needs "{", ".join(wanted)}"')
        for wire in wires:
            _check(path, outputs[wire.name], wire)
        for name in scores:
            if _TYPES.get(outputs[name].type) != "float32":
                raise _broken(path, f'gives the scores "{name}" as {outputs[name].type}, scores are float32')
        return wanted


def _check(path: Path, found: Any, spec: TensorSpec) -> None:
    """The file must be what the manifest says, else the server would misread the tensor in silence."""
    shape, dtype = tuple(found.shape), _TYPES.get(found.type, found.type)
    if (shape, dtype) != (spec.shape, spec.dtype):
        raise _broken(path, f'has "{spec.name}" as {dtype} {list(shape)}, the manifest says {spec.dtype} {spec.shape}')


def _broken(path: Path, what: str) -> UserError:
    return UserError(f'"{path}" {what}', ["build the bundle again: splitboard build"])
