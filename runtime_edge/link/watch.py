"""Whether the server is there: told by the requests that fail, asked in a thread of its own until it is back."""

from __future__ import annotations

import random
import threading
from collections import deque
from time import perf_counter_ns
from types import TracebackType
from typing import Deque, List, NamedTuple, Optional, Type

from runtime_edge.link.connection import LinkError
from runtime_edge.link.link import Link
from splitboard.contract.interface import Interface

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
PROBE_TIMEOUT_S = 2.0
STEADY_S = 0.5
"""While the server is there it is probed so often: that tells the link's delay, and that it is still there."""


class Probe(NamedTuple):
    """A round trip of a health probe.

    Attributes:
        at_ns: when it was back.
        rtt_ns: how long it took.
    """

    at_ns: int
    rtt_ns: int


class ServerWatch:
    """Keeps the state of one server; a context manager, whose thread runs inside of its block.

    The pauses between probes double from `FIRST_PAUSE_S` to `LONGEST_PAUSE_S`, each drawn from half to one and a half
    of that, so that boards which lost one server together do not come back together. They start anew only when a
    request was answered: a server that is well when probed and refuses what it is asked is asked less and less.

    Args:
        link: of its own, to the same server.
        to: one of the models that will be asked; a server of another bundle is as good as none.
        chance: where the pauses are drawn from.
    """

    def __init__(self, link: Link, to: Interface, chance: Optional[random.Random] = None) -> None:
        self._link = link
        self._to = to
        self._chance = random.Random() if chance is None else chance
        self._changed = threading.Condition()
        self._available = True
        self._reason: Optional[str] = None
        self._pause_s = FIRST_PAUSE_S
        self._ended = False
        self._probes: Deque[Probe] = deque(maxlen=64)
        self._thread = threading.Thread(target=self._watch, name="server-watch", daemon=True)

    def __enter__(self) -> ServerWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        # A probe that is under way ends by its own timeout; nothing waits for it but the interpreter's end.
        self._thread.join(0.2)

    @property
    def available(self) -> bool:
        """Whether the server may be asked now."""
        return self._available

    @property
    def reason(self) -> Optional[str]:
        """Why it may not be; ``None`` where it may."""
        return self._reason

    def lost(self, reason: str) -> None:
        """A request failed.

        Args:
            reason: of the `LinkError`.
        """
        with self._changed:
            self._available, self._reason = False, reason
            self._changed.notify()

    def doubted(self) -> None:
        """A request took longer than anyone cared to wait: the server is probed at once, and asked meanwhile."""
        with self._changed:
            self._changed.notify()

    def answered(self) -> None:
        """A request was answered."""
        self._pause_s = FIRST_PAUSE_S

    def probes(self) -> List[Probe]:
        """The probes since the last call, oldest first."""
        found = []
        while self._probes:
            found.append(self._probes.popleft())
        return found

    def _watch(self) -> None:
        with self._link:
            while not self._ended:
                with self._changed:
                    if self._available:
                        self._changed.wait(STEADY_S)
                        if not self.available:
                            continue  # lost just now: first a pause
                    else:
                        self._sleep(self._pause_s * self._chance.uniform(0.5, 1.5))
                        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
                if not self._ended:
                    self._probe()

    def _sleep(self, seconds: float) -> None:
        """Waits out the whole pause, whatever else is lost meanwhile; holds the lock as a condition's wait does."""
        end_ns = perf_counter_ns() + round(seconds * 1e9)
        while not self._ended and perf_counter_ns() < end_ns:
            self._changed.wait((end_ns - perf_counter_ns()) / 1e9)

    def _probe(self) -> None:
        away = not self._available
        try:
            rtt_ns = self._link.ping(PROBE_TIMEOUT_S)
            if away:
                self._link.check_pair(self._to, PROBE_TIMEOUT_S)
        except LinkError as error:
            with self._changed:
                self._available, self._reason = False, error.reason
            return
        self._probes.append(Probe(perf_counter_ns(), rtt_ns))
        with self._changed:
            if away:
                self._available, self._reason = True, None
