"""One client's connection: its bytes to requests, answers to its bytes, with a bound on everything it may take.

A body goes from the socket straight into the memory that its tensors will be views of. Requests that follow one another
without waiting (pipelining) are answered in order, one at a time. Bodies must say their length in advance.
"""

from __future__ import annotations

import asyncio
import enum
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from runtime_server.http_message import CONTINUE, HEAD_END, Head, Response, encode_response, parse_head
from splitboard.contract.interface import Reason, WireError

_READ_BYTES = 1 << 16
_NOTHING = memoryview(b"")


@dataclass(frozen=True)
class Limits:
    """How much a client may take of the server.

    Attributes:
        connections: open at the same time; more are refused.
        head_bytes: of a request's head, and of what is read ahead while a request is answered.
        arriving_bytes: of all bodies that are on their way, together.
        idle_s: between two requests.
        head_s: from a head's first byte to its last; a new connection has the same time.
        body_s: for a body to arrive, plus its length over `slowest_bytes_per_s`.
        slowest_bytes_per_s: at which a body may come.
        write_s: for a client to take its answer.
        linger_s: for a client to notice its refusal and stop sending.
    """

    connections: int = 1 << 14
    head_bytes: int = 1 << 14
    arriving_bytes: int = 1 << 28
    idle_s: float = 75.0
    head_s: float = 10.0
    body_s: float = 10.0
    slowest_bytes_per_s: float = 10_000.0
    write_s: float = 30.0
    linger_s: float = 2.0


Respond = Callable[[Response], None]
Soon = Callable[[Callable[[], None]], object]


class Exchange(Protocol):
    """A request on its way."""

    def finish(self, body: memoryview, respond: Respond, soon: Soon) -> Response | None:
        """Takes the body.

        Args:
            body: whole; its memory is the exchange's to keep.
            respond: where the answer is not returned, to be called with it, once, later, from any thread.
            soon: calls a function in the loop when everything else that has come by now was taken.

        Returns:
            The answer, or ``None`` where it comes later.
        """

    def abandon(self) -> None:
        """The client went away while its answer was awaited."""


class Accepted(Protocol):
    """A head that may come, once or many times."""

    @property
    def max_body_bytes(self) -> int:
        """No body of a valid request is larger."""

    def begin(self, came_ns: int) -> Exchange:
        """A request with this head has begun.

        Args:
            came_ns: `time.perf_counter_ns` when the head had come.

        Raises:
            WireError: not now.
        """


class Application(Protocol):
    """What is served."""

    def accept(self, head: Head) -> Accepted:
        """Looks at a head.

        Raises:
            WireError: requests with it are refused before their body is read.
        """

    def refusal(self, error: WireError, head: Head | None, came_ns: int) -> Response:
        """Counts and answers a request that is refused before it has come as a whole.

        Args:
            error: why.
            head: ``None`` where it could not be read.
            came_ns: when it had come.
        """


@dataclass(eq=False)
class Connections:
    """The connections of one loop, and what they share.

    Attributes:
        application: what is served.
        limits: of every client.
        loop: that they run in.
        buffer: where heads are received. A read and its use are one step of the loop, so one buffer is enough for all.
        open: all of them.
        arriving_bytes: received of all bodies that are on their way.
        draining: every connection ends with its next answer.
        thread: that the loop runs in.
    """

    application: Application
    limits: Limits
    loop: asyncio.AbstractEventLoop
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(_READ_BYTES)))
    open: set[Connection] = field(default_factory=set)
    arriving_bytes: int = 0
    draining: bool = False
    thread: int = field(default_factory=threading.get_ident)

    @property
    def n_busy(self) -> int:
        """Connections with a request that has begun and is not answered, or with an answer that was not taken."""
        return sum(connection.busy for connection in self.open)

    def sweep(self) -> None:
        """Ends every wait that has become too long; to be called about once a second."""
        now_s = self.loop.time()
        for connection in [one for one in self.open if one.expires_s <= now_s]:
            connection.expire()

    def close(self) -> None:
        """Closes all, each once its answer was taken."""
        for connection in list(self.open):
            connection.close()


class _State(enum.Enum):
    HEAD = "a head is awaited"
    BODY = "a body is on its way"
    ANSWER = "the application works on the answer"
    REFUSED = "answered before the request had ended; what still comes is dropped"


class _Usual(NamedTuple):
    """The last head of a connection: most clients send the same again and again."""

    text: bytes
    head: Head
    accepted: Accepted


class _Nobody:
    """The exchange of a connection that has none."""

    def finish(self, body: memoryview, respond: Respond, soon: Soon) -> None:
        """Never called."""

    def abandon(self) -> None:
        """Nothing is given up."""


_NOBODY = _Nobody()


class Connection(asyncio.BufferedProtocol):
    """One client's connection.

    Attributes:
        expires_s: when the present wait has become too long, on the loop's clock.
    """

    _transport: asyncio.Transport

    def __init__(self, shared: Connections) -> None:
        self._shared = shared
        self._limits = shared.limits
        self._state = _State.HEAD
        self._ahead = b""  # has come and was not looked at, or is the beginning of a head
        self._head_began = False
        self._usual: _Usual | None = None
        self._body, self._n_received = _NOTHING, 0
        self._head: Head | None = None
        self._came_ns = 0
        self._exchange: Exchange = _NOBODY
        self._blocked = False  # the client does not take its answer
        self.expires_s = math.inf

    @property
    def busy(self) -> bool:
        """Whether a request has begun and is not answered, or an answer was not taken."""
        return self._state in (_State.BODY, _State.ANSWER) or self._transport.get_write_buffer_size() > 0

    @property
    def awaits_answer(self) -> bool:
        """Whether the application works on an answer."""
        return self._state is _State.ANSWER

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self._transport = transport  # type: ignore[assignment]  # of a stream server it is one
        self._shared.open.add(self)
        self._wait(self._limits.head_s)
        if len(self._shared.open) > self._limits.connections:
            self._refuse(WireError(Reason.OVERLOADED, f"{self._limits.connections} connections are open already"))

    def connection_lost(self, _error: Exception | None) -> None:
        """The client has gone or was closed; one that closes its side while it waits counts as gone."""
        self._shared.open.discard(self)
        self._leave_body()
        self._state = _State.REFUSED
        self._exchange.abandon()

    def pause_writing(self) -> None:
        """The client does not take its answer."""
        self._blocked = True

    def resume_writing(self) -> None:
        """It took it."""
        self._blocked = False
        if self._state is _State.HEAD:
            self._wait(self._limits.idle_s)
            self._go_on()

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Where the next bytes go: those of a body to their place."""
        return self._body[self._n_received :] if self._state is _State.BODY else self._shared.buffer

    def buffer_updated(self, n_bytes: int) -> None:
        """Bytes have come."""
        if self._state is _State.BODY:
            self._body_came(n_bytes)
        elif self._state is _State.HEAD and not self._blocked:
            data = self._shared.buffer[:n_bytes]
            self._consume(memoryview(self._ahead + bytes(data)) if self._ahead else data)
        elif self._state is not _State.REFUSED:
            self._ahead += bytes(self._shared.buffer[:n_bytes])
            if len(self._ahead) >= self._limits.head_bytes:
                self._transport.pause_reading()

    def expire(self) -> None:
        """The present wait has become too long."""
        self.expires_s = math.inf
        if self._blocked or self._state is _State.REFUSED:
            self._transport.abort()
        elif self._state is _State.BODY:
            what = f"of the body's {len(self._body)} bytes only {self._n_received} came in time"
            self._refuse(WireError(Reason.SLOW, what))
        elif self._head_began:
            self._refuse(WireError(Reason.SLOW, f"the head did not come within {self._limits.head_s:g} s"))
        else:
            self._transport.close()

    def close(self) -> None:
        """Closes once what was answered has been taken."""
        self._transport.close()

    def _wait(self, seconds: float) -> None:
        self.expires_s = self._shared.loop.time() + seconds

    def _consume(self, data: memoryview) -> None:
        """Takes as many requests as have come; what is left waits for more of it, or for its turn."""
        self._ahead = b""
        try:
            while data and self._state is _State.HEAD and not self._blocked:
                usual = self._usual
                if usual is None or bytes(data[: len(usual.text)]) != usual.text:
                    start = bytes(data[: self._limits.head_bytes])
                    end = start.find(HEAD_END) + len(HEAD_END)
                    if end < len(HEAD_END):
                        self._await_head(start)
                        break
                    usual = self._accept(start[:end])
                data = self._begin(usual, data[len(usual.text) :])
        except WireError as error:
            self._refuse(error)
            return
        self._ahead = bytes(data)

    def _await_head(self, start: bytes) -> None:
        if not start[:1].isalpha():
            raise WireError(Reason.MALFORMED, "this is no HTTP/1.1 request")
        if len(start) >= self._limits.head_bytes:
            raise WireError(Reason.MALFORMED, f"the head is longer than {self._limits.head_bytes} bytes")
        if not self._head_began:  # the clock runs from the first byte, whatever dribbles in later
            self._head_began = True
            self._wait(self._limits.head_s)

    def _accept(self, text: bytes) -> _Usual:
        """Looks at a head that is not the last one's."""
        self._head, self._came_ns = None, time.perf_counter_ns()
        head = self._head = parse_head(text)
        n_bytes = head.body_bytes
        accepted = self._shared.application.accept(head)
        if n_bytes > accepted.max_body_bytes:
            raise WireError(
                Reason.TOO_LARGE, f"at most {accepted.max_body_bytes} bytes per request are taken, found {n_bytes}"
            )
        self._usual = _Usual(text, head, accepted)
        return self._usual

    def _begin(self, usual: _Usual, data: memoryview) -> memoryview:
        """Takes what is there of a request's body; returns what follows that."""
        head = self._head = usual.head
        self._head_began, self._came_ns = False, time.perf_counter_ns()
        self._exchange = usual.accepted.begin(self._came_ns)
        n_bytes = head.body_bytes
        # Not a bytearray, which would write zeros: memory that nothing is written to costs nothing.
        self._body = np.empty(n_bytes, np.uint8).data
        n_here = self._n_received = min(len(data), n_bytes)
        self._body[:n_here] = data[:n_here]
        if n_here == n_bytes:
            self._finish()
        else:
            if head.waits_for_consent and n_here == 0:
                self._transport.write(CONTINUE)
            self._state = _State.BODY
            self._shared.arriving_bytes += n_here
            self._wait(self._limits.body_s + n_bytes / self._limits.slowest_bytes_per_s)
        return data[n_here:]

    def _body_came(self, n_bytes: int) -> None:
        self._n_received += n_bytes
        self._shared.arriving_bytes += n_bytes
        if self._n_received == len(self._body):
            self._leave_body()
            self._finish()
            self._go_on()
        elif self._shared.arriving_bytes > self._limits.arriving_bytes:
            self._refuse(WireError(Reason.OVERLOADED, "too many requests are on their way already"))

    def _leave_body(self) -> None:
        if self._state is _State.BODY:
            self._shared.arriving_bytes -= self._n_received
            self._state = _State.HEAD

    def _finish(self) -> None:
        """The request is whole: the application answers, now or later."""
        body, self._body = self._body, _NOTHING
        self._state = _State.ANSWER
        self.expires_s = math.inf
        response = self._exchange.finish(body, self._respond_from_any_thread, self._soon)
        if response is not None:
            self._write(response)

    def _soon(self, function: Callable[[], None]) -> None:
        """Calls it when the other connections have been looked at too; where there are none, that is now."""
        if len(self._shared.open) == 1:
            function()
        else:
            self._shared.loop.call_soon(function)

    def _respond_from_any_thread(self, response: Response) -> None:
        if threading.get_ident() == self._shared.thread:
            self._respond(response)
            return
        try:
            self._shared.loop.call_soon_threadsafe(self._respond, response)
        except RuntimeError:  # the loop has ended, and with it the connection
            if not self._shared.loop.is_closed():
                raise

    def _respond(self, response: Response) -> None:
        if self._state is _State.ANSWER:
            self._write(response)
            self._go_on()

    def _go_on(self) -> None:
        """Turns to what came while a request was answered."""
        if self._state is _State.HEAD and not self._blocked:
            self._transport.resume_reading()
            if self._ahead:
                self._consume(memoryview(self._ahead))

    def _write(self, response: Response) -> None:
        head, self._head = self._head, None
        self._exchange = _NOBODY
        self._state = _State.HEAD
        keep_alive = head is not None and head.keep_alive and not self._shared.draining
        self._transport.write(encode_response(response, head.method if head else "", keep_alive=keep_alive))
        if keep_alive:
            self._wait(self._limits.write_s if self._blocked else self._limits.idle_s)
        else:
            self._linger()

    def _refuse(self, error: WireError) -> None:
        """Answers before the request has ended."""
        self._leave_body()
        self._body = _NOTHING
        self._exchange.abandon()
        self._exchange = _NOBODY
        response = self._shared.application.refusal(error, self._head, self._came_ns)
        method = self._head.method if self._head is not None else ""
        self._transport.write(encode_response(response, method, keep_alive=False))
        self._linger()

    def _linger(self) -> None:
        """Ends our side only: to close while the client still sends would reset the connection under its answer."""
        self._state = _State.REFUSED
        self._ahead = b""
        self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._wait(self._limits.linger_s)
        else:
            self._transport.close()
