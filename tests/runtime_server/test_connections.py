"""What a client may do to the server, over real sockets, to a server in a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import INFER, ask, raw_request, refusal, remote_request, scores, until_draining
from prometheus_client.parser import text_string_to_metric_families
from serving import Running, running_server

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
HURRIED = {"head_s": 0.5, "body_s": 0.5, "slowest_bytes_per_s": 1e6, "idle_s": 1.5, "write_s": 1.0, "linger_s": 0.5}


@pytest.fixture(scope="module")
def hurried(tiny_bundle: Path) -> Iterator[Running]:
    with running_server(tiny_bundle, limits=HURRIED) as running:
        yield running


@pytest.fixture(scope="module")
def slow(slow_bundle: Path) -> Iterator[Running]:
    with running_server(slow_bundle, workers=1, queue=64) as running:
        yield running


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), 30)


def answers(connection: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """That many answers from one connection, by the standard library's parser; what follows the last is left unread."""
    file = connection.makefile("rb")
    found = []
    for _ in range(count):
        status = int(file.readline().split()[1])
        headers = http.client.parse_headers(file)
        found.append((status, file.read(int(headers["Content-Length"]))))
    return found


def memory_bytes(server: Running) -> int:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def count(server: Running, name: str, **labels: str) -> float:
    """A figure of `/metrics`, read by Prometheus' own parser; summed over the labels that are not given."""
    text = ask(server.port, "GET", "/metrics")[2].decode()
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples if one.name == name]
    return sum(one.value for one in samples if labels.items() <= one.labels.items())


def test_requests_that_follow_without_waiting_are_answered_in_order(server: Running, tiny_bundle: Path) -> None:
    requests = []
    for number in range(20):
        body, headers = remote_request(tiny_bundle)
        requests += [raw_request(body.replace(b'"id": "one"', b'"id": "%03d"' % number), headers), LIVE]
    with connect(server) as connection:
        threading.Thread(target=connection.sendall, args=(b"".join(requests),)).start()
        found = answers(connection, 40)
    assert [status for status, _ in found] == [200] * 40
    assert [body.partition(b'"id":"')[2][:3] for _, body in found[::2]] == [b"%03d" % number for number in range(20)]
    assert {body for _, body in found[1::2]} == {b'{"live": true}'}


def test_a_request_may_come_byte_by_byte(server: Running, tiny_bundle: Path) -> None:
    whole = raw_request(*remote_request(tiny_bundle))
    with connect(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(len(whole)):
            connection.sendall(whole[position : position + 1])
        ((status, _),) = answers(connection, 1)
    assert status == 200


def test_a_body_is_asked_for_where_the_client_waits_for_that(server: Running, tiny_bundle: Path) -> None:
    body, headers = remote_request(tiny_bundle)
    head, _, rest = raw_request(body, {**headers, "Expect": "100-continue"}).partition(b"\r\n\r\n")
    with connect(server) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(rest)
        ((status, _),) = answers(connection, 1)
    assert status == 200
    with connect(server) as connection:  # refused at its head: the body is never asked for
        connection.sendall(head.replace(b"tiny-s00", b"tiny-s77") + b"\r\n\r\n")
        assert connection.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 404"


def test_an_old_client_is_answered_and_its_connection_closed(server: Running) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        said = b"".join(iter(lambda: connection.recv(4096), b""))
    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert said.endswith(b'{"live": true}')


def test_an_answer_to_head_has_no_body(server: Running) -> None:
    with connect(server) as connection:
        connection.sendall(b"HEAD /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        said = b"".join(iter(lambda: connection.recv(4096), b""))
    assert said.startswith(b"HTTP/1.1 405")
    assert said.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("rubbish", "status"),
    [
        (b"\x00" * 1000, 400),
        (b"\r\n\r\n", 400),
        (bytes(range(256)) * 400, 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600) + b"\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /" + b"a" * 20_000, 400),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000, 400),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", 400),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nContent-Length: -4\r\n\r\nabcd", 400),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nContent-Length: 0x4\r\n\r\nabcd", 400),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\nabcd", 400),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n", 400),
        (b"GET \xff\xfe HTTP/1.1\r\n\r\n", 400),
        (b"GET /%ff%fe%00 HTTP/1.1\r\n\r\n", 404),
        (b"GET http://other/v2 HTTP/1.1\r\n\r\n", 404),
    ],
)
def test_garbage_is_refused_and_the_next_client_served(server: Running, rubbish: bytes, status: int) -> None:
    with connect(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(rubbish)
        ((found, body),) = answers(connection, 1)
    assert found == status
    assert refusal(body) == {400: "malformed", 404: "not_found"}[status]
    assert ask(server.port, "GET", "/v2/health/live")[0] == 200


def test_64_mb_are_refused_without_being_kept(server: Running) -> None:
    assert ask(server.port, "GET", "/v2/health/live")[0] == 200
    before = memory_bytes(server)
    for _ in range(3):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.connect()
        with contextlib.suppress(ConnectionError):
            connection.request("POST", INFER, bytes(64 << 20), {"Inference-Header-Content-Length": "9"})
        reply = connection.getresponse()
        assert (reply.status, refusal(reply.read())) == (413, "too_large")
        connection.close()
    assert memory_bytes(server) - before < 8 << 20


def test_a_slow_head_and_a_slow_body_are_given_up(hurried: Running, tiny_bundle: Path) -> None:
    whole = raw_request(*remote_request(tiny_bundle))
    for n_sent, words in ((20, "the head did not come"), (len(whole) - 10, "came in time")):
        with connect(hurried) as connection:
            connection.sendall(whole[:n_sent])
            ((status, body),) = answers(connection, 1)
        assert (status, refusal(body)) == (408, "slow")
        assert words in json.loads(body)["error"]


def test_dribbling_does_not_extend_the_time_for_a_head(hurried: Running) -> None:
    with connect(hurried) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        said = b""
        for letter in b"GET /" + b"a" * 300:
            connection.settimeout(0.02)
            with contextlib.suppress(socket.timeout, ConnectionError):
                connection.sendall(bytes([letter]))
                said += connection.recv(4096)
            if said:
                break
    assert said.startswith(b"HTTP/1.1 408")


def test_a_connection_without_requests_is_closed(hurried: Running) -> None:
    with connect(hurried) as silent, connect(hurried) as used:
        used.sendall(LIVE)
        assert [status for status, _ in answers(used, 1)] == [200]
        assert (silent.recv(10), used.recv(10)) == (b"", b"")


def test_a_client_that_never_reads_is_closed_and_costs_no_memory(hurried: Running) -> None:
    before = memory_bytes(hurried)
    with connect(hurried) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        requests = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000_000
        with pytest.raises((ConnectionError, socket.timeout)):
            connection.sendall(requests)
    assert memory_bytes(hurried) - before < 16 << 20
    assert ask(hurried.port, "GET", "/v2/health/live")[0] == 200


def test_more_connections_than_allowed_are_refused(tiny_bundle: Path) -> None:
    with running_server(tiny_bundle, limits={"connections": 8}) as running, contextlib.ExitStack() as stack:
        for _ in range(8):
            connection = stack.enter_context(connect(running))
            connection.sendall(LIVE)
            assert [status for status, _ in answers(connection, 1)] == [200]
        with connect(running) as ninth:
            ((status, body),) = answers(ninth, 1)
        assert (status, refusal(body)) == (503, "overloaded")
        stack.close()
        for _ in range(300):  # the server notices a moment later
            status = ask(running.port, "GET", "/v2/health/live")[0]
            if status == 200:
                break
            time.sleep(0.1)
        assert status == 200


def test_bodies_on_their_way_are_bounded_together(tiny_bundle: Path) -> None:
    whole = raw_request(*remote_request(tiny_bundle))
    with running_server(tiny_bundle, limits={"arriving_bytes": 3 * len(whole)}) as running:
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(connect(running)) for _ in range(10)]
            for connection in connections:
                connection.sendall(whole[:-300])
                time.sleep(0.02)
                connection.sendall(whole[-300:-1])
            time.sleep(0.2)
            statuses = []
            for connection in connections:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(whole[-1:])
                statuses += [status for status, _ in answers(connection, 1)]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 3
        assert ask(running.port, "POST", INFER, *remote_request(tiny_bundle))[0] == 200


@pytest.mark.parametrize("beginning", [b"", b"GET /v2 HT", b"body"])
def test_ten_thousand_half_open_connections_hurt_nobody(tiny_bundle: Path, beginning: bytes) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 10_000
    if hard < wanted + 500:
        pytest.skip(f"this system lets a process have {hard} files only")
    if beginning == b"body":
        beginning = raw_request(*remote_request(tiny_bundle))[:400]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with (
            running_server(tiny_bundle, limits={"head_s": 60, "body_s": 60}) as running,
            contextlib.ExitStack() as stack,
        ):
            before = memory_bytes(running)
            for _ in range(wanted):
                connection = stack.enter_context(connect(running))
                if beginning:
                    connection.sendall(beginning)
            for _ in range(5):
                status, headers, reply = ask(running.port, "POST", INFER, *remote_request(tiny_bundle))
                assert (status, len(scores(headers, reply))) == (200, 2)
            assert (memory_bytes(running) - before) / wanted < 16 << 10
            running.process.send_signal(signal.SIGKILL)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_200_at_once_on_a_queue_of_64(slow: Running, slow_bundle: Path) -> None:
    before = {name: count(slow, name) for name in ("splitboard_requests_total", "splitboard_failures_total")}
    found: Counter[tuple[int, str]] = Counter()
    for n_times in range(1, 6):  # on a busy machine the requests may come so slowly that the queue never fills
        found += two_hundred(slow, slow_bundle)
        assert found.total() == 200 * n_times
        if found[503, "overloaded"]:
            break
    assert set(found) == {(200, ""), (503, "overloaded")}
    assert found[200, ""] >= 65  # those that waited, and the one whose turn it was
    assert count(slow, "splitboard_requests_total") - before["splitboard_requests_total"] == found[200, ""]
    refused = count(slow, "splitboard_failures_total", reason="overloaded", model="tiny-s00")
    assert refused == found[503, "overloaded"]
    assert count(slow, "splitboard_failures_total") - before["splitboard_failures_total"] == refused
    assert count(slow, "splitboard_queue_depth") == 0


def two_hundred(slow: Running, folder: Path) -> Counter[tuple[int, str]]:
    """What became of so many requests at once."""
    body, headers = remote_request(folder)
    found: Counter[tuple[int, str]] = Counter()
    ready = threading.Barrier(200)

    def go() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", slow.port, timeout=120)
        connection.connect()
        ready.wait(120)
        connection.request("POST", INFER, body, headers)
        reply = connection.getresponse()
        text = reply.read()
        found[(reply.status, "" if reply.status == 200 else refusal(text))] += 1
        connection.close()

    threads = [threading.Thread(target=go) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_an_expired_request_is_refused_and_not_computed(slow: Running, slow_bundle: Path) -> None:
    before = count(slow, "splitboard_requests_total")
    n_long = 40  # so many that the last one waits, however slowly they are sent
    long, short = (raw_request(*remote_request(slow_bundle, timeout=us)) for us in (60_000_000, 1000))
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(slow)) for _ in range(n_long + 1)]
        for connection in connections[:n_long]:
            connection.sendall(long)
        connections[n_long].sendall(short)
        statuses = [answers(connection, 1)[0] for connection in connections]
    assert [status for status, _ in statuses] == [200] * n_long + [504]
    assert refusal(statuses[n_long][1]) == "expired"
    assert count(slow, "splitboard_requests_total") - before == n_long


def test_a_client_that_goes_away_while_it_waits_is_not_computed_for(slow: Running, slow_bundle: Path) -> None:
    before = count(slow, "splitboard_requests_total")
    whole = raw_request(*remote_request(slow_bundle))
    n_stay = 40  # so many that those who go wait until they have gone
    stays, goes = ([connect(slow) for _ in range(number)] for number in (n_stay, 20))
    for connection in stays:
        connection.sendall(whole)
    for connection in goes:
        connection.sendall(whole)
        connection.close()
    assert [answers(connection, 1)[0][0] for connection in stays] == [200] * n_stay
    for connection in stays:
        connection.close()
    while count(slow, "splitboard_queue_depth"):
        time.sleep(0.05)
    computed = count(slow, "splitboard_requests_total") - before
    assert n_stay <= computed < n_stay + 10, computed


def test_sigterm_with_60_in_flight(slow_bundle: Path) -> None:
    whole = raw_request(*remote_request(slow_bundle))
    with running_server(slow_bundle, workers=1) as running, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(running)) for _ in range(60)]
        late = stack.enter_context(connect(running))
        for connection in connections:
            connection.sendall(whole)
        # Until all have been read; of the last one may be that it is computed.
        while count(running, "splitboard_queue_depth") + count(running, "splitboard_requests_total") < 59:
            time.sleep(0.01)
        running.process.send_signal(signal.SIGTERM)
        until_draining(running.port)
        late.sendall(LIVE.replace(b"live", b"ready") + whole)
        assert ask(running.port, "POST", INFER, *remote_request(slow_bundle))[0] == 503  # a new connection, too
        assert [answers(connection, 1)[0][0] for connection in connections] == [200] * 60
        ((status, body),) = answers(late, 1)
        assert (status, json.loads(body)) == (503, {"ready": False})
        assert running.process.wait(30) == 0
        assert running.process.communicate() == ("", "")
