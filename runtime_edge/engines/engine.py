"""What runs the edge half of a split."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Callable, Dict, Optional, Protocol, Sequence, Tuple, Type

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.bundle import Bundle, Split, TensorSpec

Array = NDArray[Any]


class Engine(Protocol):
    """Runs the edge halves of some splits of one bundle, with the weights in memory once.

    A context manager: nothing touches the device before ``__enter__``.

    Attributes:
        name: the interpreter and its version, as it goes into records.
        device_ns: what a GPU was busy for in the last `infer`; ``None`` where the engine has none, or did not run yet.
    """

    name: str
    device_ns: Optional[int]

    def __enter__(self) -> Engine:
        """Loads the edge file."""

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        """Frees the device."""

    def infer(self, split_id: str, image: NDArray[np.int8]) -> Dict[str, Array]:
        """Runs one edge half.

        Args:
            split_id: one of the splits that the engine was made for.
            image: the edge input, INT8 NHWC, as in the bundle's ``edge_input``.

        Returns:
            By name, the wire tensors that the edge graph makes, as stored, and the scores of the local tasks and of
            the split's exits, float32 ``[1, classes]``. A local task that crosses as well is there once, as stored.
        """
        ...


def edge_splits(splits: Sequence[Split]) -> Dict[str, Split]:
    """The splits that have an edge half, by id."""
    return {split.id: split for split in splits if split.edge is not None}


def scored(split: Split) -> Tuple[str, ...]:
    """The outputs of a split's edge graph that are scores and no wire tensors: its local tasks, then its exits."""
    crossing = {tensor.name for tensor in split.tensors}
    return (*(task for task in split.local_tasks if task not in crossing), *split.exits)


def made_tensors(bundle: Bundle, split: Split) -> Tuple[TensorSpec, ...]:
    """The wire tensors that a split's edge graph makes: all but the model's own input."""
    return tuple(tensor for tensor in split.tensors if tensor.name != bundle.edge_input.name)


class FakeEngine:
    """An engine without a model, for tests and for trying a link without an interpreter.

    Args:
        bundle: whose tensors it imitates.
        splits: that it runs.
        run: gives the outputs of a split for an image; without it all outputs are zero.
    """

    device_ns: Optional[int] = None

    def __init__(
        self,
        bundle: Bundle,
        splits: Sequence[Split],
        run: Optional[Callable[[Split, NDArray[np.int8]], Dict[str, Array]]] = None,
    ) -> None:
        self.name = "fake"
        self._bundle = bundle
        self._splits = edge_splits(splits)
        self._run = run if run is not None else self._zeros
        self._entered = False

    def __enter__(self) -> FakeEngine:
        self._entered = True
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._entered = False

    def infer(self, split_id: str, image: NDArray[np.int8]) -> Dict[str, Array]:
        """Runs one edge half; see `Engine.infer`."""
        if not self._entered:
            raise RuntimeError("infer outside of the engine's with block")
        return self._run(self._splits[split_id], image)

    def _zeros(self, split: Split, _: NDArray[np.int8]) -> Dict[str, Array]:
        classes = {task.name: len(task.labels) for task in self._bundle.tasks}
        classes.update({one.output: classes[one.task] for one in self._bundle.exits})
        return {
            **{name: np.zeros((1, classes[name]), np.float32) for name in scored(split)},
            **{tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in made_tensors(self._bundle, split)},
        }
