"""TensorRT as an engine of the runtime."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Callable, Dict, List, Optional, Sequence, Type

from runtime_edge.cuda.seam import Cuda
from runtime_edge.engines.engine import Array, edge_splits, made_tensors, scored
from runtime_edge.tensorrt.library import Library
from runtime_edge.tensorrt.options import BuildOptions
from runtime_edge.tensorrt.prepare import Workshop
from runtime_edge.tensorrt.runner import Runner, Tensor, load, tensors
from splitboard.contract.bundle import Bundle, Split, TensorSpec
from splitboard.contract.errors import UserError


class TensorRtEngine:
    """One TensorRT engine per split, on one stream, with one mapped input for all; see `runtime_edge.engines.engine`.

    Engines that this board has not built yet are built when the block is entered.

    Args:
        folder: the bundle.
        bundle: its manifest.
        splits: that will be run; those without an edge half are passed over.
        options: how engines are built and where they are kept.
        library: TensorRT.
        cuda: not entered.

    Attributes:
        device_ns: time of the GPU for the last inference, between two events of its stream.
    """

    def __init__(
        self,
        folder: Path,
        bundle: Bundle,
        splits: Sequence[Split],
        options: BuildOptions,
        library: Library,
        cuda: Cuda,
    ) -> None:
        self.name = f"tensorrt {library.version}, {cuda.name}"
        self.device_ns: Optional[int] = None
        self._folder, self._bundle, self._options = folder, bundle, options
        self._splits = edge_splits(splits)
        self._library, self._cuda = library, cuda
        self._open = contextlib.ExitStack()
        self._runners: Dict[str, Runner] = {}

    def __enter__(self) -> TensorRtEngine:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._cuda)
            # Last in, first out: what frees memory runs inside of a context of its own, in whatever thread that is.
            with self._cuda.current():
                self._set_up(stack)
            self._open = stack.pop_all()
        graphs = sorted({runner.no_graph or "CUDA graphs" for runner in self._runners.values()})
        self.name = f"tensorrt {self._library.version}, {self._cuda.name}, {', '.join(graphs)}"
        if self._options.dla is not None:
            self.name += f", DLA core {self._options.dla}"
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._runners = {}
        self._open.close()

    def infer(self, split_id: str, image: Array) -> Dict[str, Array]:
        """Runs one edge half on float32 NCHW; see `runtime_edge.engines.engine.Engine.infer`."""
        runner = self._runners[split_id]
        with self._cuda.current():
            outputs, self.device_ns = runner.run(image)
        return outputs

    def _set_up(self, stack: contextlib.ExitStack) -> None:
        workshop = Workshop(self._library, self._cuda.compute_capability(), self._folder, self._bundle, self._options)
        stream, spec = self._cuda.stream(), self._bundle.edge_input
        image = self._cuda.map(spec.n_bytes)
        stack.callback(self._freeing, lambda: self._cuda.free(image))
        for number, split in enumerate(self._splits.values(), 1):
            stored = workshop.engine(split, f"{number} of {len(self._splits)}")
            loaded = load(self._library, stored.plan, self._options.dla, split.id)
            found = tensors(self._library, loaded)
            _check(found, self._bundle, split)
            runner = Runner(loaded, found, self._cuda, stream, image)
            stack.callback(self._freeing, runner.close)
            self._runners[split.id] = runner

    def _freeing(self, free: Callable[[], None]) -> None:
        with self._cuda.current():
            free()


def _check(found: List[Tensor], bundle: Bundle, split: Split) -> None:
    """The engine must take and give what the manifest says, else the server would misread a tensor in silence."""
    inputs = [one for one in found if one.is_input]
    if [one.name for one in inputs] != [bundle.edge_input.name]:
        raise _broken(split, f'takes "{", ".join(one.name for one in inputs)}"', bundle.edge_input.name)
    _check_tensor(split, inputs[0], bundle.edge_input)
    outputs = {one.name: one for one in found if not one.is_input}
    wires, scores = made_tensors(bundle, split), scored(split)
    wanted = [*(wire.name for wire in wires), *scores]
    if sorted(outputs) != sorted(wanted):
        raise _broken(split, f'gives "{", ".join(outputs)}"', ", ".join(wanted))
    for wire in wires:
        _check_tensor(split, outputs[wire.name], wire)
    for name in scores:
        if outputs[name].dtype != "float32":
            raise _broken(split, f'gives the scores "{name}" as {outputs[name].dtype}', "float32")


def _check_tensor(split: Split, found: Tensor, spec: TensorSpec) -> None:
    if (found.shape, found.dtype) != (spec.shape, spec.dtype):
        raise _broken(split, f'has "{spec.name}" as {found.dtype} {list(found.shape)}', f"{spec.dtype} {spec.shape}")


def _broken(split: Split, what: str, wanted: str) -> UserError:
    return UserError(
        f"the engine of split {split.id} {what}, the manifest says {wanted}",
        ["build the bundle again: splitboard build"],
    )
