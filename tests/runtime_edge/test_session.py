"""The edge loop with a real server: whose answers they are, whatever happens to the network in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from network.fault_proxy import CutError, fault_proxy
from numpy.typing import NDArray
from references import References, edge, references
from serving import Running

from runtime_edge.loop.run import run, run_overlapped
from runtime_edge.loop.session import Answered, Manners, TaskAnswer
from runtime_edge.loop.sources import Frame
from runtime_edge.policy.dynamic_split import DynamicSplit, Objective, SplitCost
from splitboard.contract.bundle import Bundle, load_bundle
from splitboard.contract.errors import UserError
from splitboard.contract.samples import load_samples


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def images(tiny_samples: Path) -> NDArray[np.uint8]:
    return load_samples(tiny_samples, 1).images[:40]


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path, bundle: Bundle, images: NDArray[np.uint8]) -> References:
    return references(tiny_bundle, bundle, images)


def switch() -> tuple[threading.Event, Callable[[bytes], bytes]]:
    """While the event is set, the function cuts whatever connection it is given data of."""
    gone = threading.Event()

    def cut(data: bytes) -> bytes:
        if gone.is_set():
            raise CutError
        return data

    return gone, cut


def frames(images: NDArray[np.uint8]) -> Iterator[Frame]:
    for i, image in enumerate(images):
        yield Frame(str(i), image, {}, 0)


@pytest.mark.parametrize("loop", [run, run_overlapped])
@pytest.mark.parametrize("split", ["s00", "s03", "s05"])
def test_every_image_gets_its_own_answer_in_order(
    tiny_bundle: Path,
    server: Running,
    images: NDArray[np.uint8],
    expected: References,
    loop: Callable[..., None],
    split: str,
) -> None:
    done: list[Answered] = []
    with edge(tiny_bundle, server.url, split, Manners()) as one:
        loop(one.session, frames(images), lambda frame, what: done.append(what), threading.Event())
    assert [what.number for what in done] == list(range(len(images)))
    for what in done:
        assert {answer.by for answer in what.tasks.values()} == {"server"}
        expected.check(what.number, what)


def test_compressed_requests_are_answered_alike(
    tiny_bundle: Path, server: Running, images: NDArray[np.uint8], expected: References
) -> None:
    with edge(tiny_bundle, server.url, "s00", Manners(coding="zstd")) as one:
        for i, image in enumerate(images[:5]):
            done = one.answer(image)
            assert done.answer is not None
            assert done.answer.sent_bytes != done.answer.raw_bytes
            expected.check(i, done)


def test_jpeg_changes_the_answer_a_little(
    tiny_bundle: Path, server: Running, images: NDArray[np.uint8], expected: References, bundle: Bundle
) -> None:
    with edge(tiny_bundle, server.url, "s00", Manners(coding="jpeg")) as one:
        done = one.answer(images[0])
    for task, answer in done.tasks.items():
        assert answer.scores != expected.server["s00"][task][0]
        np.testing.assert_allclose(answer.scores, expected.server["s00"][task][0], atol=0.2)


def test_the_deadline_is_kept_when_the_server_hangs(
    tiny_bundle: Path, server: Running, images: NDArray[np.uint8], expected: References
) -> None:
    free = threading.Event()

    def hold(data: bytes) -> bytes:
        free.wait(60)
        return data

    with fault_proxy(server.port) as proxy, edge(tiny_bundle, proxy.url, "s03", Manners(deadline_s=1.0)) as one:
        expected.check(0, one.answer(images[0]))
        proxy.down = hold
        late = one.answer(images[1])
        assert (late.failure, {answer.by for answer in late.tasks.values()}) == ("timeout", {"local"})
        assert late.total_ns < 10e9  # the deadline and what a busy machine adds; the request alone may take 30 s
        expected.check(1, late)
        away = one.answer(images[2])
        assert away.split == "s09"  # nobody waits for it again
        assert away.total_ns < late.total_ns
        free.set()


@pytest.mark.parametrize("fallback", ["local", "unavailable"])
def test_the_server_goes_and_comes_back(
    tiny_bundle: Path, server: Running, images: NDArray[np.uint8], expected: References, fallback: str
) -> None:
    gone, cut = switch()
    with fault_proxy(server.port) as proxy, edge(tiny_bundle, proxy.url, "s03", Manners(fallback=fallback)) as one:
        proxy.up = cut
        by: list[set[str]] = []
        for i, image in enumerate(images[:30]):
            if i == 5:
                gone.set()
            if i == 10:
                gone.clear()
                assert wait_until(lambda: one.watch.available)
            done = one.answer(image)
            expected.check(i, done)
            by.append({answer.by for answer in done.tasks.values()})
    stands_in = {"local"} if fallback == "local" else {"unavailable"}
    assert by == [{"server"}] * 5 + [stands_in] * 5 + [{"server"}] * 20


def test_one_corrupt_request_is_sent_again(
    tiny_bundle: Path, server: Running, images: NDArray[np.uint8], expected: References
) -> None:
    flipped = threading.Event()

    def flip(data: bytes) -> bytes:
        if flipped.is_set() or b"POST" not in data:
            return data
        flipped.set()
        return data[:-1] + bytes([data[-1] ^ 4])

    with fault_proxy(server.port) as proxy, edge(tiny_bundle, proxy.url, "s03", Manners()) as one:
        proxy.up = flip
        done = one.answer(images[0])
    assert flipped.is_set()
    assert (done.failure, {answer.by for answer in done.tasks.values()}) == (None, {"server"})
    expected.check(0, done)


def test_local_only_needs_no_server(tiny_bundle: Path, images: NDArray[np.uint8], expected: References) -> None:
    with edge(tiny_bundle, "http://127.0.0.1:9", "s03", Manners()) as one:
        one.watch.lost("unreachable")
        for i, image in enumerate(images[:3]):
            done = one.answer(image)
            assert (done.split, done.reason, done.failure) == ("s09", "there is no server", "unreachable")
            expected.check(i, done)


def test_the_policy_uses_the_link_and_answers_stay_right(
    tiny_bundle: Path, bundle: Bundle, server: Running, images: NDArray[np.uint8], expected: References
) -> None:
    """The board is made to look slow, so the server is worth asking; then the server goes."""
    costs = [
        SplitCost(one.id, 5e8, one.payload_bytes, 0 if one.is_local else 1e5)
        for one in bundle.splits
        if not one.is_local
    ]
    costs.append(SplitCost("s09", 1e10, 0, 0))
    chooser, (gone, cut) = DynamicSplit(costs, Objective()), switch()
    with (
        fault_proxy(server.port) as proxy,
        edge(tiny_bundle, proxy.url, "s00", Manners(), chooser=chooser, splits=("s03", "s05")) as one,
    ):
        proxy.up = cut
        done = [one.answer(image) for image in images[:20]]
        assert all(answer.by == "server" for what in done for answer in what.tasks.values())
        gone.set()  # or a probe might find it again before the next image
        one.watch.lost("unreachable")
        done.append(one.answer(images[20]))
        assert done[-1].split == "s09"
    for i, what in enumerate(done):
        expected.check(i, what)
    assert chooser.link.rate_bps is not None


@pytest.mark.parametrize("fallback", ["local", "unavailable"])
def test_a_policy_without_a_local_split_goes_on_without_a_server(
    tiny_bundle: Path,
    bundle: Bundle,
    server: Running,
    images: NDArray[np.uint8],
    expected: References,
    fallback: str,
) -> None:
    """Local only is no choice here: it stands in where that is asked for, and else nothing does."""
    costs = [SplitCost(one, 1e6, bundle.split(one).payload_bytes, 1e5) for one in ("s00", "s03")]
    manners, chooser, (gone, cut) = Manners(fallback=fallback), DynamicSplit(costs, Objective()), switch()
    with (
        fault_proxy(server.port) as proxy,
        edge(tiny_bundle, proxy.url, "s00", manners, chooser=chooser, splits=("s03",)) as one,
    ):
        proxy.up = cut
        found = [one.answer(image) for image in images[:5]]
        gone.set()  # or a probe might find it again before the next image
        one.watch.lost("closed")
        found.append(one.answer(images[5]))
        gone.clear()
        assert wait_until(lambda: one.watch.available)
        found.append(one.answer(images[6]))
    for number, done in enumerate(found):
        expected.check(number, done)
    by = [{answer.by for answer in done.tasks.values()} for done in found]
    stands_in = {"local"} if fallback == "local" else {"unavailable"}
    assert by == [{"server"}] * 5 + [stands_in, {"server"}]
    assert found[5].failure == "closed"
    assert {done.split for done in (*found[:5], found[6])} <= {"s00", "s03"}


def test_exits_stand_in_only_where_there_are_some(tiny_bundle: Path, server: Running) -> None:
    with (
        pytest.raises(UserError, match="no split that may run has an early exit"),
        edge(tiny_bundle, server.url, "s03", Manners(fallback="exit")),
    ):
        pass


def test_tasks_are_told_as_soon_as_they_are_answered(
    placed_bundle: Path, tiny_samples: Path, images: NDArray[np.uint8]
) -> None:
    """The head on the board does not wait for a server that is away."""
    told: list[tuple[int, str, str]] = []

    def hear(number: int, task: str, answer: TaskAnswer) -> None:
        told.append((number, task, answer.by))

    bundle = load_bundle(placed_bundle)
    (split,) = (one for one in bundle.splits if one.local_tasks == ("size",))
    manners = Manners(fallback="unavailable")
    with edge(placed_bundle, "http://127.0.0.1:9", split.id, manners, on_task=hear) as one:
        begun = one.session.begin(images[0])
        assert told == [(0, "size", "edge")]
        done = one.session.finish(begun)
    assert done.tasks["size"].by == "edge"
    assert {by for _, task, by in told if task != "size"} == {"unavailable"}
    assert len(told) == len(bundle.tasks)


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.01)
    return False


def test_auto_compresses_on_a_slow_link(
    tiny_bundle: Path, server: Running, images: NDArray[np.uint8], expected: References
) -> None:
    def at(rate_bps: float) -> Callable[[bytes], bytes]:
        def slowly(data: bytes) -> bytes:
            time.sleep(8 * len(data) / rate_bps)
            return data

        return slowly

    with fault_proxy(server.port) as proxy, edge(tiny_bundle, proxy.url, "s00", Manners(coding="auto")) as one:
        done = [one.answer(image) for image in images[:10]]
        proxy.up = at(2e4)  # so slow that an encoding that a busy machine interrupts pays as well
        done += [one.answer(image) for image in images[10:20]]
        slow = [what.coding for what in done[15:]]
    for number, what in enumerate(done):
        expected.check(number, what)
    assert done[0].coding == "zstd"  # to see what it gives
    assert set(slow) == {"zstd"}


def test_auto_sends_plain_to_a_server_without_zstd(
    tiny_bundle: Path, server: Running, images: NDArray[np.uint8], expected: References
) -> None:
    def forget(data: bytes) -> bytes:
        return data.replace(b'"zstd"', b'"none"')

    with fault_proxy(server.port) as proxy, edge(tiny_bundle, proxy.url, "s00", Manners(coding="auto")) as one:
        proxy.down = forget
        done = one.answer(images[0])
    assert (done.failure, done.coding) == (None, "none")
    expected.check(0, done)
