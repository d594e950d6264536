from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import free_ports, running_server

from runtime_edge.link.connection import send_all
from runtime_edge.link.link import Link
from splitboard.contract.bundle import TensorSpec, bundle_sha256, load_bundle
from splitboard.contract.errors import UserError
from splitboard.contract.forms import RequestForm
from splitboard.contract.interface import Interface, interface
from splitboard.contract.wire import Message, decode_reply

TO = Interface(
    "tiny-s03",
    "ab" * 32,
    "s03",
    (TensorSpec("x", (1, 4), "int8", "NC"),),
    (TensorSpec("shape", (1, 2), "float32", "NC"),),
)
MESSAGE = RequestForm(TO, [spec.name for spec in TO.outputs]).encode({"x": np.zeros((1, 4), np.int8)}, 10**7)
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nserver-timing: here\r\n\r\nhello"


class Scripted:
    """A server that answers each request of each connection with the next bytes of its script.

    A connection's answers are a list; after the last one the connection is closed.
    """

    def __init__(self, *connections: list[bytes], byte_by_byte: bool = False) -> None:
        self.requests: list[bytes] = []
        self.n_connections = 0
        self._connections = connections
        self._byte_by_byte = byte_by_byte
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for answers in self._connections:
            connection = self._listener.accept()[0]
            self.n_connections += 1
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for answer in answers:
                    self.requests.append(read_request(connection))
                    pieces = [answer[i : i + 1] for i in range(len(answer))] if self._byte_by_byte else [answer]
                    for piece in pieces:
                        connection.sendall(piece)
        self._listener.close()  # whoever comes now is refused

    def join(self) -> None:
        self._thread.join(20)


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(re.findall(rb"\r\nContent-Length: (\d+)", head)[0])
    while len(body) < length:
        body += connection.recv(1 << 16)
    return head + b"\r\n\r\n" + body


def test_the_request_is_what_the_protocol_asks_for() -> None:
    server = Scripted([OK])
    with Link(server.url) as link:
        reply = link.infer(TO, MESSAGE)
        assert (bytes(reply.body), reply.headers["server-timing"]) == (b"hello", "here")
    server.join()
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.decode().split("\r\n") == [
        "POST /v2/models/tiny-s03/infer HTTP/1.1",
        f"Host: {server.url[7:]}",
        "Content-Type: application/octet-stream",
        f"Inference-Header-Content-Length: {len(MESSAGE.header)}",
        f"Content-Length: {MESSAGE.n_bytes}",
    ]
    assert body == MESSAGE.header + bytes(4)


def test_one_connection_for_all_requests_even_byte_by_byte() -> None:
    server = Scripted([OK] * 3, byte_by_byte=True)
    with Link(server.url) as link:
        for _ in range(3):
            assert bytes(link.infer(TO, MESSAGE).body) == b"hello"
    server.join()
    assert server.n_connections == 1


def test_a_kept_connection_that_was_closed_is_opened_once_more() -> None:
    server = Scripted([OK], [OK])
    with Link(server.url) as link:
        link.infer(TO, MESSAGE)
        time.sleep(0.1)  # the end of the first connection arrives
        assert bytes(link.infer(TO, MESSAGE).body) == b"hello"
    server.join()
    assert (server.n_connections, len(server.requests)) == (2, 2)


def test_only_once() -> None:
    server = Scripted([OK], [b""], [OK])
    with Link(server.url) as link:
        link.infer(TO, MESSAGE)
        with pytest.raises(UserError, match="the connection was closed before it"):
            link.infer(TO, MESSAGE)
        assert server.n_connections == 2
        assert bytes(link.infer(TO, MESSAGE).body) == b"hello"


def test_a_request_is_not_repeated_once_a_byte_of_the_reply_is_there() -> None:
    server = Scripted([OK, OK[:-1]], [OK])
    with Link(server.url) as link:
        link.infer(TO, MESSAGE)
        with pytest.raises(UserError, match="the connection was closed inside it"):
            link.infer(TO, MESSAGE)
        assert server.n_connections == 1


def test_connection_close_is_obeyed() -> None:
    answer = OK.replace(b"server-timing: here", b"connection: Close")
    server = Scripted([answer], [answer])
    with Link(server.url) as link:
        link.infer(TO, MESSAGE)
        link.infer(TO, MESSAGE)
    server.join()
    assert server.n_connections == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "it starts with 'SSH-2.0-OpenSSH_9.2'"),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", "it starts with 'HTTP/1.0 200 OK'"),
        (b"HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n", "it starts with"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "it has no Content-Length"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n0\r\n\r\n", "no Content-Length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello", "must be a number of bytes"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello", "must be a number of bytes"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello", "malformed or there twice"),
        (b"HTTP/1.1 200 OK\r\ncontent-length : 5\r\n\r\nhello", "malformed or there twice"),
        (b"HTTP/1.1 200 OK\r\n folded\r\ncontent-length: 5\r\n\r\nhello", "malformed or there twice"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", "more than a reply of this model can have"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhello", "1 bytes follow it"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20000, "its headers are longer than 16384 bytes"),
        (b"HTTP/1.1 200", "the connection was closed inside it"),
        (b"", "the connection was closed before it"),
    ],
)
def test_a_reply_that_is_not_as_agreed(answer: bytes, words: str) -> None:
    server = Scripted([answer])
    with Link(server.url) as link, pytest.raises(UserError) as caught:
        link.infer(TO, MESSAGE)
    assert f'no valid reply from the server at "{server.url}": ' in caught.value.message
    assert words in caught.value.message
    assert caught.value.tries


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": "there is no model"}', 'refused with status "503": there is no model'),
        (b"Service \x1b[31mUnavailable", 'refused with status "503": Service [31mUnavailable'),
        (b"[" * 60000, "refused with status"),
        (b"\xff\xfe", "refused with status"),
    ],
)
def test_a_refusal_is_told_in_the_servers_words(body: bytes, words: str) -> None:
    server = Scripted([b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: %d\r\n\r\n" % len(body) + body])
    with Link(server.url) as link, pytest.raises(UserError) as caught:
        link.infer(TO, MESSAGE)
    assert words in caught.value.message


def test_a_silent_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Link(url, timeout_s=0.2) as link, pytest.raises(UserError, match=r'did not answer within "0\.2" s'):
            link.infer(TO, MESSAGE)


def test_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with Link(url) as link, pytest.raises(UserError, match=f'no server at "{url}"') as caught:
        link.infer(TO, MESSAGE)
    assert "splitboard serve BUNDLE" in caught.value.tries


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000",
        "ftp://a:1",
        "http://",
        "http://a:99999",
        "http://a:b",
        "http://a/v2",
        "http://u@a",
        "http://[::1",
    ],
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UserError, match="is not an address of a server"):
        Link(url)


def test_pieces_arrive_whole_when_the_kernel_takes_them_in_parts() -> None:
    left, right = socket.socketpair()
    random = np.random.default_rng(2)
    pieces = [random.bytes(size) for size in (10, 300_000, 1, 700_000, 3)]
    received = bytearray()

    def read() -> None:
        while piece := right.recv(4099):
            received.extend(piece)
            if len(received) < 40_000:
                time.sleep(0.005)

    reader = threading.Thread(target=read)
    with left, right:
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        left.settimeout(20)
        reader.start()
        send_all(left, [memoryview(piece) for piece in pieces])
        left.shutdown(socket.SHUT_WR)
        reader.join(20)
        assert bytes(received) == b"".join(pieces)


class Trickle:
    """A socket whose kernel takes a given number of bytes at a time."""

    def __init__(self, sizes: Iterator[int]) -> None:
        self.sizes, self.sent = sizes, b""

    def sendmsg(self, pieces: list[memoryview]) -> int:
        whole = b"".join(pieces)[: next(self.sizes)]
        self.sent += whole
        return len(whole)


@pytest.mark.parametrize("size", range(1, 12))
def test_a_partial_send_at_any_border(size: int) -> None:
    socket_like: Any = Trickle(iter([size] * 20))
    send_all(socket_like, [memoryview(b"abc"), memoryview(b"de"), memoryview(b"fghijk")])
    assert socket_like.sent == b"abcdefghijk"


def test_a_server_that_dies_and_comes_back(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    to = interface(bundle, bundle_sha256(tiny_bundle), bundle.splits[0])
    request: Message = RequestForm(to, [spec.name for spec in to.outputs]).encode(
        {"image": np.zeros((1, 32, 32, 1), np.uint8)}, 10**7
    )

    def scores(link: Link) -> list[float]:
        reply = link.infer(to, request)
        found: list[float] = decode_reply(reply.body, reply.headers["inference-header-content-length"], to)["shape"][
            0
        ].tolist()
        return found

    (port,) = free_ports(1)
    with running_server(tiny_bundle, port=port) as running:
        link = Link(running.url)
        first = scores(link)
        running.process.kill()
        running.process.wait()
        with pytest.raises(UserError, match="no server at"):
            scores(link)
        with running_server(tiny_bundle, port=port):
            assert scores(link) == first
        link.close()


def test_a_bundle_that_the_server_does_not_have(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    to = interface(bundle, "0" * 64, bundle.splits[0])
    with running_server(tiny_bundle) as running, Link(running.url) as link:
        with pytest.raises(UserError, match='refused with status "409": tiny-s00 is of bundle'):
            link.infer(
                to,
                RequestForm(to, [spec.name for spec in to.outputs]).encode(
                    {"image": np.zeros((1, 32, 32, 1), np.uint8)}, 10**7
                ),
            )
        other = interface(bundle, bundle_sha256(tiny_bundle), bundle.splits[0])
        link.infer(
            other,
            RequestForm(other, [spec.name for spec in other.outputs]).encode(
                {"image": np.zeros((1, 32, 32, 1), np.uint8)}, 10**7
            ),
        )
