"""One image from source pixels to class scores, by any split, with every phase timed."""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from runtime_edge.engines.engine import Engine
from runtime_edge.link.connection import LinkError
from runtime_edge.link.sender import JPEG, PLAIN, Answer, Sender
from splitboard.contract.bundle import Bundle, Split
from splitboard.contract.errors import UserError
from splitboard.contract.interface import Interface, interface
from splitboard.contract.preprocess import edge_image, prepare

Array = NDArray[Any]


class Inference(NamedTuple):
    """One inference.

    Attributes:
        spans_ns: durations in the order of `splitboard.contract.record.SPANS`; 0 where the path has no such phase;
            ``None`` where the server does not tell its own part.
        total_ns: end to end, measured on its own.
        scores: class scores (logits) by task.
        device_ns: part of the edge span that a GPU was busy for; ``None`` where no GPU took part.
    """

    spans_ns: Optional[Tuple[int, ...]]
    total_ns: int
    scores: Dict[str, List[float]]
    device_ns: Optional[int] = None


class EdgeHalf(NamedTuple):
    """What the board has computed of one image.

    Attributes:
        split: that was run.
        pixels: the prepared image, ``[1, height, width, source_channels]``, uint8.
        tensors: what the edge graph takes and gives, by name; of remote only the pixels.
        start_ns: when the image came.
        pre_ns: preprocessing.
        edge_ns: the edge graph.
        device_ns: part of it that a GPU was busy for; ``None`` where no GPU took part.
    """

    split: Split
    pixels: NDArray[np.uint8]
    tensors: Dict[str, Array]
    start_ns: int
    pre_ns: int
    edge_ns: int
    device_ns: Optional[int] = None


class Pipeline:
    """Runs images through the splits of one bundle.

    Args:
        bundle: the manifest.
        bundle_sha256: its identity, sent with every request.
        splits: that will be run.
        engine: entered, and made for these splits; ``None`` only where every split is remote.
        sender: to the server; ``None`` only where every split is local.
        coding: of requests, one of `runtime_edge.link.sender.CODINGS`; ``jpeg`` holds for remote only, the others are
            sent as they are then.

    Raises:
        UserError: a split needs a server and there is none.
    """

    def __init__(
        self,
        bundle: Bundle,
        bundle_sha256: str,
        splits: Tuple[Split, ...],
        engine: Optional[Engine],
        sender: Optional[Sender],
        coding: str = PLAIN,
    ) -> None:
        self.bundle = bundle
        self._spec = bundle.preprocessing
        self._tasks = tuple(task.name for task in bundle.tasks)
        self._image = bundle.edge_input.name
        self._table = bundle.input_table()
        self._engine = engine
        self._sender = sender
        self._coding = coding
        self.interfaces: Dict[str, Interface] = {
            split.id: interface(bundle, bundle_sha256, split) for split in splits if not split.is_local
        }
        if sender is None and self.interfaces:
            names = ", ".join(self.interfaces)
            alone = ", ".join(split.id for split in bundle.splits if split.is_local)
            raise UserError(
                f'no server given for "{names}"',
                ["--server http://HOST:PORT", f"needs no server: {alone or 'no split'}"],
            )

    def infer(self, split: Split, image: NDArray[np.uint8]) -> Inference:
        """Runs one image.

        Args:
            split: one of those that the pipeline was made for.
            image: source pixels, ``[h, w, source_channels]``, uint8.

        Raises:
            UserError: the server is not there, refuses, or answers what cannot be used.
        """
        half = self.edge(split, image)
        if split.is_local:
            answered_ns = perf_counter_ns()
            spans_ns: Optional[Tuple[int, ...]] = (0, half.pre_ns, half.edge_ns, 0, 0, 0, 0, 0, 0)
            outputs: Dict[str, Array] = {}
        else:
            coding = PLAIN if self._coding == JPEG and not split.is_remote else self._coding
            answer = self.ask(half, self.asked(split), coding)
            answered_ns, outputs = answer.arrived_ns, answer.outputs
            spans_ns = _spans(half, answer)
        outputs = {**outputs, **local_outputs(half)}
        scores = {task: outputs[task][0].tolist() for task in self._tasks}
        end_ns = perf_counter_ns()
        if spans_ns is not None:
            spans_ns = (*spans_ns, end_ns - answered_ns)
        return Inference(spans_ns, perf_counter_ns() - half.start_ns, scores, half.device_ns)

    def asked(self, split: Split) -> Tuple[str, ...]:
        """The tasks that a split's server half answers."""
        return tuple(task for task in self._tasks if task not in split.local_tasks)

    def edge(self, split: Split, image: NDArray[np.uint8]) -> EdgeHalf:
        """Preprocessing and the edge half; see `infer`."""
        start_ns = perf_counter_ns()
        pixels = prepare(image[None], self._spec)
        if split.is_remote:
            tensors: Dict[str, Array] = {split.tensors[0].name: pixels}
            return EdgeHalf(split, pixels, tensors, start_ns, perf_counter_ns() - start_ns, 0)
        prepared = edge_image(pixels, self._table)
        prepared_ns = perf_counter_ns()
        if self._engine is None:
            raise RuntimeError("a split with an edge half was given to a pipeline without an engine")
        tensors = self._engine.infer(split.id, prepared)
        computed_ns = perf_counter_ns()
        tensors[self._image] = prepared
        pre_ns, edge_ns = prepared_ns - start_ns, computed_ns - prepared_ns
        return EdgeHalf(split, pixels, tensors, start_ns, pre_ns, edge_ns, self._engine.device_ns)

    def whole(self, half: EdgeHalf, local: Split) -> EdgeHalf:
        """The whole model on the board, for an image whose edge half was computed in vain.

        Args:
            half: it.
            local: local only, one of the pipeline's splits.
        """
        if self._engine is None:
            raise RuntimeError("local only was asked of a pipeline without an engine")
        start_ns = perf_counter_ns()
        prepared = edge_image(half.pixels, self._table)
        tensors = self._engine.infer(local.id, prepared)
        edge_ns = perf_counter_ns() - start_ns
        return half._replace(split=local, tensors=tensors, edge_ns=edge_ns, device_ns=self._engine.device_ns)

    def can(self, coding: str) -> bool:
        """Whether board and server both have what a coding needs; not while the server cannot be asked."""
        try:
            return self._sender is not None and self._sender.can(coding)
        except LinkError:
            return False

    def ask(self, half: EdgeHalf, outputs: Sequence[str], coding: str, timeout_s: Optional[float] = None) -> Answer:
        """Has the server finish what the edge half began.

        Args:
            half: of a split that is not local.
            outputs: tasks wanted.
            coding: of the request.
            timeout_s: for the round trip; the link's own by default.

        Raises:
            LinkError: the server is not there, refuses, or answers what cannot be used.
        """
        if self._sender is None:
            raise RuntimeError("a split that needs a server passed the constructor without one")
        return self._sender.ask(self.interfaces[half.split.id], outputs, half.tensors, coding, timeout_s)


def _spans(half: EdgeHalf, answer: Answer) -> Optional[Tuple[int, ...]]:
    """All spans but the last; ``None`` where the server does not tell its own part."""
    if answer.server is None:
        return None
    queue_ns, decode_ns, compute_ns = answer.server
    link_ns = answer.round_trip_ns - sum(answer.server)
    before_ns = (0, half.pre_ns, half.edge_ns, answer.encode_ns, answer.serialise_ns)
    return (*before_ns, link_ns, queue_ns, decode_ns, compute_ns)


def local_outputs(half: EdgeHalf) -> Dict[str, Array]:
    """The scores of the tasks that the edge answers; those that cross as well are there as stored."""
    split, tensors = half.split, half.tensors
    crossing = {tensor.name: tensor for tensor in split.tensors}
    return {
        task: crossing[task].real(tensors[task]) if task in crossing else tensors[task] for task in split.local_tasks
    }
