"""The protocol's endpoints over HTTP: which path means what, and who may ask.

Inference takes and gives binary tensors only, which is what the clients of Triton and KServe send by default.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

from runtime_server import documents, prometheus
from runtime_server.access import Token
from runtime_server.http_connection import Accepted, Exchange, Respond, Soon
from runtime_server.http_message import Head, Response, json_response
from runtime_server.models import Model
from runtime_server.service import NO_MODEL, VERSION, Answer, Service, Ticket
from splitboard.contract.interface import MAX_HEADER_BYTES, Reason, WireError
from splitboard.contract.wire import (
    HEADER_LENGTH,
    Request,
    format_server_timing,
)
from splitboard.contract.zstd import CODING, Zstd, find_zstd

_LENGTH_HEADER = HEADER_LENGTH.encode()
_LENGTH_NAME = _LENGTH_HEADER.lower()
_OPEN_TO_ALL = ("/v2/health/live", "/v2/health/ready")
"""Health may be asked for without a token."""


@dataclass(frozen=True)
class Page:
    """An endpoint that answers at once.

    Attributes:
        method: that it takes.
        make: its answer from the request's body.
    """

    method: str
    make: Callable[[memoryview], Response]


@dataclass(frozen=True)
class Infer:
    """The endpoint that runs a model."""

    model: Model
    method: str = "POST"


class HttpFront:
    """Answers requests (it is the `http_connection.Application`).

    Args:
        service: what answers them.
        token: that every request must carry, health aside; ``None``: everyone may ask.
    """

    def __init__(self, service: Service, token: Token | None = None) -> None:
        self._service = service
        self._token = token
        self._zstd = find_zstd()
        self._routes = _routes(service)

    def accept(self, head: Head) -> Accepted:
        """Finds the endpoint and refuses what it does not take.

        Raises:
            WireError: not found, another method, no or the wrong token, or an encoding that is unknown.
        """
        path, route = self._find(head)
        if self._token is not None and path not in _OPEN_TO_ALL:
            self._token.check(head.text(b"authorization"))
        if route is None:
            raise WireError(Reason.NOT_FOUND, self._not_found(path))
        if head.method != route.method:
            raise WireError(Reason.METHOD, f"{path[:80]} takes {route.method}, found {head.method[:20]}")
        if isinstance(route, Page):
            return _PageExchange(route, self)
        return _InferRequest(self._service, self, route.model, head, self._decompressor(head))

    def refusal(self, error: WireError, head: Head | None, came_ns: int) -> Response:
        """Counts a refusal and says it."""
        route = self._find(head)[1] if head is not None else None
        model = route.model.interface.model if isinstance(route, Infer) else NO_MODEL
        waited_ns = time.perf_counter_ns() - came_ns if head is not None else 0
        self._service.refused(error, model, waited_ns)
        headers = b""
        if error.reason is Reason.METHOD and route is not None:
            headers = b"Allow: %s\r\n" % route.method.encode()
        elif error.reason is Reason.UNAUTHORISED:
            headers = b"WWW-Authenticate: Bearer\r\n"
        return json_response(error.reason.status, {"error": error.message, "reason": error.reason.word}, headers)

    def _find(self, head: Head) -> tuple[str, Page | Infer | None]:
        target = head.target.decode("latin-1")
        route = self._routes.get(target)
        if route is None:  # a query, a trailing slash, or a name that is quoted in another way
            parts = target.partition("?")[0].rstrip("/").split("/")
            target = "/".join(quote(unquote(part), safe="") for part in parts)
            route = self._routes.get(target)
        return target, route

    def _not_found(self, path: str) -> str:
        parts = path.split("/")
        if parts[1:3] == ["v2", "models"] and len(parts) > 3:
            self._service.model(unquote(parts[3]))  # raises what is to be said of a model that is not there
        return f"there is nothing at {json.dumps(path[:80])}"

    def _decompressor(self, head: Head) -> Zstd | None:
        coding = (head.text(b"content-encoding") or "identity").strip().lower()
        if coding == "identity":
            return None
        if coding != CODING or self._zstd is None:
            taken = CODING if self._zstd else "none"
            raise WireError(
                Reason.UNSUPPORTED, f"Content-Encoding {json.dumps(coding[:40])} is not taken; what is: {taken}"
            )
        return self._zstd


def _routes(service: Service) -> Mapping[str, Page | Infer]:
    """Every path that means something."""

    def page(make: Callable[[], Any]) -> Page:
        return Page("GET", lambda _: json_response(200, make()))

    about = documents.server_metadata()  # what is installed does not change while the server runs
    routes: dict[str, Page | Infer] = {
        "/v2": page(lambda: about),
        "/v2/health/live": page(lambda: {"live": True}),
        "/v2/health/ready": Page("GET", lambda _: _ready(service, {"ready": service.ready})),
        "/v2/models/stats": page(lambda: documents.statistics(service, list(service.models))),
        "/v2/repository/index": Page("POST", partial(_index, service)),
        "/metrics": Page("GET", lambda _: prometheus.page(service)),
    }
    for name, model in service.models.items():
        for path in (f"/v2/models/{quote(name, safe='')}", f"/v2/models/{quote(name, safe='')}/versions/{VERSION}"):
            routes |= {
                path: page(partial(documents.model_metadata, model)),
                f"{path}/ready": Page("GET", partial(_model_ready, service, name)),
                f"{path}/config": page(partial(documents.model_config, model)),
                f"{path}/stats": page(partial(documents.statistics, service, [name])),
                f"{path}/infer": Infer(model),
            }
    return routes


def _ready(service: Service, said: Mapping[str, Any]) -> Response:
    return json_response(200 if service.ready else Reason.DRAINING.status, said)


def _model_ready(service: Service, name: str, _body: memoryview) -> Response:
    return _ready(service, {"name": name, "ready": service.ready})


def _index(service: Service, body: memoryview) -> Response:
    try:
        asked = json.loads(bytes(body) or b"{}")
    except (ValueError, RecursionError) as error:
        raise WireError(Reason.MALFORMED, "the body is no JSON") from error
    ready_only = isinstance(asked, dict) and asked.get("ready") is True
    return json_response(200, documents.repository_index(service, ready_only=ready_only))


@dataclass(frozen=True)
class _PageExchange:
    """A request for a page; it keeps nothing, so it is the exchange of all of them."""

    page: Page
    front: HttpFront
    max_body_bytes: int = MAX_HEADER_BYTES

    def begin(self, _came_ns: int) -> Exchange:
        return self

    def finish(self, body: memoryview, _respond: Respond, _soon: Soon) -> Response:
        try:
            return self.page.make(body)
        except WireError as error:
            return self.front.refusal(error, None, 0)

    def abandon(self) -> None:
        pass


class _InferRequest:
    """A request for an inference, whose head is known."""

    def __init__(self, service: Service, front: HttpFront, model: Model, head: Head, zstd: Zstd | None) -> None:
        self.max_body_bytes = model.interface.max_request_bytes
        self.service, self.front, self.model, self.head = service, front, model, head
        self._header_length = head.text(_LENGTH_NAME)
        self._zstd = zstd

    def begin(self, came_ns: int) -> Exchange:
        """Raises `WireError` where the server is draining."""
        self.service.require_open()
        return _InferExchange(self, came_ns)

    def read(self, body: memoryview) -> Request:
        """Checks the body."""
        plain = body if self._zstd is None else self._zstd.decompress(body, self.max_body_bytes)
        return self.model.form.decode_request(plain, self._header_length)


class _InferExchange:
    """One inference on its way through the service."""

    def __init__(self, of: _InferRequest, came_ns: int) -> None:
        self._of = of
        self._came_ns = came_ns
        self._ticket: Ticket | None = None

    def finish(self, body: memoryview, respond: Respond, soon: Soon) -> Response | None:
        of = self._of
        self._ticket = Ticket(
            of.model, partial(of.read, body), time.perf_counter_ns(), self._came_ns, partial(self._done, respond)
        )
        try:
            of.service.submit(self._ticket, soon)
        except WireError as error:
            return of.front.refusal(error, of.head, self._came_ns)
        return None

    def abandon(self) -> None:
        if self._ticket is not None:
            self._of.service.withdraw(self._ticket)

    def _done(self, respond: Respond, result: Answer | WireError) -> None:
        """Runs where it was computed."""
        if isinstance(result, WireError):
            respond(self._of.front.refusal(result, self._of.head, self._came_ns))
            return
        reply = self._of.model.form.encode_reply(result.outputs, result.request)
        headers = b"Content-Type: application/octet-stream\r\n%b: %d\r\nServer-Timing: %b\r\n" % (
            _LENGTH_HEADER,
            len(reply.header),
            format_server_timing(result.timing).encode("ascii"),
        )
        respond(Response(200, headers, [reply.header, *reply.tensors]))
