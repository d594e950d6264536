"""Heads of HTTP/1.1 requests and whole answers, as bytes. Source: RFC 9110 and 9112."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus

import httptools

from splitboard.contract.interface import Reason, WireError
from splitboard.contract.wire import Buffer, parse_length

HEAD_END = b"\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
JSON = b"Content-Type: application/json\r\n"

_STATUS_LINES = {one.value: f"HTTP/1.1 {one.value} {one.phrase}\r\n".encode() for one in HTTPStatus}


@dataclass(frozen=True)
class Head:
    """A request's head.

    Attributes:
        method: in capitals.
        target: as sent.
        headers: by name in lower case; what came twice is joined with a comma.
        keep_alive: whether the client wants to go on with the connection.
    """

    method: str
    target: bytes
    headers: dict[bytes, bytes]
    keep_alive: bool

    def text(self, name: bytes) -> str | None:
        """A header's value."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    @cached_property
    def body_bytes(self) -> int:
        """How long the body is.

        Raises:
            WireError: its length is not said in advance, or is no number.
        """
        if b"transfer-encoding" in self.headers:
            raise WireError(Reason.MALFORMED, "the body must come with its Content-Length, not in chunks")
        declared = self.text(b"content-length")
        return 0 if declared is None else parse_length(declared, "Content-Length")

    @cached_property
    def waits_for_consent(self) -> bool:
        """Whether the client sends the body only after it was told to."""
        return self.headers.get(b"expect", b"").lower() == b"100-continue"


@dataclass(frozen=True)
class Response:
    """An answer.

    Attributes:
        status: of HTTP.
        headers: lines that end with CR LF; without ``Content-Length`` and ``Connection``.
        body: pieces, in order.
    """

    status: int
    headers: bytes
    body: Sequence[Buffer]


class _Reader:
    """What httptools tells while it reads a head."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: dict[bytes, bytes] = {}

    def on_url(self, url: bytes) -> None:
        self.target = url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.headers[name] = self.headers[name] + b", " + value if name in self.headers else value


def parse_head(text: bytes) -> Head:
    """A head up to and with its empty line.

    Raises:
        WireError: it is none of HTTP/1.0 or 1.1.
    """
    reader = _Reader()
    parser = httptools.HttpRequestParser(reader)
    try:
        parser.feed_data(text)
    except httptools.HttpParserUpgrade:
        pass  # an offer that is not taken: the answer is in HTTP/1.1
    except httptools.HttpParserError as error:
        raise WireError(Reason.MALFORMED, f"this is no HTTP/1.1 request: {error}") from error
    if parser.get_http_version() not in ("1.0", "1.1"):
        raise WireError(Reason.MALFORMED, f"HTTP/{parser.get_http_version()} is not spoken here")
    method = parser.get_method().decode("ascii")
    return Head(method, reader.target, reader.headers, parser.should_keep_alive())


def json_response(status: int, value: object, headers: bytes = b"") -> Response:
    """An answer in JSON."""
    return Response(status, JSON + headers, [json.dumps(value).encode("ascii")])


def encode_response(response: Response, method: str, *, keep_alive: bool) -> bytes:
    """An answer as it is sent.

    Args:
        response: the answer.
        method: of the request; an answer to ``HEAD`` goes without its body.
        keep_alive: whether another request may follow.
    """
    n_bytes = sum(map(len, response.body))
    return b"".join(
        (
            _STATUS_LINES[response.status],
            response.headers,
            b"Content-Length: %d\r\n" % n_bytes,
            b"\r\n" if keep_alive else b"Connection: close\r\n\r\n",
            *(() if method == "HEAD" else response.body),
        )
    )
