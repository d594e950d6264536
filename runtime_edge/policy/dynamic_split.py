"""Which split to run next: the one that the present link, server and board make cheapest.

Pure: no sockets and no clock. Times come in as arguments, in ns of any one steady clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Deque, Dict, NamedTuple, Optional, Sequence, Tuple

from runtime_edge.policy.link_estimate import LinkEstimate
from runtime_edge.policy.times import Times

ENOUGH = 0.25
"""A switch needs predicted gains that add up to this share of a request's cost over decisions in a row."""

SLACK = 0.01
"""What is gained by no more than this share is not worth a switch."""

DWELL_NS = 2_000_000_000
"""A split is kept at least so long, unless it is far worse than another."""

FAR = 0.5
"""Far worse: another split costs less than this share."""

EXPLORE_SHARE = 0.02
"""Share of the time spent locally that a request sent only to see how the link is may cost."""

LEAST_SHARE = 0.006
"""The share halves with every one after which no remote split is taken, down to this."""

EXPLORE_GAP_NS = 1e9
"""So much time is spent locally before the next, however little it would cost, unless the probes bode well."""

HOPEFUL_SHARE = 0.2
"""The share where probes come back after a failure; where their round trip fell, as much more as the share is left."""

FALL = 0.05
"""A round trip that is shorter by this share than the last `N_RTTS` before it fell."""

N_RTTS = 3

MOST_TRIES = 3
"""So many requests without a rate to see (too few bytes, or a link too fast to tell) and bytes count as free."""

_QUEUE_WEIGHT = 0.5
_SCATTER_WEIGHT = 0.1


@dataclass(frozen=True)
class SplitCost:
    """What is known of a split before its first request.

    Attributes:
        split: id.
        edge_ns: time on the board: preparing, the edge half, encoding.
        payload_bytes: of a request before any codec; 0 for local only.
        server_ns: the server's own time without queueing. Right proportions between the splits are enough: replies
            set the scale.
        edge_j: energy of one edge half; ``None`` where it was not measured.
    """

    split: str
    edge_ns: float
    payload_bytes: int
    server_ns: float
    edge_j: Optional[float] = None

    @property
    def is_local(self) -> bool:
        """Whether it needs no server."""
        return self.payload_bytes == 0


@dataclass(frozen=True)
class Objective:
    """What is to be small: ``latency * seconds + energy * joules``, among the splits that meet the deadline.

    Attributes:
        latency: weight of a second.
        energy: weight of a joule of the board.
        deadline_ns: of one inference; ``None`` for none. Where no split is predicted to meet it, the fastest is taken.
        send_w: power that the board draws above idle while bytes are on their way.
        wait_w: power that it draws above idle while it waits for the rest of the reply.
    """

    latency: float = 1.0
    energy: float = 0.0
    deadline_ns: Optional[int] = None
    send_w: float = 0.0
    wait_w: float = 0.0


class Decision(NamedTuple):
    """What to run.

    Attributes:
        split: id.
        predicted_ns: end to end; ``None`` for a split that is tried since the link is not known yet.
        patience_ns: how long to wait for the reply, from when the request is sent, before the local split answers
            instead: until waiting has cost as much beyond what was predicted as computing locally would, or as was
            predicted; and so that a local answer still meets the deadline. ``None`` for a local split, where there is
            none, and where nothing is predicted.
        reason: in words.
    """

    split: str
    predicted_ns: Optional[int]
    patience_ns: Optional[int]
    reason: str


class _Option(NamedTuple):
    """A split as predicted now."""

    split: str
    wait_ns: float
    ns: float
    cost: float
    late: bool


class DynamicSplit:
    """Chooses a split per request and learns from what it then cost.

    *Hysteresis.* Another split must have been predicted cheaper on decisions in a row, until the relative gains
    (each less `SLACK`) add up to `ENOUGH`, or to twice the scatter of the predictions where that is more: 10 % on
    three decisions, 30 % on one. Then it is switched to, at the earliest `DWELL_NS` after the last switch. There is no
    dwelling on a split that is predicted to miss the deadline while another meets it, or that costs twice as much.

    *Exploring.* While a local split runs, nothing is learnt of the link. Now and then one request is sent, by the
    remote split that is cheapest as far as is known: when its predicted loss is at most a share of the time spent since
    the last one. The share is `EXPLORE_SHARE` at first, halves with every one in vain, down to `LEAST_SHARE`,
    and is ten times as much where the probes' round trip fell. A server that was relied on and came back is asked at
    once. None is sent where the local split would
    be the cheapest even on a link that takes no longer for a request than for a probe.

    Args:
        costs: the splits to choose among, each once.
        objective: what is to be small.

    Raises:
        ValueError: no splits, one of them twice, or energy counts and is not known for all.
    """

    def __init__(self, costs: Sequence[SplitCost], objective: Objective) -> None:
        self._costs: Dict[str, SplitCost] = {cost.split: cost for cost in costs}
        if not costs or len(self._costs) != len(costs):
            raise ValueError("splits to choose among must be there, each once")
        if objective.energy > 0 and any(cost.edge_j is None for cost in costs):
            raise ValueError("energy counts, and is not known for every split")
        self._objective = objective
        self.link = LinkEstimate()
        self._edge = Times({cost.split: cost.edge_ns for cost in costs})
        self._server = Times({cost.split: cost.server_ns for cost in costs})
        self._sent_share = {cost.split: 1.0 for cost in costs}
        self._queue_ns = 0.0
        self._scatter = 0.0
        self._current: Optional[str] = None
        self._since_ns = 0
        self._gained = 0.0
        self._had_server = False
        self._relied = False
        self._n_tries = 0
        self._curiosity = _Curiosity()

    def choose(self, now_ns: int, server: bool) -> Optional[Decision]:
        """The split to run next.

        Args:
            now_ns: the time.
            server: whether there is one to ask; without it only local splits are eligible.

        Returns:
            ``None`` where no split is eligible: there is no server and no local split.
        """
        if not server:
            if self._had_server:
                on_remote = self._current is not None and not self._costs[self._current].is_local
                self._relied = on_remote or self._curiosity.failures > 0
            self._had_server = False
            return self._alone(now_ns)
        returned, self._had_server = not self._had_server, True
        if self.link.rate_bps is None and self._n_tries < MOST_TRIES and not all(map(_is_local, self._costs.values())):
            return self._first_try()
        options = sorted((self._predict(cost) for cost in self._costs.values()), key=_rank)
        best, by_split = options[0], {option.split: option for option in options}
        current = by_split.get(self._current or "")
        if returned and self._relied:
            self._curiosity.rouse()
        if current is None or returned:
            return self._switch(now_ns, best, "cheapest as predicted")
        why = self._why_switch(now_ns, current, best)
        if why is not None:
            return self._switch(now_ns, best, why)
        if self._costs[current.split].is_local:
            remote = next((option for option in options if not self._costs[option.split].is_local), None)
            asks = remote is not None and self._curiosity.asks(self._loss_ns(remote, current))
            if remote is not None and asks and self._could_win(current):
                return self._decision(remote, "tried to see how the link is now")
        return self._decision(current, "kept")

    def observe(
        self, now_ns: int, split: str, sent_bytes: int, edge_ns: int, net_ns: int, queue_ns: int, server_ns: int
    ) -> None:
        """Takes in a request that was answered.

        Args:
            now_ns: when the reply was there.
            split: id.
            sent_bytes: the request's body, as sent.
            edge_ns: time on the board: preparing, the edge half, encoding.
            net_ns: round trip less what the server says it took.
            queue_ns: the server's queue.
            server_ns: the server's decoding and computing.
        """
        expected_ns = self.link.transfer_ns(sent_bytes)
        if expected_ns is not None:
            off = min(abs(net_ns - expected_ns) / (edge_ns + expected_ns + queue_ns + server_ns), 1.0)
            self._scatter += _SCATTER_WEIGHT * (off - self._scatter)
        self.link.observe(now_ns, sent_bytes, net_ns)
        self._edge.observe(split, edge_ns)
        self._server.observe(split, server_ns)
        self._sent_share[split] += 0.2 * (sent_bytes / self._costs[split].payload_bytes - self._sent_share[split])
        self._queue_ns += _QUEUE_WEIGHT * (queue_ns - self._queue_ns)
        self._curiosity.satisfied()

    def failed(self, now_ns: int, sent_bytes: int, waited_ns: int) -> None:
        """Takes in a request that was given up without an answer: the link is at least as slow as that.

        Not for a refusal, which tells nothing of the link.

        Args:
            now_ns: when it was given up.
            sent_bytes: its body.
            waited_ns: since it was sent.
        """
        expected_ns = self.link.transfer_ns(sent_bytes)
        if expected_ns is None or waited_ns > expected_ns:
            self.link.observe(now_ns, sent_bytes, waited_ns)
        self._curiosity.disappointed()

    def local(self, split: str, edge_ns: int) -> None:
        """Takes in an inference that needed no server.

        Args:
            split: id.
            edge_ns: its time.
        """
        if split in self._costs:  # else it stands in and is none to choose
            self._edge.observe(split, edge_ns)
        self._curiosity.spent(edge_ns)

    def probe(self, now_ns: int, rtt_ns: int) -> None:
        """Takes in the round trip of a health probe."""
        self.link.probe(now_ns, rtt_ns)
        self._curiosity.heard(rtt_ns, self.link.jitter_ns)

    def predicted_ns(self, split: str) -> Optional[int]:
        """End to end time of a split now; ``None`` where the link is needed and not known yet, or it is no choice."""
        cost = self._costs.get(split)
        if cost is None or (not cost.is_local and self.link.rate_bps is None):
            return None
        return round(self._predict(cost).ns)

    def _predict(self, cost: SplitCost) -> _Option:
        """Where requests have not told a rate, bytes are taken to cost nothing."""
        goal, edge_ns, net_ns, there_ns, bytes_ns = self._objective, self._edge[cost.split], 0.0, 0.0, 0.0
        if not cost.is_local:
            rtt_ns = float(self.link.rtt_ns or 0)
            net_ns = self.link.transfer_ns(round(cost.payload_bytes * self._sent_share[cost.split])) or rtt_ns
            there_ns = self._server[cost.split] + self._queue_ns
            bytes_ns = net_ns - rtt_ns
        ns = edge_ns + net_ns + there_ns
        joules = (cost.edge_j or 0.0) + (goal.send_w * bytes_ns + goal.wait_w * (net_ns - bytes_ns + there_ns)) / 1e9
        late = goal.deadline_ns is not None and ns > goal.deadline_ns
        return _Option(cost.split, net_ns + there_ns, ns, goal.latency * ns / 1e9 + goal.energy * joules, late)

    def _why_switch(self, now_ns: int, current: _Option, best: _Option) -> Optional[str]:
        """Why to go from one to the other now; ``None`` to stay."""
        if current.late and not best.late:
            return "the one before would miss the deadline"
        was, will = (current.ns, best.ns) if current.late else (current.cost, best.cost)
        gain = 1 - will / was if was > 0 else 0.0
        if gain > FAR:
            return f"predicted {1 / (1 - gain):.1f} times cheaper"
        enough = max(ENOUGH, 2 * self._scatter)
        self._gained = min(max(0.0, self._gained + gain - SLACK), enough)
        if gain > SLACK and self._gained == enough and now_ns - self._since_ns >= DWELL_NS:
            return f"predicted {gain:.0%} cheaper, and for long enough"
        return None

    def _switch(self, now_ns: int, to: _Option, reason: str) -> Decision:
        if not self._costs[to.split].is_local:
            self._curiosity.rewarded()
        if to.split != self._current:
            self._current, self._since_ns, self._gained = to.split, now_ns, 0.0
        return self._decision(to, reason)

    def _alone(self, now_ns: int) -> Optional[Decision]:
        options = [self._predict(cost) for cost in self._costs.values() if cost.is_local]
        return self._switch(now_ns, min(options, key=_rank), "there is no server") if options else None

    def _first_try(self) -> Decision:
        self._n_tries += 1
        remote = [cost for cost in self._costs.values() if not cost.is_local]
        smallest = min(remote, key=lambda cost: cost.payload_bytes)
        return Decision(
            smallest.split, None, None, "tried first: its request is the smallest, and the link is not known"
        )

    def _decision(self, option: _Option, reason: str) -> Decision:
        return Decision(option.split, round(option.ns), self._patience_ns(option), reason)

    def _patience_ns(self, option: _Option) -> Optional[int]:
        alone = [self._edge[cost.split] for cost in self._costs.values() if cost.is_local]
        if not alone or self._costs[option.split].is_local:
            return None
        longest_ns = option.wait_ns + max(min(alone), option.wait_ns)
        if self._objective.deadline_ns is not None:
            left_ns = self._objective.deadline_ns - self._edge[option.split] - min(alone)
            longest_ns = max(min(longest_ns, left_ns), option.wait_ns)
        return round(longest_ns)

    def _could_win(self, current: _Option) -> bool:
        """Whether a remote split would be worth a switch were bytes free and the server as fast as it ever was."""
        goal = self._objective
        for cost in self._costs.values():
            wait_ns = (self.link.rtt_ns or 0) + self._server.least(cost.split)
            joules = (cost.edge_j or 0.0) + goal.wait_w * wait_ns / 1e9
            least = goal.latency * (self._edge[cost.split] + wait_ns) / 1e9 + goal.energy * joules
            if not cost.is_local and (current.late or least < (1 - SLACK) * current.cost):
                return True
        return False

    def _loss_ns(self, remote: _Option, current: _Option) -> float:
        """What trying the remote split would cost; where it is given up at the deadline, the local one follows."""
        deadline_ns = self._objective.deadline_ns
        longest_ns = remote.ns if deadline_ns is None else min(remote.ns, deadline_ns + current.ns)
        return max(longest_ns - current.ns, 0.0)


class _Curiosity:
    """When to send a request only to see how the link is.

    Attributes:
        failures: requests in a row that were given up.
    """

    def __init__(self) -> None:
        self._spent_ns = 0.0
        self._share = EXPLORE_SHARE
        self._rtts_ns: Deque[int] = deque(maxlen=N_RTTS)
        self._highest_rtt_ns = 0
        self._fell = False
        self.failures = 0
        self._missing = 0
        self._back = False
        self._urgent = False

    def spent(self, local_ns: float) -> None:
        """So much time went by on a local split."""
        self._spent_ns += local_ns

    def rouse(self) -> None:
        """The server that was relied on is back: the next occasion is taken whatever it costs."""
        self._urgent = True

    def satisfied(self) -> None:
        """A request told what it could. Each in a row that leads to no remote split halves what the next may cost."""
        if self._spent_ns > 0:
            self._share = max(self._share / 2, LEAST_SHARE)
        self._spent_ns, self._highest_rtt_ns = 0.0, min(self._rtts_ns, default=0)
        self._fell = self._back = self._urgent = False
        self.failures = self._missing = 0

    def disappointed(self) -> None:
        """A request was given up. Probes that come back bode well: one at first, four times as many after each more."""
        failures = self.failures + 1
        self.satisfied()
        self.failures, self._missing = failures, 4 ** min(failures - 1, 6)

    def rewarded(self) -> None:
        """A remote split was taken."""
        self._share = EXPLORE_SHARE

    def heard(self, rtt_ns: int, jitter_ns: float) -> None:
        """A probe came back."""
        self._rtts_ns.append(rtt_ns)
        self._highest_rtt_ns = max(self._highest_rtt_ns, min(self._rtts_ns))
        self._fell = self._highest_rtt_ns - rtt_ns > max(FALL * self._highest_rtt_ns, 2 * jitter_ns)
        if self._missing > 0:
            self._missing -= 1
            self._back = self._missing == 0

    def asks(self, loss_ns: float) -> bool:
        """Whether to send one, were that to cost so much."""
        if not self._fell and not self._back and self._spent_ns < EXPLORE_GAP_NS:
            return self._urgent
        return self._urgent or loss_ns <= self._allowed() * self._spent_ns

    def _allowed(self) -> float:
        if self._back:
            return HOPEFUL_SHARE
        return self._share * HOPEFUL_SHARE / EXPLORE_SHARE if self._fell else self._share


def _is_local(cost: SplitCost) -> bool:
    return cost.is_local


def _rank(option: _Option) -> Tuple[bool, float, float]:
    return (option.late, option.ns if option.late else option.cost, option.ns)
