"""A split policy on a simulated link: what every request would take by every split, and who chose how well.

The link is a trace (bytes cross at its rate, whatever changes on the way, then wait its delay), the server and the
board are tables of times with noise. A request that is given up is answered by the local split: a fixed split gives up
after the world's ``give_up_s``, the policy says itself for how long it waits, at most as long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from network.traces import Trace

from runtime_edge.policy.dynamic_split import DynamicSplit, Objective, SplitCost

PERIOD_S = 0.1
"""A request comes so often where nothing else is said; one that finds the board busy waits until it is free."""

GIVE_UP_S = 1.0
"""A request without an answer for so long is answered by the local split, where nothing else is said."""

PROBE_EVERY_S = 0.5
PROBE_BYTES = 250
PROBE_TIMEOUT_S = 1.0

HEAD_BYTES = 700
"""HTTP head and JSON header of a request, and the reply, which crosses the other way in full."""

_PACKET, _SEGMENT = 1500, 1448


@dataclass(frozen=True)
class Taken:
    """What one request would take by one split."""

    edge_s: float
    net_s: float
    server_s: float
    total_s: float
    given_up: bool


class World:
    """What would happen: a trace, costs, and noise that is drawn once per request and so the same for all.

    Args:
        trace: the link.
        costs: true mean times; one of them local.
        n_requests: frames.
        seed: of the noise: 3 % on the board's times, 5 % on the server's (log-normal), 0.3 ms of jitter
            (exponential) on a round trip.
        period_s: a request comes so often.
        give_up_s: a request without an answer for so long is answered by the local split.
    """

    def __init__(
        self,
        trace: Trace,
        costs: Sequence[SplitCost],
        n_requests: int,
        seed: int,
        period_s: float = PERIOD_S,
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        random = np.random.default_rng(seed)
        self.trace = trace
        self.costs = {cost.split: cost for cost in costs}
        self.local = next(cost for cost in costs if cost.is_local)
        self.n_requests = n_requests
        self.period_s = period_s
        self.give_up_s = give_up_s
        self._board = np.exp(0.03 * random.normal(size=n_requests)).tolist()
        self._server = np.exp(0.05 * random.normal(size=n_requests)).tolist()
        self._jitter_s = (0.0003 * random.exponential(size=2 * n_requests)).tolist()

    def crossing_s(self, start_s: float, n_bytes: float) -> float:
        """How long bytes take that begin to be sent then, one way."""
        sent_s = self.trace.sent_by(start_s, n_bytes * _PACKET / _SEGMENT)
        return sent_s - start_s + self.trace.at(sent_s).delay_s

    def take(self, i: int, split: str, start_s: float, patience_s: float) -> Taken:
        """Request ``i`` by this split, begun then; without an answer for so long the local split follows."""
        cost = self.costs[split]
        edge_s = cost.edge_ns / 1e9 * self._board[i]
        if cost.is_local:
            return Taken(edge_s, 0.0, 0.0, edge_s, False)
        server_s = cost.server_ns / 1e9 * self._server[i]
        up_s = self.crossing_s(start_s + edge_s, cost.payload_bytes + HEAD_BYTES)
        down_s = self.crossing_s(start_s + edge_s + up_s + server_s, HEAD_BYTES)
        net_s = up_s + down_s + self._jitter_s[i]
        if net_s + server_s <= patience_s:
            return Taken(edge_s, net_s, server_s, edge_s + net_s + server_s, False)
        return Taken(edge_s, patience_s, 0.0, edge_s + patience_s + self.local.edge_ns / 1e9 * self._board[i], True)

    def probe_s(self, number: int, start_s: float) -> float:
        """The round trip of a health probe."""
        up_s = self.crossing_s(start_s, PROBE_BYTES)
        jitter_s = self._jitter_s[number % len(self._jitter_s)]
        return up_s + self.crossing_s(start_s + up_s, PROBE_BYTES) + jitter_s


@dataclass(frozen=True)
class Run:
    """One pass over a trace."""

    splits: tuple[str, ...]
    latencies_s: tuple[float, ...]

    @property
    def total_s(self) -> float:
        """The sum of all latencies."""
        return sum(self.latencies_s)

    @property
    def n_switches(self) -> int:
        """How often two requests in a row took different splits; one that was sent to see counts twice."""
        return sum(a != b for a, b in zip(self.splits, self.splits[1:], strict=False))


Choice = tuple[str, float]
"""A split, and how long to wait for its reply, in s."""


def run(world: World, choose: Callable[[int, float], Choice], learn: Callable[[str, float, Taken], None]) -> Run:
    """Every request in turn; ``choose`` is asked with its number and the time, ``learn`` told what came of it."""
    free_s, splits, latencies = 0.0, [], []
    for i in range(world.n_requests):
        start_s = max(i * world.period_s, free_s)
        split, patience_s = choose(i, start_s)
        taken = world.take(i, split, start_s, patience_s)
        free_s = start_s + taken.total_s
        learn(split, free_s, taken)
        splits.append(split)
        latencies.append(taken.total_s)
    return Run(tuple(splits), tuple(latencies))


def fixed(world: World, split: str) -> Run:
    """The same split for all requests."""
    return run(world, lambda _i, _start_s: (split, world.give_up_s), lambda _split, _end_s, _taken: None)


def oracle(world: World) -> Run:
    """The split that takes least, for every request, by someone who knows the trace and the noise."""

    def choose(i: int, start_s: float) -> Choice:
        def total_s(split: str) -> float:
            return world.take(i, split, start_s, world.give_up_s).total_s

        return min(world.costs, key=total_s), world.give_up_s

    return run(world, choose, lambda _split, _end_s, _taken: None)


class Dynamic:
    """The policy in this world, with health probes beside it, which find out when the server cannot be reached.

    Args:
        world: what it runs in.
        costs: what it is told of the splits at first.
    """

    def __init__(self, world: World, costs: Sequence[SplitCost]) -> None:
        self.policy = DynamicSplit(costs, Objective(deadline_ns=round(world.give_up_s * 1e9)))
        self._world = world
        self._probes: list[tuple[float, float]] = []
        self._next_probe_s, self._n_probes, self._server = -PROBE_EVERY_S, 0, False

    def choose(self, _i: int, start_s: float) -> Choice:
        """What the policy says, after it heard the probes that have come back by then."""
        while self._next_probe_s <= start_s:
            self._probe(self._next_probe_s)
            self._next_probe_s += PROBE_EVERY_S
        while self._probes and self._probes[0][0] <= start_s:
            end_s, rtt_s = self._probes.pop(0)
            self._server = rtt_s < PROBE_TIMEOUT_S
            if self._server:
                self.policy.probe(round(end_s * 1e9), round(rtt_s * 1e9))
        decision = self.policy.choose(round(start_s * 1e9), self._server)
        if decision is None:
            raise RuntimeError("the world has a local split")
        longest_s = self._world.give_up_s
        patience_s = longest_s if decision.patience_ns is None else decision.patience_ns / 1e9
        return decision.split, min(patience_s, longest_s)

    def _probe(self, start_s: float) -> None:
        rtt_s = min(self._world.probe_s(self._n_probes, start_s), PROBE_TIMEOUT_S)
        self._n_probes += 1
        self._probes.append((start_s + rtt_s, rtt_s))

    def learn(self, split: str, end_s: float, taken: Taken) -> None:
        """Tells the policy what came of its choice."""
        now_ns, n_bytes = round(end_s * 1e9), self._world.costs[split].payload_bytes + HEAD_BYTES
        edge_ns, net_ns, server_ns = (round(s * 1e9) for s in (taken.edge_s, taken.net_s, taken.server_s))
        if self._world.costs[split].is_local:
            self.policy.local(split, edge_ns)
        elif taken.given_up:
            self.policy.failed(now_ns, n_bytes, net_ns)
        else:
            self.policy.observe(now_ns, split, n_bytes, edge_ns, net_ns, 0, server_ns)


def dynamic(world: World, costs: Sequence[SplitCost]) -> Run:
    """The policy's own run."""
    player = Dynamic(world, costs)
    return run(world, player.choose, player.learn)
