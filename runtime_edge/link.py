"""The link to the server: one kept-alive connection, one write per request, the reply received in place.

HTTP/1.1 by hand on the standard library's sockets. Two small writes with Nagle's algorithm on would cost
40 ms a round trip (delayed acknowledgement), so there is one ``sendmsg`` and ``TCP_NODELAY``.
"""

from __future__ import annotations

import json
import re
import socket
from types import TracebackType
from typing import Dict, NamedTuple, Optional, Sequence, Tuple, Type
from urllib.parse import quote, urlsplit

from splitboard.contract.errors import UserError
from splitboard.contract.interface import Interface, WireError
from splitboard.contract.wire import HEADER_LENGTH, Message, parse_length

TIMEOUT_S = 10.0
MAX_HEAD_BYTES = 1 << 14
MAX_REFUSAL_BYTES = 1 << 16
_END = b"\r\n\r\n"
_STATUS = re.compile(r"HTTP/1\.1 ([1-5][0-9]{2})(?: [\x20-\x7e]*)?", re.ASCII)
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e]*?)[ \t]*", re.ASCII)

_ONCE = ("content-length", HEADER_LENGTH.lower(), "server-timing")


class Reply(NamedTuple):
    """A reply with status 200.

    Attributes:
        headers: by name in lower case.
        body: a view that the next request overwrites.
    """

    headers: Dict[str, str]
    body: memoryview


class _ClosedError(Exception):
    """A kept-alive connection turned out closed before any byte of the reply."""


class _Head(NamedTuple):
    status: int
    headers: Dict[str, str]
    n_bytes: int


class Link:
    """A connection to one server; opened at the first request, reopened when the server closed it in between.

    Args:
        url: ``http://host:port``.
        timeout_s: of connecting and of every single read and write.
    """

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self._host, self._port = _address(url)
        self._authority = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        self._timeout_s = timeout_s
        self._socket: Optional[socket.socket] = None
        self._view = memoryview(bytearray(MAX_HEAD_BYTES + MAX_REFUSAL_BYTES))

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def infer(self, to: Interface, request: Message) -> Reply:
        """Sends one request and waits for its reply.

        Args:
            to: the model to ask.
            request: its body.

        Raises:
            UserError: no server, no answer in time, a refusal, or a reply that is not HTTP as agreed.
        """
        head = (
            f"POST /v2/models/{quote(to.model, safe='')}/infer HTTP/1.1\r\nHost: {self._authority}\r\n"
            f"Content-Type: application/octet-stream\r\n{HEADER_LENGTH}: {len(request.header)}\r\n"
            f"Content-Length: {request.n_bytes}\r\n\r\n"
        )
        n_bytes = MAX_HEAD_BYTES + max(to.max_reply_bytes, MAX_REFUSAL_BYTES)
        if len(self._view) < n_bytes:
            self._view = memoryview(bytearray(n_bytes))
        pieces = [memoryview(head.encode("ascii")), memoryview(request.header), *request.tensors]
        try:
            try:
                reply_head, body = self._exchange(pieces)
            except _ClosedError:
                self.close()
                reply_head, body = self._exchange(pieces)  # on a fresh connection, which never raises _ClosedError
        except BaseException:
            self.close()  # half of a reply may still be on its way
            raise
        if reply_head.headers.get("connection", "").lower() == "close":
            self.close()
        if reply_head.status != 200:
            raise UserError(f'the server at "{self.url}" refused with status "{reply_head.status}": {_words(body)}')
        return Reply(reply_head.headers, body)

    def _exchange(self, pieces: Sequence[memoryview]) -> Tuple[_Head, memoryview]:
        kept = self._socket is not None
        connection = self._connect()
        try:
            n_received = self._send_and_receive_first(connection, pieces)
            if n_received == 0 and kept:
                raise _ClosedError
            if n_received == 0:
                raise WireError(400, "the connection was closed before it")
            return self._receive_rest(connection, n_received)
        except socket.timeout as error:
            raise UserError(
                f'the server at "{self.url}" did not answer within "{self._timeout_s:g}" s', ["--timeout SECONDS"]
            ) from error
        except WireError as error:
            tries = [
                "look at the server's own output",
                "check that it is splitboard serve, or a server of the protocol",
            ]
            raise UserError(f'no valid reply from the server at "{self.url}": {error.message}', tries) from error

    def _connect(self) -> socket.socket:
        if self._socket is None:
            try:
                self._socket = socket.create_connection((self._host, self._port), self._timeout_s)
            except OSError as error:
                raise UserError(
                    f'no server at "{self.url}": {error.strerror or error}',
                    ["splitboard serve BUNDLE", "--server URL, with the address that it prints"],
                ) from error
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._socket

    def _send_and_receive_first(self, connection: socket.socket, pieces: Sequence[memoryview]) -> int:
        """Bytes of the reply that came first; 0 where the connection was closed instead."""
        try:
            send_all(connection, pieces)
            return connection.recv_into(self._view)
        except (BrokenPipeError, ConnectionResetError):
            return 0

    def _receive(self, connection: socket.socket, start: int) -> int:
        try:
            n_received = connection.recv_into(self._view[start:])
        except ConnectionResetError:
            n_received = 0
        if n_received == 0:
            raise WireError(400, "the connection was closed inside it")
        return n_received

    def _receive_rest(self, connection: socket.socket, n_received: int) -> Tuple[_Head, memoryview]:
        head = _parse_head(self._view[:n_received])
        while head is None:
            n_received += self._receive(connection, n_received)
            head = _parse_head(self._view[:n_received])
        end = head.n_bytes + _body_bytes(head, len(self._view))
        while n_received < end:
            n_received += self._receive(connection, n_received)
        if n_received > end:
            raise WireError(400, f"{n_received - end} bytes follow it")
        return head, self._view[head.n_bytes : end]


def send_all(connection: socket.socket, pieces: Sequence[memoryview]) -> None:
    """Sends pieces as if they were one, with as few system calls as the kernel's buffer allows."""
    left = list(pieces)
    while left:
        n_sent = connection.sendmsg(left)
        while left and n_sent >= len(left[0]):
            n_sent -= len(left.pop(0))
        if n_sent:
            left[0] = left[0][n_sent:]


def _address(url: str) -> Tuple[str, int]:
    tries = ["--server http://127.0.0.1:8000"]
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f'"{url}" is not an address of a server: {error}', tries) from error
    if (
        parts.scheme != "http"
        or not host
        or not host.isascii()
        or parts.path.strip("/")
        or parts.query
        or parts.username
    ):
        raise UserError(f'"{url}" is not an address of a server, expected http://host:port', tries)
    return host, 80 if port is None else port


def _parse_head(received: memoryview) -> Optional[_Head]:
    """Status line and headers, ``None`` while they are not complete."""
    start = bytes(received[:MAX_HEAD_BYTES])
    end = start.find(_END)
    if end < 0:
        if len(start) == MAX_HEAD_BYTES:
            raise WireError(400, f"its headers are longer than {MAX_HEAD_BYTES} bytes")
        return None
    first, *lines = start[:end].decode("latin-1").split("\r\n")
    status = _STATUS.fullmatch(first)
    if status is None:
        raise WireError(400, f"it starts with {first[:60]!r}")
    headers: Dict[str, str] = {}
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None or (found.group(1).lower() in headers and found.group(1).lower() in _ONCE):
            raise WireError(400, f"its header {line[:60]!r} is malformed or there twice")
        headers[found.group(1).lower()] = found.group(2)
    return _Head(int(status.group(1)), headers, end + len(_END))


def _body_bytes(head: _Head, space_bytes: int) -> int:
    if "transfer-encoding" in head.headers or "content-length" not in head.headers:
        raise WireError(400, "it has no Content-Length")
    n_bytes = parse_length(head.headers["content-length"], "Content-Length")
    if head.n_bytes + n_bytes > space_bytes:
        raise WireError(400, f"its {n_bytes} bytes are more than a reply of this model can have")
    return n_bytes


def _words(body: memoryview) -> str:
    """What a refusal says, in the protocol's form or as text."""
    text = str(body, "utf-8", "replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = text
    if isinstance(said, dict) and isinstance(said.get("error"), str):
        said = said["error"]
    printable = "".join(letter if letter.isprintable() else " " for letter in str(said))
    return printable[:500]
