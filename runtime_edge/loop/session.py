"""Answers images for as long as it takes: with the server, without it, and when it comes and goes.

An image is answered in two phases, so that the edge half of the next one can run while the server computes: `begin`
chooses the split and runs its edge half, `finish` has the rest answered. Every image that was begun is finished once,
with its own answer: replies carry their request's number, and a connection that gave anything odd is closed.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from runtime_edge.link.connection import LinkError
from runtime_edge.link.sender import JPEG, PLAIN, ZSTD, Answer
from runtime_edge.link.watch import ServerWatch
from runtime_edge.loop.exits import sure
from runtime_edge.pipeline import EdgeHalf, Pipeline, local_outputs
from runtime_edge.policy.choosers import Chooser
from runtime_edge.policy.codec_choice import CodecChoice
from runtime_edge.policy.dynamic_split import Decision
from splitboard.contract.bundle import Split
from splitboard.contract.errors import UserError
from splitboard.contract.exits import ExitRules

AUTO = "auto"
"""The coding that is chosen per request."""

LOCAL, EXIT, UNAVAILABLE = "local", "exit", "unavailable"
FALLBACKS = (LOCAL, EXIT, UNAVAILABLE)
"""What answers in the server's place: the whole model, the early exits however sure they are, or nothing."""

_RESERVE = 1.2
"""So many times the local model's usual duration is kept back before a deadline."""

_AGAIN = ("corrupt",)
"""Failures of one message that say nothing of the next: it is sent once more."""


class TaskAnswer(NamedTuple):
    """One task's answer.

    Attributes:
        scores: class scores (logits); ``None`` where the task was not answered.
        by: ``edge`` (its head is on the edge), ``exit``, ``server``, ``local`` (the whole model ran on the board), or
            ``unavailable``.
        after_ns: since the image came.
    """

    scores: Optional[List[float]]
    by: str
    after_ns: int


class Answered(NamedTuple):
    """What became of one image.

    Attributes:
        number: of the image, from 0.
        split: that was run.
        reason: why that one.
        tasks: by name, every task of the bundle.
        total_ns: from the image to the last answer.
        edge_ns: preprocessing and edge half.
        local_ns: the whole model on the board, in the server's place; 0 where it did not run so.
        answer: the server's, its outputs apart; ``None`` where it gave none.
        failure: why it gave none though it was asked or should have been; ``None`` where all went well.
        coding: of the request.
    """

    number: int
    split: str
    reason: str
    tasks: Dict[str, TaskAnswer]
    total_ns: int
    edge_ns: int
    local_ns: int
    answer: Optional[Answer]
    failure: Optional[str]
    coding: str


class Begun(NamedTuple):
    """An image whose edge half is computed.

    Attributes:
        number: of the image.
        half: what was computed.
        reason: why this split.
        coding: of the request, if one is sent.
        reserve_ns: kept back before the deadline for the fallback.
        patience_ns: that the reply is waited for where the fallback is the local model; ``None`` for ever.
        away: why the server could not be asked when the split was chosen; ``None`` where it could be or is not needed.
        tasks: what is answered already.
    """

    number: int
    half: EdgeHalf
    reason: str
    coding: str
    reserve_ns: int
    patience_ns: Optional[int]
    away: Optional[str]
    tasks: Dict[str, TaskAnswer]


OnTask = Callable[[int, str, TaskAnswer], None]
"""Called with the image's number, the task and its answer, as soon as that is there; from either phase's thread."""


@dataclass(frozen=True)
class Manners:
    """How a session behaves.

    Attributes:
        fallback: one of `FALLBACKS`.
        deadline_s: that an image is to be answered within; ``None`` for none.
        coding: of requests: one of `runtime_edge.link.sender.CODINGS`, or `AUTO`.
        rules: when early exits answer alone; ``None`` for never.
    """

    fallback: str = LOCAL
    deadline_s: Optional[float] = None
    coding: str = PLAIN
    rules: Optional[ExitRules] = None


class Session:
    """Answers images, one after the other or two at a time.

    Args:
        pipeline: made for ``splits``.
        splits: that may be run; with the fallback ``local``, local only is among them.
        chooser: which of them, per image.
        watch: whether there is a server, entered; ``None`` where every split is local.
        manners: how to behave.
        on_task: told every single answer at once; ``None`` where nobody wants to know.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        splits: Tuple[Split, ...],
        chooser: Chooser,
        watch: Optional[ServerWatch],
        manners: Manners,
        on_task: Optional[OnTask] = None,
    ) -> None:
        self._pipeline = pipeline
        self._splits = {split.id: split for split in splits}
        self._local = next((split for split in splits if split.is_local), None)
        self._chooser = chooser
        self._watch = watch
        self._manners = manners
        self._on_task = on_task
        self._codec = CodecChoice()
        self._number = 0
        self._engine_free = threading.Lock()
        bundle = pipeline.bundle
        self._tasks = tuple(task.name for task in bundle.tasks)
        self._exits = {split.id: bundle.exits_of(split) for split in splits}
        self._local_ns = 0
        self._check_fallback()

    def _check_fallback(self) -> None:
        fallback = self._manners.fallback
        if self._watch is not None and fallback == LOCAL and self._local is None:
            raise UserError(
                'the fallback is "local" and the bundle has no local only split', ["--fallback unavailable"]
            )
        if self._watch is not None and fallback == EXIT and not any(self._exits.values()):
            raise UserError(
                'the fallback is "exit" and no split that may run has an early exit',
                ["--fallback local", "build with exits: splitboard exits"],
            )

    @property
    def _stand_in(self) -> Decision:
        """What runs while there is no server and none of the splits to choose among does without."""
        if self._manners.fallback == LOCAL and self._local is not None:
            return Decision(self._local.id, None, None, "there is no server")
        best = max(self._splits.values(), key=lambda split: (len(split.exits), not split.is_remote))
        return Decision(best.id, None, None, "there is no server")

    def begin(self, image: NDArray[np.uint8]) -> Begun:
        """Chooses a split, runs its edge half, and answers what that can answer.

        Args:
            image: source pixels, ``[h, w, source_channels]``, uint8.
        """
        now_ns = perf_counter_ns()
        there = self._watch is not None and self._watch.available
        for probe in () if self._watch is None else self._watch.probes():
            self._chooser.probe(probe.at_ns, probe.rtt_ns)
        decision = self._chooser.choose(now_ns, there) or self._stand_in
        with self._engine_free:
            half = self._pipeline.edge(self._splits[decision.split], image)
        begun = Begun(
            number=self._number,
            half=half,
            reason=decision.reason,
            coding=self._coding(half.split),
            reserve_ns=self._reserve_ns(),
            patience_ns=decision.patience_ns if self._manners.fallback == LOCAL else None,
            away=None if self._watch is None or there else self._watch.reason or "unreachable",
            tasks={},
        )
        self._number += 1
        by = "local" if half.split.is_local else "edge"
        for task, scores in local_outputs(half).items():
            self._answer(begun, task, scores[0].tolist(), by)
        self._exit(begun, only_sure=True)
        return begun

    def finish(self, begun: Begun) -> Answered:
        """Has the server answer what is left, or the fallback in its place."""
        asked = tuple(task for task in self._tasks if task not in begun.tasks)
        answer, failure, local_ns = None, begun.away, 0
        if asked:
            try:
                answer = self._ask(begun, asked)
            except LinkError as error:
                failure = error.reason
                local_ns = self._fall_back(begun)
        end_ns = perf_counter_ns()
        return Answered(
            number=begun.number,
            split=begun.half.split.id,
            reason=begun.reason,
            tasks=begun.tasks,
            total_ns=end_ns - begun.half.start_ns,
            edge_ns=begun.half.pre_ns + begun.half.edge_ns,
            local_ns=local_ns,
            answer=None if answer is None else answer._replace(outputs={}),
            failure=failure,
            coding=begun.coding,
        )

    def settle(self, done: Answered) -> None:
        """Lets the chooser learn from what is finished; called in the thread of `begin`."""
        answer = done.answer
        if done.local_ns and self._local is not None:
            self._local_ns = done.local_ns
            self._chooser.local(self._local.id, done.local_ns)
        if answer is None:
            self._settle_alone(done)
            return
        if answer.server is None:
            return
        queue_ns, decode_ns, compute_ns = answer.server
        if done.coding == ZSTD:
            self._codec.observe(done.split, answer.raw_bytes, answer.sent_bytes, answer.encode_ns, decode_ns)
        self._chooser.observe(
            answer.arrived_ns,
            done.split,
            answer.sent_bytes,
            done.edge_ns + answer.encode_ns + answer.serialise_ns,
            answer.round_trip_ns - sum(answer.server),
            queue_ns,
            decode_ns + compute_ns,
        )

    def _settle_alone(self, done: Answered) -> None:
        if done.failure is None or self._splits[done.split].is_local:
            self._local_ns = done.edge_ns if self._splits[done.split].is_local else self._local_ns
            self._chooser.local(done.split, done.edge_ns)
        elif done.failure == "timeout":
            waited_ns = done.total_ns - done.edge_ns - done.local_ns
            self._chooser.failed(perf_counter_ns(), self._splits[done.split].payload_bytes, waited_ns)

    def _answer(self, begun: Begun, task: str, scores: Optional[List[float]], by: str) -> None:
        given = begun.tasks[task] = TaskAnswer(scores, by, perf_counter_ns() - begun.half.start_ns)
        if self._on_task is not None:
            self._on_task(begun.number, task, given)

    def _exit(self, begun: Begun, only_sure: bool) -> None:
        """Has the early exits answer their tasks."""
        half, rules = begun.half, self._manners.rules
        for exit_ in self._exits[half.split.id]:
            rule = None if rules is None else rules.best(half.split.id, exit_.task)
            if exit_.task in begun.tasks or (only_sure and (rule is None or rule.output != exit_.output)):
                continue
            scores = half.tensors[exit_.output]
            if not only_sure or (rule is not None and sure(scores, rule)):
                self._answer(begun, exit_.task, scores[0].tolist(), "exit")

    def _coding(self, split: Split) -> str:
        coding = self._manners.coding
        if coding == JPEG:
            return JPEG if split.is_remote else PLAIN
        if coding != AUTO:
            return coding
        if split.is_local or self._watch is None or not self._watch.available or not self._pipeline.can(ZSTD):
            return PLAIN
        return ZSTD if self._codec.compress(split.id, self._chooser.link.rate_bps) else PLAIN

    def _reserve_ns(self) -> int:
        if self._manners.fallback != LOCAL or self._local is None:
            return 0
        return round(_RESERVE * (self._chooser.predicted_ns(self._local.id) or self._local_ns))

    def _ask(self, begun: Begun, asked: Tuple[str, ...]) -> Answer:
        watch = self._watch
        if watch is None:
            raise RuntimeError("a split that needs a server was begun without one")
        if not watch.available:
            raise LinkError(watch.reason or "unreachable", "the server is away")
        try:
            try:
                answer = self._pipeline.ask(begun.half, asked, begun.coding, self._time_left_s(begun))
            except LinkError as error:
                if error.reason not in _AGAIN:
                    raise
                answer = self._pipeline.ask(begun.half, asked, begun.coding, self._time_left_s(begun))
        except LinkError as error:
            if error.reason == "timeout" and begun.patience_ns is not None:
                watch.doubted()
            elif error.reason not in (*_AGAIN, "late"):
                watch.lost(error.reason)
            raise
        watch.answered()
        for task in asked:
            self._answer(begun, task, answer.outputs[task][0].tolist(), "server")
        return answer

    def _time_left_s(self, begun: Begun) -> Optional[float]:
        """What the server may take, so that the fallback still meets the deadline; ``None`` for no limit of ours.

        Raises:
            LinkError: nothing is left (``late``).
        """
        limits = []
        if self._manners.deadline_s is not None:
            gone_ns = perf_counter_ns() - begun.half.start_ns
            limits.append(self._manners.deadline_s - (gone_ns + begun.reserve_ns) / 1e9)
        if begun.patience_ns is not None:
            limits.append(begun.patience_ns / 1e9)
        if not limits:
            return None
        left_s = min(limits)
        if left_s <= 0:
            raise LinkError("late", "the deadline leaves the server no time")
        return left_s

    def _fall_back(self, begun: Begun) -> int:
        """Answers what is left without the server, as configured; returns what the local model took, in ns."""
        local_ns = 0
        if self._manners.fallback == LOCAL and self._local is not None:
            with self._engine_free:
                half = self._pipeline.whole(begun.half, self._local)
            local_ns = half.edge_ns
            for task, scores in local_outputs(half).items():
                if task not in begun.tasks:
                    self._answer(begun, task, scores[0].tolist(), "local")
        elif self._manners.fallback == EXIT:
            self._exit(begun, only_sure=False)
        for task in self._tasks:
            if task not in begun.tasks:
                self._answer(begun, task, None, "unavailable")
        return local_ns
