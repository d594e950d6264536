"""One image from source pixels to class scores, by any split, with every phase timed."""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from runtime_edge.engine import Engine
from runtime_edge.link import Link
from splitboard.contract.bundle import Bundle, Split
from splitboard.contract.errors import UserError
from splitboard.contract.interface import WireError, interface
from splitboard.contract.preprocess import edge_image, prepare
from splitboard.contract.wire import HEADER_LENGTH, decode_reply, encode_request, parse_server_timing

Array = NDArray[Any]


class Inference(NamedTuple):
    """One inference.

    Attributes:
        spans_ns: durations in the order of `splitboard.contract.record.SPANS`; 0 where the path has no such phase;
            ``None`` where the server does not tell its own part.
        total_ns: end to end, measured on its own.
        scores: class scores (logits) by task.
    """

    spans_ns: Optional[Tuple[int, ...]]
    total_ns: int
    scores: Dict[str, List[float]]


class _Answer(NamedTuple):
    """Outputs by task, the spans serialise, link, queue and server, and when the outputs were there."""

    outputs: Dict[str, Array]
    spans_ns: Optional[Tuple[int, ...]]
    arrived_ns: int


class Pipeline:
    """Runs images through the splits of one bundle.

    Args:
        bundle: the manifest.
        bundle_sha256: its identity, sent with every request.
        splits: that will be run.
        engine: entered, and made for these splits; ``None`` only where every split is remote.
        link: to the server; ``None`` only where every split is local.

    Raises:
        UserError: a split needs a server and there is no link.
    """

    def __init__(
        self,
        bundle: Bundle,
        bundle_sha256: str,
        splits: Tuple[Split, ...],
        engine: Optional[Engine],
        link: Optional[Link],
    ) -> None:
        self._spec = bundle.preprocessing
        self._tasks = [task.name for task in bundle.tasks]
        self._image = bundle.edge_input.name
        self._table = bundle.input_table()
        self._engine = engine
        self._link = link
        self._interfaces = {s.id: interface(bundle, bundle_sha256, s) for s in splits if not s.is_local}
        if link is None and self._interfaces:
            names = ", ".join(self._interfaces)
            raise UserError(f'no server given for "{names}"', ["--server http://HOST:PORT", "--splits with local only"])

    def infer(self, split: Split, image: NDArray[np.uint8]) -> Inference:
        """Runs one image.

        Args:
            split: one of those that the pipeline was made for.
            image: source pixels, ``[h, w, source_channels]``, uint8.

        Raises:
            UserError: the server is not there, refuses, or answers what cannot be used.
        """
        start_ns = perf_counter_ns()
        pixels = prepare(image[None], self._spec)
        prepared: Array = pixels if split.is_remote else edge_image(pixels, self._table)
        prepared_ns = perf_counter_ns()
        if split.is_remote:
            tensors: Dict[str, Array] = {split.tensors[0].name: prepared}
            computed_ns = prepared_ns
        else:
            tensors = {self._image: prepared, **self._edge(split, prepared)}
            computed_ns = perf_counter_ns()
        answer = _Answer({}, (0, 0, 0, 0), computed_ns) if split.is_local else self._ask(split, tensors)
        outputs = {**answer.outputs, **_local_outputs(split, tensors)}
        scores = {task: outputs[task][0].tolist() for task in self._tasks}
        end_ns = perf_counter_ns()
        spans_ns = None
        if answer.spans_ns is not None:
            before_ns = (prepared_ns - start_ns, computed_ns - prepared_ns)
            spans_ns = (*before_ns, *answer.spans_ns, end_ns - answer.arrived_ns)
        return Inference(spans_ns, perf_counter_ns() - start_ns, scores)

    def _edge(self, split: Split, image: NDArray[np.int8]) -> Dict[str, Array]:
        if self._engine is None:
            raise RuntimeError("a split with an edge half was given to a pipeline without an engine")
        return self._engine.infer(split.id, image)

    def _ask(self, split: Split, tensors: Dict[str, Array]) -> _Answer:
        if self._link is None:
            raise RuntimeError("a split that needs a server passed the constructor without a link")
        to = self._interfaces[split.id]
        start_ns = perf_counter_ns()
        request = encode_request(tensors, to)
        sent_ns = perf_counter_ns()
        reply = self._link.infer(to, request)
        arrived_ns = perf_counter_ns()
        try:
            outputs = decode_reply(reply.body, reply.headers.get(HEADER_LENGTH.lower()), to)
            timing = reply.headers.get("server-timing")
            server = None if timing is None else parse_server_timing(timing)
        except WireError as error:
            raise UserError(f'the reply from "{self._link.url}" cannot be used: {error.message}') from error
        if server is None:
            return _Answer(outputs, None, arrived_ns)
        link_ns = arrived_ns - sent_ns - sum(server)
        if link_ns < 0:
            raise UserError(f'the server at "{self._link.url}" claims more time than the round trip took: "{timing}"')
        return _Answer(outputs, (sent_ns - start_ns, link_ns, *server), arrived_ns)


def _local_outputs(split: Split, tensors: Dict[str, Array]) -> Dict[str, Array]:
    """The scores of the tasks that the edge answers; those that cross as well are there as stored."""
    crossing = {tensor.name: tensor for tensor in split.tensors}
    return {
        task: crossing[task].real(tensors[task]) if task in crossing else tensors[task] for task in split.local_tasks
    }
