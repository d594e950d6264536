"""The link estimate against links whose rate is known: computed ones, and emulated ones with real sockets."""

from __future__ import annotations

import random
from collections.abc import Iterator
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from network.emulator import Network, ProxyNetwork, TunNetwork
from network.endpoints import Ask, conversation
from network.traces import constant

from runtime_edge.policy.link_estimate import PROBE_BYTES, LinkEstimate

RATES = st.floats(1e6, 100e6)
SIZES = st.integers(20_000, 500_000)
RTTS = st.integers(200_000, 200_000_000)


class Computed:
    """A link that takes round trip + bits / rate, and a little more: jitter is exponential."""

    def __init__(self, rate_bps: float, rtt_ns: int, seed: int = 0, jitter_ns: float = 0.0) -> None:
        self.rate_bps, self.rtt_ns = rate_bps, rtt_ns
        self._random, self._jitter_ns = random.Random(seed), jitter_ns
        self.now_ns = 0

    def take(self, n_bytes: int) -> int:
        late_ns = self._random.expovariate(1 / self._jitter_ns) if self._jitter_ns else 0.0
        return round(self.rtt_ns + 8e9 * n_bytes / self.rate_bps + late_ns)

    def probe(self, estimate: LinkEstimate, count: int = 1) -> None:
        for _ in range(count):
            self.now_ns += 100_000_000
            estimate.probe(self.now_ns, self.take(0))

    def request(self, estimate: LinkEstimate, n_bytes: int, count: int = 1) -> None:
        for _ in range(count):
            net_ns = self.take(n_bytes)
            self.now_ns += net_ns
            estimate.observe(self.now_ns, n_bytes, net_ns)


@given(RATES, RTTS, SIZES, st.integers(1, 10))
def test_exact_on_a_link_without_jitter(rate_bps: float, rtt_ns: int, n_bytes: int, count: int) -> None:
    link, estimate = Computed(rate_bps, rtt_ns), LinkEstimate()
    link.probe(estimate)
    link.request(estimate, n_bytes, count)
    assert estimate.rtt_ns == rtt_ns
    assert estimate.rate_bps == pytest.approx(rate_bps, rel=1e-3)
    assert estimate.transfer_ns(77_000) == pytest.approx(rtt_ns + 8e9 * 77_000 / rate_bps, rel=1e-3)


@pytest.mark.parametrize("rate_mbps", [1, 3, 10, 30, 100])
@pytest.mark.parametrize("rtt_ms", [1, 20, 100])
def test_within_a_tenth_despite_jitter(rate_mbps: int, rtt_ms: int) -> None:
    link, estimate = Computed(rate_mbps * 1e6, rtt_ms * 1_000_000, seed=rtt_ms, jitter_ns=100_000), LinkEstimate()
    link.probe(estimate, 8)
    for _ in range(20):
        link.request(estimate, 50_000, 5)
        assert estimate.rate_bps == pytest.approx(rate_mbps * 1e6, rel=0.1)


@given(RATES, st.sampled_from((0.1, 10.0)), RTTS, SIZES)
def test_after_a_tenfold_step_right_again_from_the_first_request_behind_it(
    rate_bps: float, factor: float, rtt_ns: int, n_bytes: int
) -> None:
    link, estimate = Computed(rate_bps, rtt_ns), LinkEstimate()
    link.probe(estimate)
    link.request(estimate, n_bytes, 6)
    link.rate_bps = rate_bps * factor
    expected_ns = 8e9 * n_bytes / rate_bps
    link.request(estimate, n_bytes)
    if abs(expected_ns * (1 / factor - 1)) > 1e6:  # else the step hides in the least jitter that is assumed
        assert estimate.rate_bps == pytest.approx(rate_bps * factor, rel=1e-3)


def test_a_straggler_is_forgotten_with_the_next_request() -> None:
    link, estimate = Computed(10e6, 20_000_000), LinkEstimate()
    link.probe(estimate)
    link.request(estimate, 50_000, 5)
    estimate.observe(link.now_ns, 50_000, 20 * link.take(50_000))
    assert estimate.rate_bps == pytest.approx(10e6 / 20, rel=0.5)  # it might be a sudden drop
    link.request(estimate, 50_000)
    assert estimate.rate_bps == pytest.approx(10e6, rel=1e-3)


def test_a_request_in_the_middle_of_a_step_does_not_linger() -> None:
    link, estimate = Computed(10e6, 5_000_000), LinkEstimate()
    link.probe(estimate)
    link.request(estimate, 30_000, 5)
    estimate.observe(link.now_ns, 30_000, (link.take(30_000) + link.take(300_000)) // 2)
    link.rate_bps = 1e6
    link.request(estimate, 30_000, 2)
    assert estimate.rate_bps == pytest.approx(1e6, rel=1e-3)


def test_small_requests_tell_the_delay() -> None:
    estimate = LinkEstimate()
    estimate.observe(0, PROBE_BYTES - 1, 7_000_000)
    assert estimate.rtt_ns == 7_000_000
    assert estimate.rate_bps is None
    assert estimate.transfer_ns(1) is None


def test_a_request_faster_than_the_probes_tells_that_the_delay_fell() -> None:
    estimate = LinkEstimate()
    estimate.probe(0, 50_000_000)
    estimate.observe(1, 20_000, 30_000_000)
    assert estimate.rtt_ns == 30_000_000
    assert estimate.rate_bps is None


def test_without_a_probe_the_whole_time_is_laid_to_the_bytes_until_the_first_one() -> None:
    link, estimate = Computed(10e6, 20_000_000), LinkEstimate()
    link.request(estimate, 50_000)
    assert estimate.rate_bps == pytest.approx(8 * 50_000 / 0.060)
    link.probe(estimate)
    assert estimate.rate_bps is None
    link.request(estimate, 50_000)
    assert estimate.rate_bps == pytest.approx(10e6)


def test_a_longer_delay_is_known_after_the_old_probes_have_gone() -> None:
    link, estimate = Computed(10e6, 5_000_000), LinkEstimate()
    link.probe(estimate, 8)
    link.rtt_ns = 80_000_000
    link.probe(estimate, 8)
    assert estimate.rtt_ns == 80_000_000


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(1, 10**7), st.integers(1, 10**11)), max_size=30))
def test_whatever_comes_it_predicts_something_finite_and_more_for_more_bytes(
    seen: list[tuple[int, int, int]],
) -> None:
    estimate = LinkEstimate()
    for at_ns, n_bytes, net_ns in sorted(seen):
        if n_bytes % 3 == 0:
            estimate.probe(at_ns, net_ns)
        else:
            estimate.observe(at_ns, n_bytes, net_ns)
        few, many = estimate.transfer_ns(1000), estimate.transfer_ns(100_000)
        assert (few is None) == (many is None) == (estimate.rate_bps is None)
        if few is not None and many is not None:
            assert 0 < few < many < float("inf")


@pytest.fixture(params=[TunNetwork, ProxyNetwork])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    if request.param is TunNetwork and (reason := TunNetwork.missing()):
        pytest.skip(reason)
    with request.param() as made:
        yield made


def _goodput_bps(network: Network, rate_bps: float) -> float:
    """What of a rate is left for a body: TCP's and IP's headers take their part of packets, not of a proxy's bytes."""
    return rate_bps * 1448 / 1500 if isinstance(network, TunNetwork) else rate_bps


class Observer:
    """Measures across a network and tells an estimate."""

    def __init__(self, ask: Ask) -> None:
        self.estimate, self._ask, self._now_ns = LinkEstimate(), ask, 0

    def probe(self, count: int) -> None:
        for rtt_ns in self._ask(100, 100, count):
            self._now_ns += 100_000_000
            self.estimate.probe(self._now_ns, rtt_ns)

    def request(self, n_bytes: int, count: int) -> list[float]:
        """The estimate after each of the requests."""
        rates = []
        for net_ns in self._ask(n_bytes, 300, count):
            self._now_ns += net_ns
            self.estimate.observe(self._now_ns, n_bytes, net_ns)
            rates.append(self.estimate.rate_bps or 0.0)
        return rates


@pytest.mark.parametrize(
    ("rate_mbps", "n_bytes", "tolerance"), [(1, 20_000, 0.1), (10, 200_000, 0.1), (100, 1_000_000, 0.3)]
)
def test_real_sockets(network: Network, rate_mbps: int, n_bytes: int, tolerance: float) -> None:
    """What a busy machine adds shows as well: a transfer takes so long, 80 ms at least, that it is a small part."""
    network.play(constant(rate_mbps * 1e6, 0.005))
    right = pytest.approx(_goodput_bps(network, rate_mbps * 1e6), rel=tolerance)
    with conversation(network) as ask:
        observer = Observer(ask)
        for _ in range(5):  # a busy machine may disturb a whole round; then the estimate must find back
            observer.probe(6)
            rate_bps = median(observer.request(n_bytes, 10)[4:])
            if rate_bps == right:
                break
    assert rate_bps == right


@pytest.mark.parametrize(("before_mbps", "after_mbps"), [(10, 1), (1, 10)])
def test_real_sockets_after_a_tenfold_step(network: Network, before_mbps: int, after_mbps: int) -> None:
    """TCP itself needs some requests until its window has grown to a link that became faster."""
    with conversation(network) as ask:
        observer = Observer(ask)
        network.play(constant(before_mbps * 1e6, 0.005))
        observer.probe(6)
        observer.request(30_000, 6)
        network.play(constant(after_mbps * 1e6, 0.005))
        observer.probe(2)
        n_bytes = 30_000 if after_mbps < before_mbps else 100_000  # 80 ms at least, as above
        rates = observer.request(n_bytes, 20 if isinstance(network, TunNetwork) and after_mbps > before_mbps else 5)
    right = pytest.approx(_goodput_bps(network, after_mbps * 1e6), rel=0.1)
    assert any(rate == right for rate in rates)
