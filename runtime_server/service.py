"""What stands behind every front of the server: the models, a bounded queue, and the threads that compute.

A front turns bytes into calls of `Service.infer` (or of `Service.submit`, where a callback is cheaper than a coroutine)
and answers into bytes. Everything that costs time happens in a compute thread when the request's turn comes: its bytes
are checked, its deadline is looked at, and only then is it computed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime_server.models import Model
from runtime_server.statistics import ModelStatistics, Snapshot
from splitboard.contract.interface import Reason, WireError
from splitboard.contract.wire import Request, ServerTiming

VERSION = "1"
"""The only version that a model has."""

NO_MODEL = ""
"""Refusals that name no model of ours are counted under this name."""

SHORT_NS = 500_000
"""A request that usually takes less than this may be computed in the thread that it arrived in, if it is the only one:
two changes of thread would cost as much."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """A request that was computed.

    Attributes:
        request: what was asked.
        outputs: by name, float32 ``[1, classes]``, those that were asked for.
        timing: where the server's time went.
    """

    request: Request
    outputs: dict[str, NDArray[np.float32]]
    timing: ServerTiming


@dataclass(eq=False)
class Ticket:
    """A request in the queue.

    Attributes:
        model: that is asked.
        read: checks the request's bytes and makes it; raises `WireError`.
        arrived_ns: `time.perf_counter_ns` when its last byte had come: queue time counts from here.
        began_ns: when its first byte had come: the request's timeout counts from here.
        done: called once, in a compute thread, with the answer or the refusal.
    """

    model: Model
    read: Callable[[], Request]
    arrived_ns: int
    began_ns: int
    done: Callable[[Answer | WireError], None]


class Service:
    """Serves models to any number of fronts; every method may be called from any thread.

    Args:
        models: by served name.
        workers: requests (or batches) that are computed at the same time.
        queue: requests that may wait for a worker; more are refused, so that waiting time and memory stay bounded.
        max_batch: requests of one model that are computed in one run where they wait already; never waits for more.
    """

    def __init__(self, models: Mapping[str, Model], workers: int = 1, queue: int = 64, max_batch: int = 1) -> None:
        self.models = models
        self.queue_limit = queue
        self._max_batch = max_batch
        self._statistics = {name: ModelStatistics() for name in (*models, NO_MODEL)}
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._n_busy = 0  # workers that compute
        self._open = True
        self._closed = False
        names = [f"compute-{number}" for number in range(workers)]
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    @property
    def ready(self) -> bool:
        """Whether new requests are taken."""
        return self._open

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is computed."""
        return not self._waiting and self._n_busy == 0

    @property
    def n_waiting(self) -> int:
        """Requests that wait for a worker."""
        return len(self._waiting)

    def model(self, name: str, version: str = "") -> Model:
        """The model of this name.

        Args:
            name: as served.
            version: empty for whichever there is.

        Raises:
            WireError: there is none.
        """
        found = self.models.get(name)
        if found is None or version not in ("", VERSION):
            asked = json.dumps(name[:80]) + (f" in version {json.dumps(version[:20])}" if version else "")
            raise WireError(Reason.NOT_FOUND, f"there is no model {asked}; served are: {', '.join(self.models)}")
        return found

    def statistics(self, name: str) -> Snapshot:
        """What the model of this name has done; `NO_MODEL` for what named none."""
        return self._statistics[name].read()

    def refused(self, error: WireError, model: str = NO_MODEL, duration_ns: int = 0) -> None:
        """Counts a refusal. A front calls it once for every request that it answers with an error.

        Args:
            error: what it answers.
            model: the served name that was asked, where there is such a model.
            duration_ns: since the request arrived.
        """
        self._statistics[model].failed(error.reason.word, duration_ns)

    def require_open(self) -> None:
        """Asks whether a request may begin; one that has begun is finished even if draining starts meanwhile.

        Raises:
            WireError: the server is draining.
        """
        if not self._open:
            raise WireError(Reason.DRAINING, "the server is about to end and takes no new requests")

    async def infer(self, model: Model, request: Request, arrived_ns: int) -> Answer:
        """Waits for the request's turn and its answer. A caller that is cancelled while it waits leaves the queue.

        Args:
            model: from `model`.
            request: that has been decoded.
            arrived_ns: `time.perf_counter_ns` when it had arrived.

        Raises:
            WireError: overloaded, expired, or the graph failed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer | WireError] = loop.create_future()
        done = partial(_call_in, loop, _settle, future)
        ticket = Ticket(model, lambda: request, arrived_ns, arrived_ns, done)
        self.submit(ticket, loop.call_soon)
        try:
            result = await future
        except asyncio.CancelledError:
            self.withdraw(ticket)
            raise
        if isinstance(result, WireError):
            raise result
        return result

    def submit(self, ticket: Ticket, soon: Callable[[Callable[[], None]], object]) -> None:
        """Puts a request into the queue.

        Args:
            ticket: the request.
            soon: calls a function in this thread when whatever has arrived together with this request is submitted too
                (a loop's ``call_soon``). A request that is short (`SHORT_NS`) and still alone then is computed there.

        Raises:
            WireError: overloaded.
        """
        usual_ns = self._statistics[ticket.model.interface.model].usual_ns
        with self._changed:
            if len(self._waiting) >= self.queue_limit:
                raise WireError(Reason.OVERLOADED, f"{self.queue_limit} requests are waiting already")
            self._waiting.append(ticket)
            wait = usual_ns is not None and usual_ns < SHORT_NS and self._alone
            if not wait:
                self._changed.notify()
        if wait:
            soon(self._compute_here)

    @property
    def _alone(self) -> bool:
        return len(self._waiting) == 1 and self._n_busy == 0

    def _compute_here(self) -> None:
        """Computes a request that is alone; else it is the workers' as all others are."""
        with self._changed:
            if not self._alone:
                self._changed.notify_all()
                return
            ticket = self._waiting.popleft()
        self._serve([ticket])

    def withdraw(self, ticket: Ticket) -> None:
        """Takes a request out of the queue, if its turn has not come; nobody is told."""
        with self._changed:
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def drain(self) -> None:
        """From now on `require_open` refuses."""
        self._open = False

    def close(self) -> None:
        """Computes what still waits, then ends the threads."""
        self.drain()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closed:
                        return
                    self._changed.wait()
                batch = self._take()
                self._n_busy += 1
            self._serve(batch)
            with self._changed:
                self._n_busy -= 1

    def _take(self) -> list[Ticket]:
        """The first in the queue, and those behind it that can be computed together with it."""
        first = self._waiting.popleft()
        more = min(self._max_batch, first.model.max_batch) - 1
        alike = [ticket for ticket in self._waiting if ticket.model is first.model][:more] if more else []
        for ticket in alike:
            self._waiting.remove(ticket)
        return [first, *alike]

    def _serve(self, batch: list[Ticket]) -> None:
        """Answers every ticket, whatever happens."""
        decoded = [one for one in map(_decode, batch) if one is not None]
        if not decoded:
            return
        model = batch[0].model
        start_ns = time.perf_counter_ns()
        try:
            results = model.run([one.request for one in decoded])
        except Exception as error:  # whatever a graph may raise, whoever asked is told and the thread lives on
            _fail([one.ticket for one in decoded], error)
            return
        compute_ns = time.perf_counter_ns() - start_ns
        timings = [ServerTiming(one.queue_ns, one.decode_ns, compute_ns) for one in decoded]
        self._statistics[model.interface.model].ran(timings)
        for one, outputs, timing in zip(decoded, results, timings, strict=True):
            one.ticket.done(Answer(one.request, outputs, timing))


class _Decoded(NamedTuple):
    ticket: Ticket
    request: Request
    queue_ns: int
    decode_ns: int


def _decode(ticket: Ticket) -> _Decoded | None:
    """The ticket's request; ``None`` where it was refused."""
    turn_ns = time.perf_counter_ns()
    try:
        request = ticket.model.prepared(_unless_expired(ticket, ticket.read()))
    except WireError as error:
        ticket.done(error)
        return None
    except Exception as error:  # a bug of ours must not end the thread
        _fail([ticket], error)
        return None
    return _Decoded(ticket, request, turn_ns - ticket.arrived_ns, time.perf_counter_ns() - turn_ns)


def _unless_expired(ticket: Ticket, request: Request) -> Request:
    waited_us = (time.perf_counter_ns() - ticket.began_ns) // 1000
    if request.timeout_us is not None and waited_us > request.timeout_us:
        raise WireError(
            Reason.EXPIRED, f"its timeout of {request.timeout_us} us passed before its turn came, after {waited_us} us"
        )
    return request


def _fail(tickets: Iterable[Ticket], error: Exception) -> None:
    """Says that it was not the requests' fault."""
    for ticket in tickets:
        model = ticket.model.interface.model
        _LOG.error("a request to %s failed", model, exc_info=error)
        ticket.done(WireError(Reason.INTERNAL, f"{model} failed with {type(error).__name__}"))


def _settle(future: asyncio.Future[Answer | WireError], result: Answer | WireError) -> None:
    if not future.done():
        future.set_result(result)


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> None:
    """`call_soon_threadsafe`; a loop that has ended meanwhile has nobody left to be told."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        if not loop.is_closed():
            raise
