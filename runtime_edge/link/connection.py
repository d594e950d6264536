"""HTTP/1.1 by hand on the standard library's sockets: one kept connection, one write, the reply received in place.

Two small writes with Nagle's algorithm on would cost 40 ms a round trip (delayed acknowledgement), so there is one
``sendmsg`` and ``TCP_NODELAY``. Everything has to be done by a deadline, whatever the other side does in between.
"""

from __future__ import annotations

import re
import socket
import ssl
from pathlib import Path
from time import perf_counter_ns
from typing import Dict, NamedTuple, Optional, Sequence, Tuple
from urllib.parse import urlsplit

from splitboard.contract.errors import UserError
from splitboard.contract.interface import Reason, WireError
from splitboard.contract.wire import HEADER_LENGTH, Buffer, parse_length

MAX_HEAD_BYTES = 1 << 14
MAX_REFUSAL_BYTES = 1 << 16
_END = b"\r\n\r\n"
_STATUS = re.compile(r"HTTP/1\.1 ([1-5][0-9]{2})(?: [\x20-\x7e]*)?\r\n", re.ASCII)
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t\x20-\x7e]*)\r\n", re.ASCII)
_USUAL = re.compile(
    rb"HTTP/1\.1 200 OK\r\nContent-Type: application/octet-stream\r\n%b: ([0-9]{1,12})\r\n"
    rb"Server-Timing: ([ -~]{1,200})\r\nContent-Length: ([0-9]{1,12})\r\n\r\n" % HEADER_LENGTH.encode("ascii")
)
"""A head of our server's answers, known as a whole in a third of the time that reading it takes."""

_ONCE = ("content-length", HEADER_LENGTH.lower(), "server-timing")
_LEAST_TIMEOUT_S = 1e-4
"""What is past its deadline still gets one look; 0 would make the socket non-blocking."""


class LinkError(UserError):
    """The server could not be asked, or did not give what was asked for.

    Attributes:
        reason: ``unreachable``, ``certificate``, ``timeout``, ``closed``, ``broken`` (a reply that is not as agreed),
            or the word of the server's own `splitboard.contract.interface.Reason`.
    """

    def __init__(self, reason: str, message: str, tries: Sequence[str] = ()) -> None:
        super().__init__(message, list(tries))
        self.reason = reason


class Security(NamedTuple):
    """How a server is told who asks, and how it is known.

    Attributes:
        token: sent as ``Authorization: Bearer``.
        ca_file: certificates to trust in place of the system's, PEM.
    """

    token: Optional[str] = None
    ca_file: Optional[Path] = None


OPEN = Security()
"""No token, the system's certificates."""


class Reply(NamedTuple):
    """A reply.

    Attributes:
        status: of HTTP.
        headers: by name in lower case.
        body: a view that the next request overwrites.
    """

    status: int
    headers: Dict[str, str]
    body: memoryview


class _Head(NamedTuple):
    status: int
    headers: Dict[str, str]
    n_bytes: int


class _ClosedError(Exception):
    """A kept-alive connection turned out closed before any byte of the reply."""


class Connection:
    """To one server; opened at the first request, reopened when the server closed it in between.

    Args:
        url: ``http://host:port`` or ``https://host:port``.
        security: token and certificates.

    Raises:
        UserError: no such address, a token that no header can carry, or a file without certificates.
    """

    def __init__(self, url: str, security: Security) -> None:
        self.url = url.rstrip("/")
        self._secure, self._host, self._port = _address(url)
        self._tls = _context(security.ca_file) if self._secure else None
        authority = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        self.fixed_headers = f"Host: {authority}\r\n{_authorization(security.token)}"
        self._socket: Optional[socket.socket] = None
        self._view = memoryview(bytearray(MAX_HEAD_BYTES + MAX_REFUSAL_BYTES))

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def exchange(self, head: bytes, body: Sequence[Buffer], most_bytes: int, timeout_s: float) -> Reply:
        """Sends one request and waits for its reply.

        Args:
            head: request line and headers, with the empty line.
            body: its pieces, bytes.
            most_bytes: that a reply's body can have.
            timeout_s: for all of it, connecting included.

        Raises:
            LinkError: no server, no answer in time, or a reply that is not HTTP as agreed.
        """
        deadline_ns = perf_counter_ns() + round(timeout_s * 1e9)
        n_bytes = MAX_HEAD_BYTES + max(most_bytes, MAX_REFUSAL_BYTES)
        if len(self._view) < n_bytes:
            self._view = memoryview(bytearray(n_bytes))
        pieces = (head, *body)
        try:
            try:
                found, text = self._exchange(pieces, deadline_ns)
            except _ClosedError:
                self.close()
                found, text = self._exchange(pieces, deadline_ns)  # a fresh connection never raises _ClosedError
        except socket.timeout as error:
            self.close()
            raise LinkError(
                "timeout", f'the server at "{self.url}" did not answer within "{timeout_s:g}" s', ["--timeout SECONDS"]
            ) from error
        except WireError as error:
            self.close()
            tries = [
                "look at the server's own output",
                "check that it is splitboard serve, or a server of the protocol",
            ]
            raise LinkError(
                "broken", f'no valid reply from the server at "{self.url}": {error.message}', tries
            ) from error
        except BaseException:
            self.close()  # half of a reply may still be on its way
            raise
        if found.headers.get("connection", "").lower() == "close":
            self.close()
        return Reply(found.status, found.headers, text)

    def _exchange(self, pieces: Sequence[Buffer], deadline_ns: int) -> Tuple[_Head, memoryview]:
        kept = self._socket is not None
        connection = self._connect(deadline_ns)
        n_received = self._send_and_receive_first(connection, pieces, deadline_ns)
        if n_received == 0 and kept:
            raise _ClosedError
        if n_received == 0:
            raise LinkError(
                "closed",
                f'no valid reply from the server at "{self.url}": the connection was closed before it',
                ["look at the server's own output"],
            )
        return self._receive_rest(connection, n_received, deadline_ns)

    def _connect(self, deadline_ns: int) -> socket.socket:
        if self._socket is None:
            try:
                self._socket = self._open(deadline_ns)
            except ssl.SSLError as error:
                raise LinkError(
                    "certificate",
                    f'no secure connection to "{self.url}": {getattr(error, "verify_message", "") or error.reason}',
                    ["--ca FILE, with the certificate that signed the server's", "http:// for a server without TLS"],
                ) from error
            except OSError as error:
                raise LinkError(
                    "unreachable",
                    f'no server at "{self.url}": {error.strerror or error}',
                    ["splitboard serve BUNDLE", "--server URL, with the address that it prints"],
                ) from error
        return self._socket

    def _open(self, deadline_ns: int) -> socket.socket:
        left_s = max((deadline_ns - perf_counter_ns()) / 1e9, _LEAST_TIMEOUT_S)
        made = socket.create_connection((self._host, self._port), left_s)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            return made
        try:
            return self._tls.wrap_socket(made, server_hostname=self._host)
        except BaseException:
            made.close()
            raise

    def _send_and_receive_first(self, connection: socket.socket, pieces: Sequence[Buffer], deadline_ns: int) -> int:
        """Bytes of the reply that came first; 0 where the connection was closed instead."""
        try:
            _limit(connection, deadline_ns)
            if isinstance(connection, ssl.SSLSocket):
                connection.sendall(b"".join(pieces))  # one run of records; TLS has no sendmsg
            else:
                send_all(connection, pieces)
            _limit(connection, deadline_ns)
            return connection.recv_into(self._view)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return 0

    def _receive(self, connection: socket.socket, start: int, deadline_ns: int) -> int:
        try:
            _limit(connection, deadline_ns)
            n_received = connection.recv_into(self._view[start:])
        except (ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            n_received = 0
        if n_received == 0:
            raise LinkError(
                "closed",
                f'no valid reply from the server at "{self.url}": the connection was closed inside it',
                ["look at the server's own output"],
            )
        return n_received

    def _receive_rest(self, connection: socket.socket, n_received: int, deadline_ns: int) -> Tuple[_Head, memoryview]:
        head = _parse_head(self._view[:n_received])
        while head is None:
            n_received += self._receive(connection, n_received, deadline_ns)
            head = _parse_head(self._view[:n_received])
        end = head.n_bytes + _body_bytes(head, len(self._view))
        while n_received < end:
            n_received += self._receive(connection, n_received, deadline_ns)
        if n_received > end:
            raise _broken(f"{n_received - end} bytes follow it")
        return head, self._view[head.n_bytes : end]


def send_all(connection: socket.socket, pieces: Sequence[Buffer]) -> None:
    """Sends pieces as if they were one, with as few system calls as the kernel's buffer allows."""
    n_sent = connection.sendmsg(pieces)
    if n_sent == sum(map(len, pieces)):
        return
    left = [memoryview(piece) for piece in pieces]
    while True:
        while left and n_sent >= len(left[0]):
            n_sent -= len(left.pop(0))
        if not left:
            return
        left[0] = left[0][n_sent:]
        n_sent = connection.sendmsg(left)


def _limit(connection: socket.socket, deadline_ns: int) -> None:
    """Sets the socket's time-out, where the one that it has is not as good: that is a system call."""
    left_s = max((deadline_ns - perf_counter_ns()) / 1e9, _LEAST_TIMEOUT_S)
    now_s = connection.gettimeout()
    if now_s is None or not 0.99 * left_s < now_s <= 1.001 * left_s:
        connection.settimeout(left_s)


def _broken(message: str) -> WireError:
    return WireError(Reason.MALFORMED, message)


def _address(url: str) -> Tuple[bool, str, int]:
    """Whether it is TLS, the host and the port."""
    tries = ["--server http://127.0.0.1:8000"]
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f'"{url}" is not an address of a server: {error}', tries) from error
    if (
        parts.scheme not in ("http", "https")
        or not host
        or not host.isascii()
        or parts.path.strip("/")
        or parts.query
        or parts.username
    ):
        raise UserError(f'"{url}" is not an address of a server, expected http://host:port or https://host:port', tries)
    secure = parts.scheme == "https"
    return secure, host, port if port is not None else 443 if secure else 80


def _context(ca_file: Optional[Path]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except OSError as error:  # ssl.SSLError is one
        raise UserError(f'"{ca_file}" holds no certificates: {error.strerror or error}', ["--ca FILE.pem"]) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _authorization(token: Optional[str]) -> str:
    if token is None:
        return ""
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", token):
        raise UserError("the token holds what RFC 6750 does not allow in one", ["letters, digits and -._~+/ only"])
    return f"Authorization: Bearer {token}\r\n"


def _parse_head(received: memoryview) -> Optional[_Head]:
    """Status line and headers, ``None`` while they are not complete."""
    usual = _USUAL.match(received)
    if usual is not None:
        header_length, timing, length = [value.decode("ascii") for value in usual.groups()]
        headers = {HEADER_LENGTH.lower(): header_length, "server-timing": timing, "content-length": length}
        return _Head(200, headers, usual.end())
    start = bytes(received[:MAX_HEAD_BYTES])
    end = start.find(_END)
    if end < 0:
        if len(start) == MAX_HEAD_BYTES:
            raise _broken(f"its headers are longer than {MAX_HEAD_BYTES} bytes")
        return None
    text = start[: end + 2].decode("latin-1")
    status = _STATUS.match(text)
    if status is None:
        raise _broken(f"it starts with {_first_line(text)!r}")
    at = status.end()
    headers = {}
    while at < len(text):
        header = _HEADER.match(text, at)
        name = header.group(1).lower() if header else ""
        if header is None or (name in headers and name in _ONCE):
            raise _broken(f"its header {_first_line(text[at:])!r} is malformed or there twice")
        headers[name] = header.group(2).strip(" \t")
        at = header.end()
    return _Head(int(status.group(1)), headers, end + len(_END))


def _first_line(text: str) -> str:
    return text.partition("\r\n")[0][:60]


def _body_bytes(head: _Head, space_bytes: int) -> int:
    if "transfer-encoding" in head.headers or "content-length" not in head.headers:
        raise _broken("it has no Content-Length")
    n_bytes = parse_length(head.headers["content-length"], "Content-Length")
    if head.n_bytes + n_bytes > space_bytes:
        raise _broken(f"its {n_bytes} bytes are more than a reply of this model can have")
    return n_bytes
