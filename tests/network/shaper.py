"""One direction of a link: a queue of bounded size, a rate, a delay, losses. No sockets and no clock."""

from __future__ import annotations

import random
from collections import deque

from network.traces import Trace


class Shaper:
    """Says when each packet comes out.

    Packets wait in a queue, cross one after the other at the trace's rate and then take its delay; none overtakes
    another. All times are computed, not measured, so that being called late delays packets and slows nothing down.

    Args:
        trace: of the link, whose time 0 is ``start_s``.
        start_s: on the caller's clock.
        queue_bytes: that wait behind the packet being sent; what does not fit is dropped.
        seed: of the losses.
    """

    def __init__(self, trace: Trace, start_s: float, queue_bytes: int, seed: int) -> None:
        self._trace, self._start_s = trace, start_s
        self._queue_bytes = queue_bytes
        self._random = random.Random(seed)
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._sending: bytes | None = None
        self._sent_at_s = 0.0
        self._on_the_way: deque[tuple[float, bytes]] = deque()
        self._last_s = 0.0

    def play(self, trace: Trace, now_s: float) -> None:
        """Another trace from now on; the packet that is being sent begins anew."""
        self._advance(now_s)
        self._trace, self._start_s = trace, now_s
        if self._sending is not None:
            self._send(self._sending, now_s)

    def push(self, packet: bytes, now_s: float) -> None:
        """Takes in a packet."""
        self._advance(now_s)
        if self._random.random() < self._trace.at(now_s - self._start_s).loss:
            return
        if self._sending is None:
            self._send(packet, now_s)
        elif self._waiting_bytes + len(packet) <= self._queue_bytes:
            self._waiting.append(packet)
            self._waiting_bytes += len(packet)

    def ready(self, now_s: float) -> list[bytes]:
        """The packets that have come out by now and were not asked for yet."""
        self._advance(now_s)
        out = []
        while self._on_the_way and self._on_the_way[0][0] <= now_s:
            out.append(self._on_the_way.popleft()[1])
        return out

    @property
    def next_s(self) -> float | None:
        """When to ask again; ``None`` while the link is empty."""
        if self._on_the_way:
            return self._on_the_way[0][0]
        return None if self._sending is None else self._sent_at_s

    @property
    def waiting_bytes(self) -> int:
        """In the queue, without the packet that is being sent."""
        return self._waiting_bytes

    def _send(self, packet: bytes, start_s: float) -> None:
        self._sending = packet
        self._sent_at_s = self._start_s + self._trace.sent_by(start_s - self._start_s, len(packet))

    def _advance(self, now_s: float) -> None:
        while self._sending is not None and self._sent_at_s <= now_s:
            sent_s = self._sent_at_s
            arrives_s = sent_s + self._trace.at(sent_s - self._start_s).delay_s
            self._last_s = max(self._last_s, arrives_s)
            self._on_the_way.append((self._last_s, self._sending))
            self._sending = None
            if self._waiting:
                packet = self._waiting.popleft()
                self._waiting_bytes -= len(packet)
                self._send(packet, sent_s)
