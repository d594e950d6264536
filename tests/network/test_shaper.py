"""The shaper against arithmetic: when packets come out, which are dropped, in what order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from network.shaper import Shaper
from network.traces import Conditions, Trace, constant


def test_packets_queue_for_the_rate_and_then_take_the_delay() -> None:
    shaper = Shaper(constant(8e6, 0.5), 0.0, 10_000, 0)  # 1000 bytes take 1 ms
    for number in range(3):
        shaper.push(bytes([number]) * 1000, 0.0)
    assert shaper.ready(0.500999) == []
    assert [packet[0] for packet in shaper.ready(0.501001)] == [0]
    assert [packet[0] for packet in shaper.ready(0.503001)] == [1, 2]
    assert shaper.next_s is None


def test_what_does_not_fit_into_the_queue_is_dropped() -> None:
    shaper = Shaper(constant(8e6, 0.0), 0.0, 2500, 0)
    for _ in range(10):
        shaper.push(bytes(1000), 0.0)
    assert len(shaper.ready(1.0)) == 3  # the one being sent, and two that wait


@given(st.lists(st.tuples(st.floats(0, 0.01), st.integers(1, 1500)), min_size=1, max_size=50))
def test_being_asked_late_changes_nothing(packets: list[tuple[float, int]]) -> None:
    """The k-th packet leaves at max(its arrival, the one before it) + bits / rate, whenever that is noticed."""
    shaper = Shaper(constant(1e6, 0.25), 0.0, 1 << 30, 0)
    now_s, free_s = 0.0, 0.0
    for number, (gap_s, size) in enumerate(packets):
        now_s += gap_s
        shaper.push(number.to_bytes(2, "big") + bytes(size), now_s)
        free_s = max(free_s, now_s) + (size + 2) * 8e-6
    assert len(shaper.ready(free_s + 0.25 - 1e-6)) == len(packets) - 1
    assert [int.from_bytes(packet[:2], "big") for packet in shaper.ready(free_s + 0.25 + 1e-6)] == [len(packets) - 1]


def test_no_packet_overtakes_another_when_the_delay_falls() -> None:
    trace = Trace((0.0, 0.01), (Conditions(8e6, 1.0), Conditions(8e6, 0.0)), 100.0)
    shaper = Shaper(trace, 0.0, 1 << 20, 0)
    shaper.push(b"a" * 1000, 0.0)
    shaper.push(b"b" * 1000, 0.02)
    assert shaper.ready(0.5) == []
    assert [packet[:1] for packet in shaper.ready(1.002)] == [b"a", b"b"]


def test_bytes_wait_for_the_end_of_an_outage() -> None:
    trace = Trace((0.0, 2.0), (Conditions(0.0, 0.0), Conditions(8e6, 0.0)), 100.0)
    shaper = Shaper(trace, 0.0, 1 << 20, 0)
    shaper.push(bytes(1000), 0.5)
    assert shaper.ready(2.0) == []
    assert len(shaper.ready(2.0011)) == 1


def test_another_trace_holds_for_what_waits() -> None:
    shaper = Shaper(constant(8.0, 0.0), 0.0, 1 << 20, 0)  # a byte a second
    shaper.push(bytes(1000), 0.0)
    shaper.push(bytes(1000), 0.0)
    shaper.play(constant(8e6, 0.0), 5.0)
    assert len(shaper.ready(5.0021)) == 2


@pytest.mark.parametrize("loss", [0.0, 0.05, 0.5])
def test_the_share_that_is_lost(loss: float) -> None:
    shaper = Shaper(constant(1e12, 0.0, loss), 0.0, 1 << 30, 3)
    n = 20_000
    for i in range(n):
        shaper.push(b"x", i * 1e-3)
    lost = n - len(shaper.ready(1e6))
    assert abs(lost - n * loss) <= 5 * (n * loss * (1 - loss)) ** 0.5  # five standard deviations
