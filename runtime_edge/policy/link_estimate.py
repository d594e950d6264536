"""How fast the link is, from the requests that cross it anyway and from small health probes.

A request's time on the network is its round trip less what the server says it took. A probe's is the delay alone. What
a request needs beyond a probe is the time of its bytes, and bytes over that time is the rate. No bulk data is sent to
find it out. Pure: times come in as arguments, in ns of any one steady clock.
"""

from __future__ import annotations

from collections import deque
from typing import Deque, NamedTuple, Optional

N_TRANSFERS = 5
"""So many past transfers are held."""

HALF_NS = 5e9
"""So much time halves a transfer's weight."""

PROBE_BYTES = 1_000
"""A request of fewer bytes tells the delay, not the rate."""

SURPRISE = 2.0
"""A transfer that takes so many times longer or shorter than predicted starts the estimate anew."""

N_PROBES = 8
PROBE_LIFE_NS = 10_000_000_000
JITTER_FLOOR_NS = 200_000.0
_LEAST_NS = 1_000.0


class _Probe(NamedTuple):
    at_ns: int
    rtt_ns: int


class _Transfer(NamedTuple):
    """Bytes, and how long they took beyond the round trip of a probe."""

    at_ns: int
    n_bytes: int
    ns: float


class _Evidence:
    """The last transfers over a link that is thought to have stayed the same."""

    def __init__(self, first: _Transfer) -> None:
        self.transfers: Deque[_Transfer] = deque([first], maxlen=N_TRANSFERS)

    @property
    def ns_per_byte(self) -> float:
        """The median, each transfer weighted by its bytes and its age; the lesser of two middle ones."""
        newest_ns = self.transfers[-1].at_ns
        weighted = sorted(
            (one.ns / one.n_bytes, one.n_bytes * 0.5 ** ((newest_ns - one.at_ns) / HALF_NS)) for one in self.transfers
        )
        half, passed = sum(weight for _, weight in weighted) / 2, 0.0
        for value, weight in weighted:
            passed += weight
            if passed >= half:
                return value
        return weighted[-1][0]


class LinkEstimate:
    """The round trip and the rate of the link to one server.

    The rate is the median over the last `N_TRANSFERS` requests, weighted by their bytes and, with a half-life of
    `HALF_NS`, by their age: the more bytes, the less does it matter what else delayed them. Not the mean, since what
    disturbs a transfer makes it longer and never shorter.

    One that is off by more than `SURPRISE` (and by more than twice the probes' jitter) starts the estimate anew at
    once; if the next one fits the old estimate again, it was a straggler and the old one is taken back. So a sudden
    change is followed from the first request that lies wholly behind it, and a straggler costs one request.
    """

    def __init__(self) -> None:
        self._probes: Deque[_Probe] = deque(maxlen=N_PROBES)
        self._evidence: Optional[_Evidence] = None
        self._doubted: Optional[_Evidence] = None

    def probe(self, now_ns: int, rtt_ns: int) -> None:
        """Takes in the round trip of a health probe, or of any exchange of few bytes.

        The first one ends what was made of requests without any: their delay had been laid to their bytes.

        Args:
            now_ns: when it ended.
            rtt_ns: its duration, less what the server computed.
        """
        if not self._probes:
            self._evidence = self._doubted = None
        while self._probes and now_ns - self._probes[0].at_ns > PROBE_LIFE_NS:
            self._probes.popleft()
        self._probes.append(_Probe(now_ns, rtt_ns))

    def observe(self, now_ns: int, sent_bytes: int, net_ns: int) -> None:
        """Takes in one request.

        Below `PROBE_BYTES` it counts as a probe. One that took less than the probes tells that the delay fell, and
        nothing of the rate.

        Args:
            now_ns: when its reply was there.
            sent_bytes: its whole body, as sent.
            net_ns: its round trip less the server's own time (queue, decode, compute).
        """
        rtt_ns = self.rtt_ns or 0
        if sent_bytes < PROBE_BYTES or net_ns < rtt_ns:
            self.probe(now_ns, net_ns)
            return
        new = _Transfer(now_ns, sent_bytes, max(float(net_ns - rtt_ns), _LEAST_NS))
        if self._evidence is not None and self._fits(self._evidence, new):
            self._evidence.transfers.append(new)
            self._doubted = None
        elif self._doubted is not None and self._fits(self._doubted, new):
            self._doubted.transfers.append(new)
            self._evidence, self._doubted = self._doubted, None
        else:
            self._evidence, self._doubted = _Evidence(new), self._evidence

    def _fits(self, known: _Evidence, new: _Transfer) -> bool:
        expected_ns = known.ns_per_byte * new.n_bytes
        ratio = new.ns / expected_ns
        return 1 / SURPRISE <= ratio <= SURPRISE or abs(new.ns - expected_ns) <= 2 * self.jitter_ns

    @property
    def rtt_ns(self) -> Optional[int]:
        """The least of the last `N_PROBES` probes of the last `PROBE_LIFE_NS`; ``None`` before the first.

        The least, since a probe may have waited behind other traffic but is never early.
        """
        return min(probe.rtt_ns for probe in self._probes) if self._probes else None

    @property
    def jitter_ns(self) -> float:
        """How much a probe differs from the one before it, at least `JITTER_FLOOR_NS`.

        The lower quartile: an outage or a step leaves a few differences that are no jitter.
        """
        rtts = [probe.rtt_ns for probe in self._probes]
        steps = sorted(abs(after - before) for before, after in zip(rtts, rtts[1:]))
        return max(JITTER_FLOOR_NS, float(steps[len(steps) // 4]) if steps else 0.0)

    @property
    def rate_bps(self) -> Optional[float]:
        """Bits per second that the bytes of a request cross at; ``None`` before the first request.

        Without any probe the whole network time is laid to the bytes, and the rate comes out too low.
        """
        return None if self._evidence is None else 8e9 / self._evidence.ns_per_byte

    def transfer_ns(self, n_bytes: int) -> Optional[float]:
        """What a request of so many bytes will spend on the network, both ways; ``None`` before the first request."""
        if self._evidence is None:
            return None
        return (self.rtt_ns or 0) + self._evidence.ns_per_byte * n_bytes
