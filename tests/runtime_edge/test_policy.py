"""The split policy against arithmetic on links that are known, and against its own promises."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_edge.policy.dynamic_split import DWELL_NS, ENOUGH, DynamicSplit, Objective, SplitCost

MS = 1_000_000
COSTS = (
    SplitCost("s00", 1.0 * MS, 50_000, 10.0 * MS, 0.01),
    SplitCost("s17", 20.0 * MS, 31_000, 6.0 * MS, 0.2),
    SplitCost("s39", 40.0 * MS, 9_000, 2.0 * MS, 0.4),
    SplitCost("s49", 60.0 * MS, 0, 0.0, 0.6),
)
BY_ID = {cost.split: cost for cost in COSTS}
RATES = st.floats(0.2e6, 200e6)
RTTS = st.integers(1 * MS, 60 * MS)


class Board:
    """A board, link and server that take exactly what they are said to; requests and probes in turn."""

    def __init__(self, policy: DynamicSplit, rate_bps: float, rtt_ns: int) -> None:
        self.policy, self.rate_bps, self.rtt_ns = policy, rate_bps, rtt_ns
        self.server_factor, self.queue_ns = 1.0, 0
        self.now_ns = 0
        self.last_reason = ""

    def true_ns(self, split: str) -> float:
        cost = BY_ID[split]
        if cost.is_local:
            return cost.edge_ns
        there_ns = self.queue_ns + self.server_factor * cost.server_ns
        return cost.edge_ns + self.rtt_ns + 8e9 * cost.payload_bytes / self.rate_bps + there_ns

    def best(self) -> str:
        return min(BY_ID, key=self.true_ns)

    def step(self, server: bool = True) -> str:
        """One request; returns the split that was chosen."""
        if server:
            self.policy.probe(self.now_ns, self.rtt_ns)
        decision = self.policy.choose(self.now_ns, server)
        assert decision is not None
        assert decision.reason
        self.last_reason = decision.reason
        cost = BY_ID[decision.split]
        self.now_ns += round(self.true_ns(decision.split))
        if cost.is_local:
            self.policy.local(cost.split, round(cost.edge_ns))
        else:
            net_ns = round(self.rtt_ns + 8e9 * cost.payload_bytes / self.rate_bps)
            there_ns = round(self.server_factor * cost.server_ns)
            now = (self.now_ns, cost.split, cost.payload_bytes)
            self.policy.observe(*now, round(cost.edge_ns), net_ns, self.queue_ns, there_ns)
        return decision.split


def board(rate_bps: float = 10e6, rtt_ns: int = 10 * MS, objective: Objective | None = None) -> Board:
    return Board(DynamicSplit(COSTS, objective or Objective()), rate_bps, rtt_ns)


@given(RATES, RTTS)
def test_on_a_constant_link_the_cheapest_split_is_taken_from_the_second_request_on(
    rate_bps: float, rtt_ns: int
) -> None:
    world = board(rate_bps, rtt_ns)
    world.step()
    assert world.true_ns(world.step()) <= world.true_ns(world.best()) * (1 + 1e-3)


@settings(max_examples=30, deadline=None)
@given(RATES, RTTS)
def test_on_a_constant_link_it_is_never_much_worse_than_the_best_fixed_split(rate_bps: float, rtt_ns: int) -> None:
    world = board(rate_bps, rtt_ns)
    taken_ns = [world.true_ns(world.step()) for _ in range(1000)]
    first_ns = taken_ns.pop(0)  # nothing was known
    assert first_ns == world.true_ns("s39")
    assert sum(taken_ns) <= 1.02 * len(taken_ns) * world.true_ns(world.best())


@given(RATES, RTTS)
def test_predictions_are_what_then_happens(rate_bps: float, rtt_ns: int) -> None:
    world = board(rate_bps, rtt_ns)
    for _ in range(3):
        world.step()
    for split in BY_ID:
        assert world.policy.predicted_ns(split) == pytest.approx(world.true_ns(split), rel=1e-3)


@given(st.lists(st.tuples(st.floats(0.2e6, 200e6), st.integers(1, 40), st.booleans()), min_size=1, max_size=8))
def test_the_same_history_gives_the_same_choices(phases: list[tuple[float, int, bool]]) -> None:
    def play() -> list[str]:
        world, chosen = board(), []
        for rate_bps, count, server in phases:
            world.rate_bps = rate_bps
            chosen += [world.step(server) for _ in range(count)]
        return chosen

    assert play() == play()


def test_a_sudden_drop_is_left_after_one_request() -> None:
    world = board(50e6)
    for _ in range(20):
        world.step()
    assert world.step() == "s00"
    world.rate_bps = 0.5e6
    assert world.step() == "s00"  # which cannot know it yet
    assert world.step() == "s49"


def test_a_request_that_was_given_up_counts_as_slow() -> None:
    world = board(50e6)
    for _ in range(20):
        world.step()
    world.policy.failed(world.now_ns, 50_000, 2_000 * MS)
    assert world.step() == "s49"


def test_after_a_drop_the_server_is_asked_again_and_taken_back() -> None:
    world = board(50e6)
    for _ in range(20):
        world.step()
    world.rate_bps = 0.5e6
    for _ in range(20):
        world.step()
    assert world.step() == "s49"
    world.rate_bps = 50e6
    until_ns = world.now_ns + 60_000 * MS
    while world.now_ns < until_ns and world.step() != "s00":
        pass
    assert world.step() == "s00"


def test_a_shorter_round_trip_is_followed_sooner() -> None:
    def requests_until_back(rtt_ns: int) -> int:
        world = board(50e6, 20 * MS)
        for _ in range(20):
            world.step()
        world.rate_bps = 0.5e6
        for _ in range(20):
            world.step()
        world.rate_bps, world.rtt_ns = 50e6, rtt_ns
        count = 0
        while world.step() != "s00":
            count += 1
        return count

    assert requests_until_back(10 * MS) < requests_until_back(20 * MS) / 2


@pytest.mark.parametrize(("rtt_ns", "asks"), [(48 * MS, True), (53 * MS, False)])
def test_the_server_is_not_asked_where_it_could_not_win(rtt_ns: int, asks: bool) -> None:
    """Remote only takes 11 ms beside the link, local only 60: above a round trip of 49 ms no rate is high enough."""
    world = board(0.2e6, rtt_ns)
    for _ in range(1500):
        world.step()
    assert ({world.step() for _ in range(1500)} != {"s49"}) is asks


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_splits_that_are_alike_are_not_switched_between_sooner_than_the_dwell_time(seed: int) -> None:
    """The rate wanders within 20 % of where remote and local cost the same."""
    world, noise = board(), random.Random(seed)
    even_bps = 8e9 * 50_000 / (60 * MS - 21 * MS)
    switched_ns = []
    for _ in range(600):
        world.rate_bps = even_bps * noise.uniform(0.8, 1.2)
        begun_ns = world.now_ns
        world.step()
        if world.last_reason.startswith("predicted"):
            switched_ns.append(begun_ns)
    assert all(after - before >= DWELL_NS for before, after in itertools.pairwise(switched_ns))


def test_a_small_gain_is_taken_after_it_has_added_up() -> None:
    """Local only gets 12 % slower than remote only, by throttling; at once would be flapping, never would be a loss."""
    world = board(8e9 * 50_000 / (39.5 * MS))  # remote only: 60.5 ms
    for _ in range(60):
        assert world.step() in ("s39", "s49")
    slow = SplitCost("s49", 69.0 * MS, 0, 0.0)
    count = 0
    for _ in range(60):
        decision = world.policy.choose(world.now_ns, True)
        assert decision is not None
        if decision.split == "s00":
            break
        world.now_ns += round(slow.edge_ns)
        world.policy.local("s49", round(slow.edge_ns))
        count += 1
    assert 2 <= count < 60
    assert ENOUGH / 0.12 >= 2  # so one decision would not have been enough


def test_without_a_server_only_local_splits_are_taken() -> None:
    world = board(1e9)
    for _ in range(5):
        world.step()
    decision = world.policy.choose(world.now_ns, False)
    assert decision is not None
    assert (decision.split, decision.patience_ns) == ("s49", None)
    remote_only = DynamicSplit(COSTS[:3], Objective())
    assert remote_only.choose(0, False) is None


def test_a_server_that_was_relied_on_is_taken_back_at_once() -> None:
    world = board(50e6)
    for _ in range(5):
        world.step()
    for _ in range(50):
        assert world.step(server=False) == "s49"
    assert world.step() == "s00"


def test_a_server_with_a_long_queue_is_left() -> None:
    world = board(100e6, 2 * MS)
    for _ in range(5):
        assert world.step() in ("s39", "s00")
    world.queue_ns = 500 * MS
    for _ in range(4):
        world.step()
    assert world.step() == "s49"


def test_a_slower_server_for_one_split_is_thought_slower_for_the_others() -> None:
    policy = board(100e6, 2 * MS).policy
    before_ns, after_ns = [], []
    for server_ns, seen in ((10 * MS, before_ns), (30 * MS, after_ns)):
        for i in range(40):
            policy.probe(i, 2 * MS)
            policy.observe(i, "s00", 50_000, MS, 6 * MS, 0, server_ns)
        seen += [policy.predicted_ns(split) or 0 for split in ("s00", "s17")]
    assert after_ns[0] - before_ns[0] == pytest.approx(20 * MS, rel=0.01)
    assert after_ns[1] - before_ns[1] > 3 * MS  # of its 6 ms, though it was never tried


def test_a_short_time_that_scatters_tells_nothing_of_long_ones() -> None:
    policy, noise = board(100e6, 2 * MS).policy, random.Random(0)
    for i in range(200):
        policy.probe(i, 2 * MS)
        policy.observe(i, "s00", 50_000, round(MS * noise.uniform(0.5, 9)), 6 * MS, 0, 10 * MS)
    assert policy.predicted_ns("s49") == pytest.approx(60 * MS, rel=0.25)


def test_a_link_too_fast_to_be_measured_is_used() -> None:
    """Replies that come no later than the probes' do not tell a rate."""
    policy = DynamicSplit(COSTS, Objective())
    for i in range(5):
        now_ns = i * 100 * MS
        policy.probe(now_ns, 1 * MS)
        decision = policy.choose(now_ns, True)
        assert decision is not None
        cost = BY_ID[decision.split]
        policy.observe(
            now_ns, cost.split, cost.payload_bytes, round(cost.edge_ns), 1 * MS - i, 0, round(cost.server_ns)
        )
    assert decision.split == "s00"


def test_the_deadline_comes_before_the_cost() -> None:
    """Energy says remote only, whose 200 ms are too late; the cheapest of the others is taken."""
    objective = Objective(latency=0.0, energy=1.0, deadline_ns=90 * MS)
    slow = 8e9 * 50_000 / (180 * MS)
    world = board(slow, 10 * MS, objective)
    world.step()
    in_time = [cost for cost in COSTS if world.true_ns(cost.split) <= 90 * MS]
    assert world.step() == min(in_time, key=lambda cost: cost.edge_j or 0.0).split
    free = board(slow, 10 * MS, Objective(latency=0.0, energy=1.0))
    free.step()
    assert free.step() == "s00"


def test_where_nothing_meets_the_deadline_the_fastest_is_taken() -> None:
    world = board(1e6, 10 * MS, Objective(latency=0.0, energy=1.0, deadline_ns=5 * MS))
    world.step()
    assert world.step() == world.best()


@given(RATES, RTTS, st.floats(0, 5), st.floats(0, 5), st.floats(0, 3), st.floats(0, 3))
def test_weights_and_the_radio(
    rate_bps: float, rtt_ns: int, latency: float, energy: float, send_w: float, wait_w: float
) -> None:
    world = board(rate_bps, rtt_ns, Objective(latency + 0.1, energy, None, send_w, wait_w))

    def cost_of(cost: SplitCost) -> float:
        joules = cost.edge_j or 0.0
        if not cost.is_local:
            sending_s = 8 * cost.payload_bytes / rate_bps
            joules += send_w * sending_s + wait_w * (rtt_ns + cost.server_ns) / 1e9
        return (latency + 0.1) * world.true_ns(cost.split) / 1e9 + energy * joules

    world.step()
    chosen = BY_ID[world.step()]
    assert cost_of(chosen) <= min(map(cost_of, COSTS)) * (1 + 1e-3)


@given(RATES, RTTS)
def test_a_reply_is_waited_for_until_computing_locally_would_have_been_as_long(rate_bps: float, rtt_ns: int) -> None:
    world = board(rate_bps, rtt_ns)
    world.step()
    decision = world.policy.choose(world.now_ns, True)
    assert decision is not None
    if decision.split == "s49":
        assert decision.patience_ns is None
    else:
        waits_ns = world.true_ns(decision.split) - BY_ID[decision.split].edge_ns
        assert decision.patience_ns == pytest.approx(waits_ns + max(60 * MS, waits_ns), rel=1e-3)


def test_patience_ends_in_time_for_a_local_answer() -> None:
    world = board(50e6, 10 * MS, Objective(deadline_ns=110 * MS))
    world.step()
    decision = world.policy.choose(world.now_ns, True)
    assert decision is not None
    assert decision.split == "s00"
    assert decision.patience_ns == pytest.approx(110 * MS - 1 * MS - 60 * MS, rel=1e-3)


@pytest.mark.parametrize(
    ("costs", "objective", "says"),
    [
        ((), Objective(), "each once"),
        ((COSTS[0], COSTS[0]), Objective(), "each once"),
        ((SplitCost("s00", 1.0, 1, 1.0),), Objective(energy=1.0), "not known for every split"),
    ],
)
def test_what_makes_no_sense_is_refused(costs: tuple[SplitCost, ...], objective: Objective, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DynamicSplit(costs, objective)
