"""The pauses between probes of a server that is away, by the clock of a listener that hangs up on everyone."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Running, running_server

from runtime_edge.link.link import Link
from runtime_edge.link.watch import FIRST_PAUSE_S, LONGEST_PAUSE_S, ServerWatch
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


def test_the_pauses_double_and_are_drawn_from_half_to_one_and_a_half() -> None:
    with hanging_up() as (url, times), ServerWatch(Link(url), TO) as watch:
        start = time.monotonic()
        watch.lost("closed")
        time.sleep(2.5)
        assert not watch.available
        assert watch.reason == "closed"
    pauses = [after - before for before, after in itertools.pairwise([start, *times])]
    assert 3 <= len(pauses) <= 7
    for number, pause in enumerate(pauses):
        wanted = min(FIRST_PAUSE_S * 2**number, LONGEST_PAUSE_S)
        assert 0.5 * wanted <= pause <= 1.5 * wanted + 0.25


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
        end = time.monotonic() + 5
        while not watch.available and time.monotonic() < end:
            time.sleep(0.01)
        assert (watch.available, watch.reason) == (True, None)
        watch.doubted()
        time.sleep(0.3)
        probes = watch.probes()
        assert len(probes) >= 2
        assert all(0 < probe.rtt_ns < 1e9 for probe in probes)
        assert watch.probes() == []


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
        end = time.monotonic() + 6
        while watch.available and time.monotonic() < end:
            time.sleep(0.02)
        return watch.reason


@pytest.mark.parametrize("busy", ["overloaded", "expired"])
def test_a_busy_server_is_left_alone_for_a_while(tiny_bundle: Path, busy: str) -> None:
    bundle = load_bundle(tiny_bundle)
    to = interface(bundle, bundle_sha256(tiny_bundle), bundle.split("s03"))
    with running_server(tiny_bundle) as server, ServerWatch(Link(server.url), to) as watch:
        pauses = []
        for _ in range(3):
            start = time.monotonic()
            watch.lost(busy)
            while not watch.available:
                time.sleep(0.005)
            pauses.append(time.monotonic() - start)
        watch.answered()
        start = time.monotonic()
        watch.lost(busy)
        while not watch.available:
            time.sleep(0.005)
        after = time.monotonic() - start
    for number, pause in enumerate(pauses):
        assert 0.5 * FIRST_PAUSE_S * 2**number <= pause <= 1.5 * FIRST_PAUSE_S * 2**number + 0.25
    assert after <= 1.5 * FIRST_PAUSE_S + 0.25
