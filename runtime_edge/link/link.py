"""The Open Inference Protocol as a client: ask a model, ask whether the server is well, ask whose bundle it serves."""

from __future__ import annotations

import json
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Dict, Optional, Tuple, Type
from urllib.parse import quote

from runtime_edge.link.connection import MAX_REFUSAL_BYTES, OPEN, Connection, LinkError, Reply, Security
from splitboard.contract.interface import Interface
from splitboard.contract.wire import HEADER_LENGTH, Buffer, Message
from splitboard.contract.zstd import CODING

TIMEOUT_S = 10.0

_REASONS = {401: "unauthorised", 403: "unauthorised", 404: "not_found", 409: "pair", 503: "overloaded", 504: "expired"}
"""What a status means where the server gives no reason of ours."""


class Link:
    """A connection to one server.

    Args:
        url: ``http://host:port`` or ``https://host:port``.
        timeout_s: of a request, from connecting to the last byte of its reply, where the request has none of its own.
        security: token and certificates.
    """

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S, security: Security = OPEN) -> None:
        self._connection = Connection(url, security)
        self.url = self._connection.url
        self.timeout_s = timeout_s
        self._starts: Dict[Tuple[str, str], bytes] = {}  # of requests, by model and extra headers

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        self._connection.close()

    def infer(self, to: Interface, request: Message, timeout_s: Optional[float] = None) -> Reply:
        """Sends one request and waits for its reply.

        Args:
            to: the model to ask.
            request: its body.
            timeout_s: for all of it.

        Raises:
            LinkError: no server, no answer in time, a refusal, or a reply that is not HTTP as agreed.
        """
        return self._infer(to, "", len(request.header), (request.header, *request.tensors), timeout_s)

    def infer_compressed(self, to: Interface, header_bytes: int, body: bytes, timeout_s: Optional[float]) -> Reply:
        """The same with a body that was compressed with zstd.

        Args:
            to: the model to ask.
            header_bytes: length of the JSON part before it was compressed.
            body: one frame.
            timeout_s: for all of it.
        """
        return self._infer(to, f"Content-Encoding: {CODING}\r\n", header_bytes, (body,), timeout_s)

    def ping(self, timeout_s: float) -> int:
        """The round trip of the smallest request, in ns, of a server that is ready for work.

        Raises:
            LinkError: it is not.
        """
        start_ns = perf_counter_ns()
        self._get("/v2/health/ready", timeout_s)
        return perf_counter_ns() - start_ns

    def extensions(self) -> Tuple[str, ...]:
        """What the server offers beyond the protocol."""
        said = self._json("/v2", self.timeout_s)
        listed = said.get("extensions") if isinstance(said, dict) else None
        return tuple(str(name) for name in listed) if isinstance(listed, list) else ()

    def check_pair(self, to: Interface, timeout_s: float) -> None:
        """Compares the served model's bundle and split with ours, where its configuration has them.

        Raises:
            LinkError: they differ (``pair``), there is no such model, or no server.
        """
        said = self._json(f"/v2/models/{quote(to.model, safe='')}/config", timeout_s)
        parameters = said.get("parameters") if isinstance(said, dict) else None
        for name, expected in (("bundle", to.bundle), ("split", to.split)):
            found = parameters.get(name) if isinstance(parameters, dict) else None
            value = found.get("string_value") if isinstance(found, dict) else None
            if value is not None and value != expected:
                raise LinkError(
                    "pair",
                    f'the server at "{self.url}" serves {to.model} of {name} "{str(value)[:16]}", '
                    f"here is {expected[:16]}",
                    ["serve the bundle that is on this board: splitboard serve BUNDLE"],
                )

    def _infer(
        self, to: Interface, extra: str, header_bytes: int, body: Tuple[Buffer, ...], timeout_s: Optional[float]
    ) -> Reply:
        start = self._starts.get((to.model, extra))
        if start is None:
            start = self._starts[to.model, extra] = (
                f"POST /v2/models/{quote(to.model, safe='')}/infer HTTP/1.1\r\n{self._connection.fixed_headers}"
                f"Content-Type: application/octet-stream\r\n{extra}{HEADER_LENGTH}: "
            ).encode("ascii")
        head = b"%b%d\r\nContent-Length: %d\r\n\r\n" % (start, header_bytes, sum(map(len, body)))
        reply = self._connection.exchange(
            head, body, to.max_reply_bytes, self.timeout_s if timeout_s is None else timeout_s
        )
        return self._accepted(reply)

    def _get(self, path: str, timeout_s: float) -> Reply:
        head = f"GET {path} HTTP/1.1\r\n{self._connection.fixed_headers}\r\n".encode("ascii")
        return self._accepted(self._connection.exchange(head, (), MAX_REFUSAL_BYTES, timeout_s))

    def _json(self, path: str, timeout_s: float) -> Any:
        body = self._get(path, timeout_s).body
        try:
            return json.loads(str(body, "utf-8"))
        except (ValueError, RecursionError) as error:
            raise LinkError("broken", f'the server at "{self.url}" answers "{path}" with what is no JSON') from error

    def _accepted(self, reply: Reply) -> Reply:
        if reply.status == 200:
            return reply
        words, reason = _refusal(reply.body)
        raise LinkError(
            reason or _REASONS.get(reply.status, "refused"),
            f'the server at "{self.url}" refused with status "{reply.status}": {words}',
            ["--token-file FILE, with the server's token"] if reply.status == 401 else [],
        )


def _refusal(body: memoryview) -> Tuple[str, Optional[str]]:
    """What a refusal says, in the protocol's form or as text, and its reason where it gives one."""
    text = str(body, "utf-8", "replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = text
    reason = None
    if isinstance(said, dict):
        reason = said["reason"] if isinstance(said.get("reason"), str) else None
        said = said["error"] if isinstance(said.get("error"), str) else said
    return _printable(str(said))[:500], None if reason is None else _printable(reason)[:40]


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
