"""Answers as lines of JSON, to standard output or to a file."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, List, Optional, Tuple, Type

from runtime_edge.loop.session import Answered, TaskAnswer
from runtime_edge.loop.sources import Frame
from runtime_edge.policy.link_estimate import LinkEstimate
from splitboard.contract.answers import BEGINNING, AnsweredImage, AnsweredTask, RunStart, RunSums, TaskOutput
from splitboard.contract.bundle import Bundle, Task
from splitboard.contract.decode import to_json
from splitboard.contract.errors import UserError
from splitboard.contract.folder import check_file


def softmax(logits: List[float]) -> Tuple[float, ...]:
    """Probabilities; of scores that are not finite, not numbers."""
    highest = max(logits)
    powers = [math.exp(min(value - highest, 0.0)) if math.isfinite(highest) else math.nan for value in logits]
    total = sum(powers)
    return tuple(power / total for power in powers)


def task_output(task: Task, answer: TaskAnswer) -> TaskOutput:
    """A task's answer with its label."""
    if answer.scores is None:
        return TaskOutput(None, None, answer.by, answer.after_ns)
    best = max(range(len(answer.scores)), key=answer.scores.__getitem__)
    return TaskOutput(task.labels[best], softmax(answer.scores), answer.by, answer.after_ns)


def answered_image(bundle: Bundle, frame: Frame, done: Answered, link: LinkEstimate) -> AnsweredImage:
    """One image's line."""
    answer = done.answer
    timing = None if answer is None else answer.server
    return AnsweredImage(
        number=done.number,
        sample=frame.name,
        split=done.split,
        reason=done.reason,
        outputs={task.name: task_output(task, done.tasks[task.name]) for task in bundle.tasks},
        total_ns=done.total_ns,
        read_ns=frame.read_ns,
        edge_ns=done.edge_ns,
        encode_ns=None if answer is None else answer.encode_ns,
        round_trip_ns=None if answer is None else answer.round_trip_ns,
        queue_ns=None if timing is None else timing.queue_ns,
        server_ns=None if timing is None else timing.decode_ns + timing.compute_ns,
        sent_bytes=None if answer is None else answer.sent_bytes,
        coding=None if answer is None else done.coding,
        failure=done.failure,
        rate_bps=link.rate_bps,
        rtt_ns=link.rtt_ns,
    )


class AnswerFile:
    """A file of answers: whole lines only, whatever happens.

    Args:
        path: to write; one from before is replaced.

    Raises:
        UserError: something else is there, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        check_file(path, BEGINNING)
        self._path = path
        self._full = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise UserError(f'cannot write "{path}": {error.strerror}', ["--out ANOTHER FILE"]) from error

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._file.close()

    def start(self, start: RunStart) -> None:
        """The first line."""
        self._write(to_json(start))

    def image(self, image: AnsweredImage) -> None:
        """One image's line, in the file when this returns."""
        self._write(to_json(image))

    def sums(self, sums: RunSums) -> None:
        """The last line."""
        self._write(to_json(sums))

    def _write(self, line: str) -> None:
        """One line; what of it was written before an error is taken back.

        Raises:
            UserError: the disk is full, or the file cannot be written for another reason.
        """
        if self._full:
            return  # whoever wrote the line that failed has been told
        start, data = self._file.tell(), memoryview((line + "\n").encode("utf-8"))
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._full = True
            os.ftruncate(self._file.fileno(), start)
            raise UserError(
                f'cannot go on writing "{self._path}": {error.strerror}; it holds every answer until now',
                ["make room, or --out to another disk"],
            ) from error


class AnswerPrinter:
    """Answers on standard output, each at once."""

    def image(self, image: AnsweredImage) -> None:
        """One image's line."""
        _say(to_json(image))


class TaskPrinter:
    """The answers of single tasks on standard output, each as soon as it is there.

    Args:
        bundle: whose tasks they are.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._tasks = {task.name: task for task in bundle.tasks}

    def task(self, number: int, task: str, answer: TaskAnswer) -> None:
        """One task's line."""
        _say(to_json(AnsweredTask(number, task, task_output(self._tasks[task], answer))))

    def image(self, image: AnsweredImage) -> None:
        """All of the image's answers have been told."""


def _say(line: str) -> None:
    # One write: two threads answer where edge halves overlap.
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
