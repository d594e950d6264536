"""The edge loop: every image of a source through a session, one after the other or overlapped."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter_ns
from types import FrameType
from typing import Callable, Deque, Iterable, Iterator, Optional, Tuple

from runtime_edge.loop.session import Answered, Session
from runtime_edge.loop.sources import Frame

Emit = Callable[[Frame, Answered], None]
"""Called once for every image, in their order."""


def run(session: Session, frames: Iterable[Frame], emit: Emit, stop: threading.Event, period_s: float = 0.0) -> None:
    """Answers images one after the other.

    Args:
        session: that answers.
        frames: the images.
        emit: told what became of each.
        stop: when set, no further image is begun.
        period_s: images are begun at most so often; 0 for as fast as can be.
    """
    for frame in _paced(frames, stop, period_s):
        done = session.finish(session.begin(frame.image))
        session.settle(done)
        emit(frame, done)


def run_overlapped(
    session: Session, frames: Iterable[Frame], emit: Emit, stop: threading.Event, period_s: float = 0.0
) -> None:
    """The same, with the next image's edge half computed while the server works on the one before.

    An image waits at most for the one before it. Its latency includes that wait.
    """
    waiting: Deque[Tuple[Frame, Future[Answered]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="finish") as pool:

        def collect() -> None:
            frame, future = waiting.popleft()
            done = future.result()
            session.settle(done)
            emit(frame, done)

        for frame in _paced(frames, stop, period_s):
            waiting.append((frame, pool.submit(session.finish, session.begin(frame.image))))
            if len(waiting) > 1:
                collect()
        while waiting:
            collect()


def _paced(frames: Iterable[Frame], stop: threading.Event, period_s: float) -> Iterator[Frame]:
    due_ns = perf_counter_ns()
    for frame in frames:
        if stop.is_set():
            return
        yield frame
        if period_s > 0:
            due_ns += round(period_s * 1e9)
            left_ns = due_ns - perf_counter_ns()
            if left_ns > 0:
                stop.wait(left_ns / 1e9)
            else:
                due_ns -= left_ns  # what was missed is not made up for


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[threading.Event]:
    """Yields an event that SIGINT and SIGTERM set; a second one of them ends the program at once."""
    stop = threading.Event()

    def first(_number: int, _frame: Optional[FrameType]) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
