"""The emulated networks as a program sees them: real sockets, a clock, and tolerances for a busy machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from network import tun_link
from network.emulator import Network, ProxyNetwork, TunNetwork
from network.endpoints import conversation, line_of, program
from network.traces import Conditions, Trace, constant

HEADERS = 1500 / 1448
"""A full packet to the TCP payload that it carries."""


@pytest.fixture(params=[TunNetwork, ProxyNetwork])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    if request.param is TunNetwork and (reason := TunNetwork.missing()):
        pytest.skip(reason)
    with request.param() as made:
        yield made


@pytest.fixture
def tun() -> Iterator[TunNetwork]:
    if reason := TunNetwork.missing():
        pytest.skip(reason)
    with TunNetwork() as made:
        yield made


@pytest.mark.parametrize(("rate_mbps", "n_bytes"), [(1, 200_000), (10, 2_000_000), (100, 8_000_000)])
def test_a_long_transfer_takes_its_bits_over_the_rate(network: Network, rate_mbps: int, n_bytes: int) -> None:
    expected_s = 8 * n_bytes / (rate_mbps * 1e6)
    if isinstance(network, TunNetwork):
        expected_s *= HEADERS
    network.play(constant(rate_mbps * 1e6, 0.002))
    with conversation(network) as ask:
        ask(n_bytes // 4, 1, 1)  # opens TCP's window
        took_s = min(ask(n_bytes, 1, 2)) / 1e9
    assert 0.97 * expected_s <= took_s <= (1.03 if rate_mbps < 100 else 1.25) * expected_s + 0.02


@pytest.mark.parametrize("delay_ms", [1, 10, 50])
def test_a_small_exchange_takes_twice_the_delay(network: Network, delay_ms: int) -> None:
    network.play(constant(100e6, delay_ms / 1e3))
    with conversation(network) as ask:
        ask(1, 1, 3)
        took_ms = float("inf")
        for _ in range(20):  # a busy machine may interrupt many of them, one after the other
            took_ms = min(took_ms, *(ns / 1e6 for ns in ask(1, 1, 15)))
            if took_ms <= 2 * delay_ms + 3:
                break
    assert 2 * delay_ms <= took_ms <= 2 * delay_ms + 3


def test_bytes_wait_while_the_link_is_down(network: Network) -> None:
    with conversation(network) as ask:
        ask(1, 1, 1)
        network.play(Trace((0.0, 1.0), (Conditions(0.0, 0.001), Conditions(50e6, 0.001)), 1000.0))
        down_s = ask(1000, 1, 1)[0] / 1e9
        up_s = min(ask(1000, 1, 3)) / 1e9
    # Less, by what passed until it was asked; more, as TCP sends again after a timeout that doubles.
    assert 0.6 <= down_s <= 5
    assert up_s < 0.5


def _flood(network: TunNetwork, count: int, size: int, interval_s: float) -> tuple[int, float]:
    """How many UDP packets arrived, and in how many seconds."""
    with program(network.start_far, "count", network.far_host) as counting:
        host, port = network.reach(int(line_of(counting)))
        words = ("flood", host, port, str(count), str(size), str(interval_s))
        with program(network.start_near, *words):
            n_packets, seconds = json.loads(line_of(counting))
    return int(n_packets), float(seconds)


def test_a_share_of_the_packets_is_lost(tun: TunNetwork) -> None:
    tun.play(constant(100e6, 0.001, loss=0.1))
    arrived, _ = _flood(tun, 3000, 100, 0.0005)
    assert abs(arrived - 2700) <= 5 * (3000 * 0.1 * 0.9) ** 0.5


def test_a_full_queue_drops_and_the_rest_arrives_at_the_rate(tun: TunNetwork) -> None:
    tun.play(constant(10e6, 0.001))
    count, packet_bytes = 2000, 1228  # 1200 and the headers of IP and UDP
    for _ in range(5):  # a busy machine may keep the sender silent for longer than the queue lasts
        arrived, seconds = _flood(tun, count, 1200, 0.0004)  # 24.6 Mbit/s for 0.8 s: more than link and queue take
        rate_bps = (arrived - 1) * packet_bytes * 8 / seconds
        assert rate_bps <= 10.3e6
        if rate_bps >= 9.7e6:
            break
    assert rate_bps >= 9.7e6
    assert arrived < 0.75 * count


def test_the_namespaces_go_with_the_block() -> None:
    if reason := TunNetwork.missing():
        pytest.skip(reason)
    with TunNetwork() as network:
        near = network.start_near(["cat", "/proc/net/dev"], stdout=subprocess.PIPE, text=True)
        seen = near.communicate()[0]
    name = next(line.split(":")[0].strip() for line in seen.splitlines() if "split" in line)
    assert not (tun_link.NAMESPACES / name).exists()


def test_the_namespaces_go_when_their_user_is_killed() -> None:
    if reason := TunNetwork.missing():
        pytest.skip(reason)
    script = (
        "import time\nfrom network.emulator import TunNetwork\n"
        "with TunNetwork() as made:\n    print(made._near, flush=True)\n    time.sleep(60)\n"
    )
    argv = [sys.executable, "-c", script]
    with subprocess.Popen(argv, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) as user:
        name = line_of(user)
        assert (tun_link.NAMESPACES / name).exists()
        user.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while (tun_link.NAMESPACES / name).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not (tun_link.NAMESPACES / name).exists()


def test_leftovers_of_a_killed_link_are_removed_by_the_next_one() -> None:
    if reason := TunNetwork.missing():
        pytest.skip(reason)
    done = subprocess.Popen(["true"])
    done.wait()
    name = tun_link.names(done.pid)[0]
    tun_link.ip("netns", "add", name)
    with TunNetwork():
        assert not (tun_link.NAMESPACES / name).exists()


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = TunNetwork.missing()
    assert reason == ("network namespaces need iproute2 (the command ip)" if os.geteuid() == 0 else reason)
    assert reason is not None


def test_a_proxy_refuses_to_lose_packets() -> None:
    with ProxyNetwork() as network, pytest.raises(ValueError, match="cannot lose"):
        network.play(constant(1e6, 0.0, loss=0.1))
