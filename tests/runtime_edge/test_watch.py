"""The pauses between probes of a server that is away, by the clock of a listener that hangs up on everyone."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving import Running, running_server

from runtime_edge.link.link import Link
from runtime_edge.link.watch import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    PROBE_TIMEOUT_S,
    STEADY_S,
    Probe,
    ServerWatch,
)
from splitboard.contract.bundle import TensorSpec, bundle_sha256, load_bundle
from splitboard.contract.interface import Interface, interface

TO = Interface("tiny-s03", "ab" * 32, "s03", (TensorSpec("x", (1, 4), "int8", "NC"),), ())


@contextlib.contextmanager
def hanging_up() -> Iterator[tuple[str, list[float]]]:
    """A listener that closes every connection at once, and when each came."""
    times: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()
                    times.append(time.monotonic())

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", times
        listener.shutdown(socket.SHUT_RDWR)


class Ends(random.Random):
    """Draws the lower and the upper end of what it is asked for, in turns, so that the pauses are known."""

    def __init__(self) -> None:
        super().__init__()
        self._upper = itertools.cycle([False, True])

    def uniform(self, a: float, b: float) -> float:
        return b if next(self._upper) else a


def test_the_pauses_double_and_are_drawn_from_half_to_one_and_a_half() -> None:
    count = 6
    wanted = [(1.5 if number % 2 else 0.5) * min(FIRST_PAUSE_S * 2**number, LONGEST_PAUSE_S) for number in range(count)]
    with hanging_up() as (url, times), ServerWatch(Link(url), TO, Ends()) as watch:
        start = time.monotonic()
        watch.lost("closed")
        until(lambda: len(times) >= count)
        assert not watch.available
        assert watch.reason == "closed"
    # None can come before the pauses until then are over. How late a busy machine notices one is another matter.
    for came, earliest in zip(times, itertools.accumulate(wanted), strict=False):
        assert came - start >= earliest
    for pause, length in zip(itertools.pairwise([start, *times]), wanted, strict=False):
        assert pause[1] - pause[0] <= length + 1.5


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_server_of_another_bundle_does_not_count(tiny_bundle: Path) -> None:
    with running_server(tiny_bundle) as server, ServerWatch(Link(server.url), TO) as watch:
        watch.lost("pair")
        time.sleep(0.5)
        assert (watch.available, watch.reason) == (False, "pair")


def test_it_is_found_again_and_probed_while_it_is_there(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    to = interface(bundle, bundle_sha256(tiny_bundle), bundle.split("s03"))
    with running_server(tiny_bundle) as server, ServerWatch(Link(server.url), to) as watch:
        watch.lost("closed")
        assert not watch.available
        until(lambda: watch.available)
        assert watch.reason is None
        probes = wait_for_probes(watch)
        for _ in range(20):
            watch.doubted()
            probes += wait_for_probes(watch)
    times = [probe.at_ns for probe in probes]
    assert times == sorted(set(times))  # each is told once
    # A doubt is looked into at once, and not when a probe is due; on a busy machine at least one of them.
    assert min(after - before for before, after in itertools.pairwise(times)) < 0.8e9 * STEADY_S
    assert all(0 < probe.rtt_ns <= 1e9 * PROBE_TIMEOUT_S for probe in probes)


def wait_for_probes(watch: ServerWatch) -> list[Probe]:
    found: list[Probe] = []
    until(lambda: bool(found.extend(watch.probes()) or found))
    return found


def test_a_server_that_dies_is_missed_without_any_request(tiny_bundle: Path) -> None:
    with running_server(tiny_bundle) as server:
        found = _wait_for_loss(server, tiny_bundle)
    assert found in ("closed", "unreachable")


def _wait_for_loss(server: Running, folder: Path) -> str | None:
    bundle = load_bundle(folder)
    to = interface(bundle, bundle_sha256(folder), bundle.split("s03"))
    with ServerWatch(Link(server.url), to) as watch:
        watch.doubted()
        server.process.kill()
        server.process.wait()
        until(lambda: not watch.available)
        return watch.reason


@pytest.mark.parametrize("busy", ["overloaded", "expired"])
def test_a_busy_server_is_left_alone_for_a_while(tiny_bundle: Path, busy: str) -> None:
    bundle = load_bundle(tiny_bundle)
    to = interface(bundle, bundle_sha256(tiny_bundle), bundle.split("s03"))

    def pause_s() -> float:
        start = time.monotonic()
        watch.lost(busy)
        until(lambda: watch.available)
        return time.monotonic() - start

    with running_server(tiny_bundle) as server, ServerWatch(Link(server.url), to) as watch:
        pauses = [pause_s() for _ in range(5)]
        watch.answered()
        after = pause_s()
    for number, pause in enumerate(pauses):
        wanted = FIRST_PAUSE_S * 2**number
        assert 0.5 * wanted <= pause <= 1.5 * wanted + 1.0  # the second is what a busy machine may add
    assert after < 0.5 * LONGEST_PAUSE_S  # the sixth in a row is at least so long
