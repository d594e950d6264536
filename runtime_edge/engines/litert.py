"""LiteRT: ai-edge-litert, else the older tflite-runtime."""

from __future__ import annotations

import importlib
import os
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Type

import numpy as np
from numpy.typing import NDArray

from runtime_edge.engines.engine import Array, edge_splits, made_tensors, scored
from splitboard.contract.bundle import Bundle, Split, TensorSpec
from splitboard.contract.errors import UserError

PACKAGES = (("ai_edge_litert", "ai-edge-litert"), ("tflite_runtime", "tflite-runtime"))
"""Import name and distribution name, best first."""

_INSTALL = ["python3 -m pip install ai-edge-litert", "on 32-bit Raspberry Pi OS: python3 -m pip install tflite-runtime"]
_SCALE_TOLERANCE = 1e-5
"""Relative; the file stores float32 and the manifest the shortest decimal of it."""


class Interpreter(NamedTuple):
    """An installed interpreter.

    Attributes:
        name: package and version.
        module: ``<package>.interpreter``.
    """

    name: str
    module: Any


def find_interpreter() -> Interpreter:
    """Imports the best interpreter that is installed.

    Raises:
        UserError: there is none, it does not load, or it cannot work with the installed numpy.
    """
    for package, distribution in PACKAGES:
        try:
            module = importlib.import_module(package + ".interpreter")
        except ModuleNotFoundError as error:
            if error.name is not None and error.name.split(".")[0] == package:
                continue
            raise UserError(f'{distribution} is installed without "{error.name}"', _INSTALL) from error
        except ImportError as error:
            raise UserError(f'{distribution} is installed and does not load: "{error}"', _INSTALL) from error
        version = metadata.version(distribution)
        # tflite-runtime was built for numpy 1 and dies inside its constructor with numpy 2, without saying so.
        if package == "tflite_runtime" and int(np.__version__.split(".")[0]) >= 2:
            raise UserError(
                f'tflite-runtime {version} does not work with numpy "{np.__version__}"',
                ['python3 -m pip install "numpy<2"'],
            )
        return Interpreter(f"{distribution} {version}", module)
    raise UserError('no interpreter: neither "ai-edge-litert" nor "tflite-runtime" is installed', _INSTALL)


class _Output(NamedTuple):
    """How one output of a signature becomes one tensor of the split.

    Attributes:
        key: what the signature calls it.
        name: what the bundle calls it.
        scores: the spec of a local task's or an exit's scores, which are wanted as real numbers; ``None`` for a wire
            tensor.
    """

    key: str
    name: str
    scores: Optional[TensorSpec]


def _one_file(splits: Dict[str, Split]) -> str:
    files = sorted({split.edge for split in splits.values() if split.edge is not None})
    if len(files) != 1 or not files[0].endswith(".tflite"):
        raise UserError(f'the splits run "{", ".join(files)}", LiteRT runs one .tflite file', ["name other splits"])
    return files[0]


class LiteRtEngine:
    """One interpreter for the bundle's one edge file, one signature per split.

    A signature is set up when it is first run: its tensors get their memory, and the kernels pack their weights. So
    that a switch of splits costs nothing later, all are run once at start, as long as the process has grown by less
    than ``arena_bytes``; the others are set up when they are first used.

    Args:
        folder: the bundle.
        bundle: its manifest.
        splits: that will be run; those without an edge half are passed over.
        threads: of the interpreter.
        arena_bytes: memory for signatures before they are used; 0 sets up none.

    Attributes:
        set_up: splits whose signatures are.
    """

    device_ns: Optional[int] = None

    def __init__(
        self, folder: Path, bundle: Bundle, splits: Sequence[Split], threads: int = 1, arena_bytes: int = 0
    ) -> None:
        if threads < 1:
            raise UserError(f'threads is "{threads}"', ["--threads 1"])
        self._found = find_interpreter()
        self.name = self._found.name
        self._bundle = bundle
        self._splits = edge_splits(splits)
        self._path = folder / _one_file(self._splits)
        self._threads = threads
        self._arena_bytes = arena_bytes
        self.set_up: Tuple[str, ...] = ()
        self._runners: Dict[str, Tuple[Any, str, List[_Output]]] = {}

    def __enter__(self) -> LiteRtEngine:
        interpreter = self._found.module.Interpreter(model_path=str(self._path), num_threads=self._threads)
        signatures = interpreter.get_signature_list()
        for split in self._splits.values():
            if split.edge_signature not in signatures:
                raise self._broken(f'has no signature "{split.edge_signature}"')
            runner = interpreter.get_signature_runner(split.edge_signature)
            self._runners[split.id] = (runner, self._input_key(runner), self._outputs(split, runner))
        self._set_up()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._runners = {}

    def infer(self, split_id: str, image: NDArray[np.int8]) -> Dict[str, Array]:
        """Runs one edge half; see `runtime_edge.engines.engine.Engine.infer`."""
        runner, key, outputs = self._runners[split_id]
        found = runner(**{key: image})
        return {output.name: _tensor(found[output.key], output) for output in outputs}

    def _set_up(self) -> None:
        before_bytes, spec = _resident_bytes(), self._bundle.edge_input
        image = np.zeros(spec.shape, spec.dtype)
        for split_id in self._splits:
            if _resident_bytes() - before_bytes >= self._arena_bytes:
                return
            self.infer(split_id, image)
            self.set_up = (*self.set_up, split_id)

    def _broken(self, what: str) -> UserError:
        return UserError(f'"{self._path}" {what}', ["build the bundle again: splitboard build"])

    def _input_key(self, runner: Any) -> str:
        inputs = runner.get_input_details()
        if len(inputs) != 1:
            raise self._broken(f'takes "{len(inputs)}" inputs, the runtime gives it one image')
        ((key, detail),) = inputs.items()
        self._check(detail, self._bundle.edge_input)
        return str(key)

    def _outputs(self, split: Split, runner: Any) -> List[_Output]:
        details = runner.get_output_details()
        wires = {tensor.name: tensor for tensor in made_tensors(self._bundle, split)}
        names = [*wires, *scored(split)]
        keys = _keys(list(details), names)
        if keys is None:
            raise self._broken(f'gives "{", ".join(details)}", split {split.id} needs "{", ".join(names)}"')
        for name, wire in wires.items():
            self._check(details[keys[name]], wire)
        return [
            _Output(keys[name], name, None if name in wires else _scores(name, details[keys[name]])) for name in names
        ]

    def _check(self, detail: Dict[str, Any], spec: TensorSpec) -> None:
        """The file must be what the manifest says, else the server would misread the tensor in silence."""
        shape, dtype = tuple(int(size) for size in detail["shape"]), np.dtype(detail["dtype"]).name
        scale, zero_point = detail["quantization"]
        if (shape, dtype) != (spec.shape, spec.dtype):
            raise self._broken(
                f'has "{spec.name}" as {dtype} {list(shape)}, the manifest says {spec.dtype} {spec.shape}'
            )
        if spec.scale is None:
            return
        if abs(scale - spec.scale) > _SCALE_TOLERANCE * spec.scale or zero_point != spec.zero_point:
            raise self._broken(
                f'has "{spec.name}" with scale {scale:g} and zero point {zero_point}, the manifest says '
                f"{spec.scale:g} and {spec.zero_point}"
            )


def _resident_bytes() -> int:
    """Memory of this process (proc(5), ``statm``, second field)."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _keys(keys: List[str], names: List[str]) -> Optional[Dict[str, str]]:
    """Which output of a signature is which tensor: by name, by position, or the only one."""
    if len(keys) != len(names):
        return None
    positions = [f"output_{i}" for i in range(len(names))]
    if sorted(keys) == sorted(names):
        return {name: name for name in names}
    if sorted(keys) == sorted(positions):
        return dict(zip(names, positions))
    return {names[0]: keys[0]} if len(names) == 1 else None


def _scores(name: str, detail: Dict[str, Any]) -> TensorSpec:
    """The spec of a local task's or an exit's scores, which the manifest does not list since they cross no border."""
    shape, dtype = tuple(int(size) for size in detail["shape"]), np.dtype(detail["dtype"]).name
    if dtype == "float32":
        return TensorSpec(name, shape, dtype, "NC")
    scale, zero_point = detail["quantization"]
    return TensorSpec(name, shape, dtype, "NC", float(scale), int(zero_point))


def _tensor(stored: Array, output: _Output) -> Array:
    return stored if output.scores is None else output.scores.real(stored)
