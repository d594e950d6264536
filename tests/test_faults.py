"""What goes wrong between a board and its server, one test a row: what the board answers, and what the server says.

Rows of the server alone (garbage on the port, half-open connections, bodies of 64 MB, many requests at once, drain) are
in `tests/runtime_server`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from network.emulator import TunNetwork
from network.fault_proxy import CutError, fault_proxy, once
from network.traces import Conditions, Trace, constant
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from references import Edge, References, edge, references
from serving import REPOSITORY, Running, free_ports, running_server

from runtime_edge.link.connection import LinkError, Security
from runtime_edge.link.link import Link
from runtime_edge.link.sender import Sender
from runtime_edge.loop.session import Answered, Manners
from splitboard.contract.bundle import Bundle, bundle_sha256, load_bundle, write_manifest
from splitboard.contract.interface import interface
from splitboard.contract.samples import load_samples

SPLIT = "s03"


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def images(tiny_samples: Path) -> NDArray[np.uint8]:
    return load_samples(tiny_samples, 1).images[:20]


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path, bundle: Bundle, images: NDArray[np.uint8]) -> References:
    return references(tiny_bundle, bundle, images)


@pytest.fixture
def server(tiny_bundle: Path) -> Iterator[Running]:
    with running_server(tiny_bundle) as running:
        yield running


def counts(server: Running, model: str = f"tiny-{SPLIT}") -> dict[str, int]:
    """Requests that the server answered, as ``answered``, and those that it refused, by reason."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as reply:
        families = {one.name: one for one in text_string_to_metric_families(reply.read().decode())}
    found = {"answered": 0}
    for sample in families["splitboard_requests"].samples:
        if sample.name.endswith("_total") and sample.labels["model"] == model:
            found["answered"] = int(sample.value)
    for sample in families["splitboard_failures"].samples:
        if sample.name.endswith("_total") and sample.labels["model"] == model and sample.value:
            found[sample.labels["reason"]] = int(sample.value)
    return found


def by(done: Answered) -> set[str]:
    """Who answered."""
    return {answer.by for answer in done.tasks.values()}


def back(one: Edge, seconds: float = 60.0) -> bool:
    """Waits until the server may be asked again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not one.watch.available:
        time.sleep(0.02)
    return one.watch.available


def post(then: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Does something to the first request for an inference, and nothing to probes and to what follows."""
    first = once(then)
    return lambda data: first(data) if data.startswith(b"POST") else data


def test_server_killed_in_flight(
    tiny_bundle: Path, server: Running, images: NDArray[np.uint8], expected: References
) -> None:
    def kill(data: bytes) -> bytes:
        server.process.kill()
        server.process.wait()
        raise CutError

    with fault_proxy(server.port) as proxy, edge(tiny_bundle, proxy.url, SPLIT, Manners()) as one:
        assert by(one.answer(images[0])) == {"server"}
        proxy.up = post(kill)
        done = one.answer(images[1])
    assert (done.failure, by(done)) in [("closed", {"local"}), ("unreachable", {"local"})]
    expected.check(1, done)
    assert server.process.wait(10) == -signal.SIGKILL


def test_server_killed_between_requests_and_started_again(
    tiny_bundle: Path, images: NDArray[np.uint8], expected: References
) -> None:
    (port,) = free_ports(1)
    with running_server(tiny_bundle, port=port) as first, edge(tiny_bundle, first.url, SPLIT, Manners()) as one:
        found = [one.answer(images[0])]
        first.process.kill()
        first.process.wait()
        found.append(one.answer(images[1]))
        assert found[1].failure in ("closed", "unreachable")
        found.append(one.answer(images[2]))
        assert found[2].split == "s09"
        with running_server(tiny_bundle, port=port) as second:
            assert back(one)
            found.append(one.answer(images[3]))
            assert counts(second) == {"answered": 1}
    for i, done in enumerate(found):
        expected.check(i, done)
    assert [by(done) for done in found] == [{"server"}, {"local"}, {"local"}, {"server"}]


def test_server_hangs(tiny_bundle: Path, server: Running, images: NDArray[np.uint8], expected: References) -> None:
    with edge(tiny_bundle, server.url, SPLIT, Manners(deadline_s=1.0)) as one:
        assert by(one.answer(images[0])) == {"server"}
        server.process.send_signal(signal.SIGSTOP)
        try:
            hung = one.answer(images[1])
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert (hung.failure, by(hung)) == ("timeout", {"local"})
        assert hung.total_ns < 10e9  # the deadline and what a busy machine adds; the request alone may take 30 s
        expected.check(1, hung)
        assert back(one)
        done = one.answer(images[2])
        assert by(done) == {"server"}
        expected.check(2, done)
    # The kernel had taken the request meanwhile; whether it was computed is open, that nobody else got it is not.
    assert counts(server)["answered"] in (2, 3)


def test_server_started_again_with_another_bundle(
    tiny_bundle: Path, images: NDArray[np.uint8], expected: References, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_bundle, other)
    write_manifest(other, dataclasses.replace(load_bundle(other), notes=("another build",)))
    (port,) = free_ports(1)
    with running_server(tiny_bundle, port=port) as first, edge(tiny_bundle, first.url, SPLIT, Manners()) as one:
        assert by(one.answer(images[0])) == {"server"}
        first.process.kill()
        first.process.wait()
        with running_server(other, port=port) as second:
            end = time.monotonic() + 60
            failures = []
            # Who notices first is open: a request, or the probes, which may also find nobody before they find another.
            while "pair" not in failures and time.monotonic() < end:
                done = one.answer(images[1])
                failures.append(done.failure)
                assert by(done) == {"local"}
                expected.check(1, done)
                time.sleep(0.02)
            assert failures[-1] == "pair"
            assert set(failures) <= {"pair", "closed", "unreachable"}
            assert counts(second) in ({"answered": 0}, {"answered": 0, "pair": 1})
            time.sleep(0.5)
            assert not one.watch.available  # it is well, and of no use
            assert one.watch.reason == "pair"
        with running_server(tiny_bundle, port=port):
            assert back(one)
            assert by(one.answer(images[2])) == {"server"}


def test_server_reads_slowly(
    tiny_bundle: Path, server: Running, images: NDArray[np.uint8], expected: References
) -> None:
    free = threading.Event()

    def trickle(data: bytes) -> bytes:
        free.wait(60)
        return data

    with fault_proxy(server.port) as proxy, edge(tiny_bundle, proxy.url, SPLIT, Manners(deadline_s=1.0)) as one:
        proxy.up = post(trickle)
        done = one.answer(images[0])
        free.set()
        assert (done.failure, by(done)) == ("timeout", {"local"})
        assert done.total_ns < 10e9  # the deadline and what a busy machine adds; the request alone may take 30 s
        expected.check(0, done)
        with edge(tiny_bundle, server.url, SPLIT, Manners()) as another:
            assert by(another.answer(images[1])) == {"server"}


@pytest.mark.parametrize("n_bytes", [0, 1, 40, 200])
def test_reply_cut_short(
    tiny_bundle: Path, server: Running, images: NDArray[np.uint8], expected: References, n_bytes: int
) -> None:
    with fault_proxy(server.port) as proxy:
        left = [n_bytes]

        def cut(data: bytes) -> bytes:
            if b"server-timing" not in data.lower():
                return data
            proxy.down = end
            return data[: left[0]]

        def end(data: bytes) -> bytes:
            raise CutError

        with edge(tiny_bundle, proxy.url, SPLIT, Manners(deadline_s=2.0)) as one:
            proxy.down = cut
            done = one.answer(images[0])
    assert done.failure in ("closed", "timeout")  # nothing more came, or the end of the connection came
    assert by(done) == {"local"}
    expected.check(0, done)
    assert counts(server) == {"answered": 1}


@pytest.mark.parametrize("times", [1, 2])
def test_one_bit_of_the_payload_flipped(
    tiny_bundle: Path, server: Running, images: NDArray[np.uint8], expected: References, times: int
) -> None:
    left = [times]

    def flip(data: bytes) -> bytes:
        if not data.startswith(b"POST") or left[0] == 0:
            return data
        left[0] -= 1
        return data[:-100] + bytes([data[-100] ^ 16]) + data[-99:]

    with fault_proxy(server.port) as proxy, edge(tiny_bundle, proxy.url, SPLIT, Manners()) as one:
        proxy.up = flip
        done = one.answer(images[0])
        assert one.watch.available  # one bad message says nothing of the server
    expected.check(0, done)
    if times == 1:
        assert (done.failure, by(done)) == (None, {"server"})
        assert counts(server) == {"answered": 1, "corrupt": 1}
    else:
        assert (done.failure, by(done)) == ("corrupt", {"local"})
        assert counts(server) == {"answered": 0, "corrupt": 2}


def test_one_bit_of_the_reply_flipped(
    tiny_bundle: Path, server: Running, images: NDArray[np.uint8], expected: References
) -> None:
    def flip(data: bytes) -> bytes:
        return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]

    with fault_proxy(server.port) as proxy, edge(tiny_bundle, proxy.url, SPLIT, Manners()) as one:
        first = once(flip)
        proxy.down = lambda data: first(data) if b"server-timing" in data.lower() else data
        done = one.answer(images[0])
    assert (done.failure, by(done)) == (None, {"server"})
    expected.check(0, done)
    assert counts(server) == {"answered": 2}


WRONG = [
    ("split", lambda to: dataclasses.replace(to, split="s05"), "pair"),
    ("bundle", lambda to: dataclasses.replace(to, bundle="0" * 64), "pair"),
    ("model", lambda to: dataclasses.replace(to, model="tiny-s77"), "not_found"),
    (
        "shape",
        lambda to: dataclasses.replace(to, inputs=(dataclasses.replace(to.inputs[0], shape=(1, 2)),)),
        "malformed",
    ),
    (
        "type",
        lambda to: dataclasses.replace(to, inputs=(dataclasses.replace(to.inputs[0], dtype="float32"),)),
        "malformed",
    ),
]


@pytest.mark.parametrize(("what", "change", "reason"), WRONG, ids=[what for what, _, _ in WRONG])
def test_wrong_requests(
    tiny_bundle: Path, server: Running, bundle: Bundle, what: str, change: Callable[[Any], Any], reason: str
) -> None:
    to = change(interface(bundle, bundle_sha256(tiny_bundle), bundle.split(SPLIT)))
    tensors = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in to.inputs}
    with Link(server.url) as link, pytest.raises(LinkError) as caught:
        Sender(link).ask(to, [spec.name for spec in to.outputs], tensors, "none")
    assert caught.value.reason == reason
    model = "" if what == "model" else f"tiny-{SPLIT}"
    assert counts(server, model) == {"answered": 0, reason: 1}


def test_overloaded_is_told_from_gone(tiny_bundle: Path, images: NDArray[np.uint8], expected: References) -> None:
    """A queue of one and eight boards at once: whoever is refused answers alone, and asks again later."""
    with running_server(tiny_bundle, queue=1, workers=1) as server:
        refused: list[Answered] = []
        done: list[tuple[int, Answered]] = []

        def board() -> None:
            with edge(tiny_bundle, server.url, "s00", Manners()) as one:
                for number in range(20):
                    what = one.answer(images[number])
                    done.append((number, what))
                    if what.failure is not None and what.split == "s00":  # asked, not left alone for a while
                        refused.append(what)

        boards = [threading.Thread(target=board) for _ in range(8)]
        for one in boards:
            one.start()
        for one in boards:
            one.join()
        found = counts(server, "tiny-s00")
    assert len(done) == 160
    for number, what in done:
        expected.check(number, what)
    assert {what.failure for what in refused} <= {"overloaded"}
    assert len(refused) == found.get("overloaded", 0)
    assert found["answered"] == sum(by(what) == {"server"} for _, what in done)


@pytest.mark.parametrize(("given", "reason"), [(None, "unauthorised"), ("wrong", "unauthorised"), ("s3cret", None)])
def test_token(
    tiny_bundle: Path, images: NDArray[np.uint8], tmp_path: Path, given: str | None, reason: str | None
) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    with (
        running_server(tiny_bundle, token_file=str(token)) as server,
        edge(tiny_bundle, server.url, SPLIT, Manners(), security=Security(given)) as one,
    ):
        done = one.answer(images[0])
    assert (done.failure, by(done)) == (reason, {"local"} if reason else {"server"})


def certificate(folder: Path, **options: Any) -> dict[str, str]:
    """A server's certificate for loopback, and the authority that signed it."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", **options)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    (folder / "chain.pem").write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(folder / "key.pem")
    return {"tls_cert": str(folder / "chain.pem"), "tls_key": str(folder / "key.pem")}


@pytest.mark.parametrize("state", ["good", "expired", "unknown authority"])
def test_certificate(
    tiny_bundle: Path, images: NDArray[np.uint8], expected: References, tmp_path: Path, state: str
) -> None:
    past = {"not_after": datetime.datetime(2021, 1, 1, tzinfo=datetime.timezone.utc)} if state == "expired" else {}
    options = certificate(tmp_path, **past)
    trusted = Security(None, None if state == "unknown authority" else tmp_path / "ca.pem")
    with running_server(tiny_bundle, **options) as server:
        assert server.url.startswith("https://")
        with edge(tiny_bundle, server.url, SPLIT, Manners(), security=trusted) as one:
            done = one.answer(images[0])
            again = one.answer(images[1])
    wanted = (None, {"server"}) if state == "good" else ("certificate", {"local"})
    assert (done.failure, by(done)) == wanted
    expected.check(0, done)
    expected.check(1, again)


# Rows that need the whole board's program: the network between two namespaces, the clock, the disk.


def run_argv(bundle: Path, samples: Path, url: str, out: Path, *more: str) -> list[str]:
    argv = [sys.executable, "-m", "runtime_edge", "run", "--bundle", str(bundle), "--data", str(samples)]
    return [*argv, "--split", SPLIT, "--server", url, "--out", str(out), *more]


@contextlib.contextmanager
def far_server(network: TunNetwork, bundle: Path) -> Iterator[str]:
    """A server on the far side; gives its URL."""
    argv = [
        sys.executable,
        "-m",
        "splitboard.cli.main",
        "serve",
        str(bundle),
        "--host",
        network.far_host,
        "--port",
        "0",
        "--json",
    ]
    process = network.start_far(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        yield str(json.loads(process.stdout.readline())["url"])
    finally:
        process.kill()
        process.communicate()


def answers(out: Path) -> list[dict[str, Any]]:
    """The lines of the images, which must be whole and in order."""
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    found = [line for line in lines if "number" in line]
    assert [line["number"] for line in found] == list(range(len(found)))
    assert "tasks" in lines[-1]
    assert lines[-1]["n"] == len(found)
    return found


def wait_for_lines(process: subprocess.Popen[str], out: Path, count: int) -> None:
    """Until the run has written so many."""
    while not out.is_file() or len(out.read_text().splitlines()) < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def check_lines(found: list[dict[str, Any]], expected: References) -> None:
    """Every image's own answer, from whomever."""
    for line in found:
        for task, output in line["outputs"].items():
            wanted = expected.server[line["split"]] if output["by"] == "server" else expected.local
            scores = wanted[task][line["number"] % 20]
            assert output["label"] is not None
            powers = np.exp(np.asarray(scores) - max(scores))
            np.testing.assert_allclose(output["scores"], powers / powers.sum(), rtol=1e-5)


needs_tun = pytest.mark.skipif(TunNetwork.missing() is not None, reason=str(TunNetwork.missing()))


@pytest.fixture(scope="module")
def twenty(images: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The twenty images, fifteen times over."""
    from splitboard.contract.samples import save_samples

    path = tmp_path_factory.mktemp("twenty") / "images.npz"
    save_samples(path, np.concatenate([images] * 15), {})
    return path


@needs_tun
def test_link_down_for_ten_seconds(tiny_bundle: Path, twenty: Path, expected: References, tmp_path: Path) -> None:
    up, down = Conditions(20e6, 0.005), Conditions(0.0, 0.005)
    with TunNetwork() as network, far_server(network, tiny_bundle) as url:
        network.play(constant(20e6, 0.005))
        argv = run_argv(tiny_bundle, twenty, url, tmp_path / "out.jsonl", "--rate", "14", "--deadline", "1000")
        done = network.start_near(argv, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        wait_for_lines(done, tmp_path / "out.jsonl", 14)
        network.play(Trace((0.0, 10.0), (down, up), 1000.0))
        assert done.wait(120) == 0, done.communicate()[1]
        done.communicate()
    found = answers(tmp_path / "out.jsonl")
    assert len(found) == 300
    check_lines(found, expected)
    who = ["".join(sorted({output["by"] for output in line["outputs"].values()})) for line in found]
    assert set(who) == {"server", "local"}
    runs = [(one, len(list(group))) for one, group in itertools.groupby(who)]
    # 140 images in the ten seconds, fewer where the machine is slow; one that came too late on its own does not count.
    assert max(length for one, length in runs if one == "local") >= 50, runs
    assert who[:12].count("server") >= 10, runs
    assert who[-20:].count("server") >= 15, runs
    assert max(line["total_ns"] for line in found) < 5e9  # nobody waited for the link


@needs_tun
def test_five_percent_loss(tiny_bundle: Path, twenty: Path, expected: References, tmp_path: Path) -> None:
    with TunNetwork() as network, far_server(network, tiny_bundle) as url:
        network.play(constant(20e6, 0.005, 0.05))
        argv = run_argv(tiny_bundle, twenty, url, tmp_path / "out.jsonl")
        done = network.start_near(argv, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        assert done.wait(120) == 0, done.communicate()[1]
        done.communicate()
    found = answers(tmp_path / "out.jsonl")
    assert len(found) == 300
    check_lines(found, expected)
    assert sum(line["failure"] is None for line in found) >= 290


def faketime_library() -> Path | None:
    return next(Path("/usr/lib").glob("*-linux-gnu/faketime/libfaketime.so.1"), None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loop", [[], ["--pipeline"]])
def test_a_signal_ends_a_run_with_its_records_written(
    tiny_bundle: Path, twenty: Path, server: Running, tmp_path: Path, number: int, loop: list[str]
) -> None:
    argv = run_argv(tiny_bundle, twenty, server.url, tmp_path / "out.jsonl", "--rate", "50", *loop)
    process = subprocess.Popen(argv, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    wait_for_lines(process, tmp_path / "out.jsonl", 20)
    process.send_signal(number)
    assert process.wait(60) == 130
    process.communicate()
    found = answers(tmp_path / "out.jsonl")
    assert 19 <= len(found) < 300
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[-1])["interrupted"] is True
    assert counts(server)["answered"] == len(found)  # nothing was asked whose answer was not written


@pytest.mark.skipif(faketime_library() is None, reason="libfaketime is not installed")
def test_clock_set_back_an_hour(
    tiny_bundle: Path, twenty: Path, server: Running, expected: References, tmp_path: Path
) -> None:
    """Only the wall clock moves, as when a time server is heard of for the first time."""
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    environment = {
        **os.environ,
        "LD_PRELOAD": str(faketime_library()),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    argv = run_argv(tiny_bundle, twenty, server.url, tmp_path / "out.jsonl", "--rate", "100", "--deadline", "10000")
    process = subprocess.Popen(argv, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for_lines(process, tmp_path / "out.jsonl", 100)
    clock.write_text("-3600\n")
    assert process.wait(120) == 0, process.communicate()[1]
    process.communicate()
    found = answers(tmp_path / "out.jsonl")
    assert len(found) == 300
    check_lines(found, expected)
    assert all(0 < line["total_ns"] < 10e9 for line in found)
    assert {output["by"] for line in found for output in line["outputs"].values()} == {"server"}


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of a few kilobytes needs root")
def test_disk_full_while_answers_are_written(tiny_bundle: Path, twenty: Path, server: Running, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=True)
    try:
        out = disk / "out.jsonl"
        done = subprocess.run(
            run_argv(tiny_bundle, twenty, server.url, out), cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        lines = out.read_text().splitlines(keepends=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert done.returncode == 3
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said == [f'error: cannot go on writing "{out}": No space left on device; it holds every answer until now']
    assert all(line.endswith("\n") for line in lines)
    numbers = [json.loads(line)["number"] for line in lines[1:]]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 10
    # The server answered the one that could not be written any more, and none after it.
    assert counts(server)["answered"] == len(numbers) + 1
