"""The protocol's endpoints as one plain ASGI callable."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime_server.models import Model
from splitboard import __version__
from splitboard.contract.bundle import TensorSpec
from splitboard.contract.interface import WireError, too_large
from splitboard.contract.wire import (
    DATATYPES,
    HEADER_LENGTH,
    Message,
    Request,
    decode_request,
    encode_reply,
    format_server_timing,
    parse_length,
)

BODY_TIMEOUT_S = 30.0
"""A body that takes longer to arrive is given up."""

MAX_WAITING = 64
"""Requests that may wait for a worker; more are refused, so that the queue and its memory stay bounded."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class DisconnectedError(Exception):
    """The client went away before its body had arrived."""


class App:
    """Serves models to one client or many.

    Args:
        models: by served name.
        workers: runs the graphs; its threads bound how many run at once.
    """

    def __init__(self, models: Mapping[str, Model], workers: Executor) -> None:
        self._models = models
        self._workers = workers
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI 3)."""
        if scope["type"] != "http":
            return
        try:
            await self._route(scope, receive, send)
        except WireError as error:
            allow = [(b"allow", b"POST" if scope["path"].endswith("/infer") else b"GET")]
            await _send_json(send, error.status, {"error": error.message}, allow if error.status == 405 else [])
        except DisconnectedError:
            pass  # nobody is left to be answered

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        parts = path.strip("/").split("/")
        if path in ("/v2", "/v2/health/live", "/v2/health/ready"):
            _require(method, "GET", path)
            about = {"name": "splitboard", "version": __version__, "extensions": ["binary_tensor_data"]}
            await _send_json(send, 200, about if path == "/v2" else {parts[-1]: True})
        elif parts[:2] == ["v2", "models"] and (len(parts) == 3 or parts[3:] in (["ready"], ["infer"])):
            model = self._models.get(parts[2])
            if model is None:
                known = ", ".join(self._models)
                raise WireError(404, f"there is no model {json.dumps(parts[2][:80])}; served are: {known}")
            if parts[3:] == ["infer"]:
                _require(method, "POST", path)
                await self._infer(model, scope, receive, send)
            else:
                _require(method, "GET", path)
                ready = {"name": parts[2], "ready": True}
                await _send_json(send, 200, ready if parts[3:] else _metadata(model))
        else:
            raise WireError(404, f"there is nothing at {json.dumps(path[:80])}")

    async def _infer(self, model: Model, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            body = await asyncio.wait_for(_read_body(model, headers, receive), BODY_TIMEOUT_S)
        except asyncio.TimeoutError as error:
            raise WireError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from error
        arrived_ns = time.perf_counter_ns()
        request = decode_request(body, headers.get(HEADER_LENGTH.lower()), model.interface)
        if self._waiting >= MAX_WAITING:
            raise WireError(503, f"{MAX_WAITING} requests are waiting already")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            outputs, start_ns, end_ns = await loop.run_in_executor(self._workers, _compute, model, request)
        finally:
            self._waiting -= 1
        timing = format_server_timing(start_ns - arrived_ns, end_ns - start_ns)
        await _send_tensors(send, encode_reply(outputs, model.interface, request), timing)


def _compute(model: Model, request: Request) -> tuple[dict[str, NDArray[np.float32]], int, int]:
    """Runs in a worker thread; the clock is read here, so waiting for a worker is never counted as compute."""
    start_ns = time.perf_counter_ns()
    outputs = model.run(request.inputs, request.outputs)
    return outputs, start_ns, time.perf_counter_ns()


async def _read_body(model: Model, headers: Mapping[str, str], receive: Receive) -> bytes | bytearray:
    """The whole body, never more of it than the model can take."""
    limit = model.interface.max_request_bytes
    declared = parse_length(headers["content-length"], "Content-Length") if "content-length" in headers else 0
    if declared > limit:
        raise too_large(declared, model.interface)
    first = await _receive_piece(receive)
    if not first["more_body"] and len(first["body"]) <= limit:
        return bytes(first["body"])
    body, message = bytearray(first["body"]), first
    while message["more_body"] and len(body) <= limit:
        message = await _receive_piece(receive)
        body += message["body"]
    if len(body) > limit:
        raise too_large(len(body), model.interface)
    return body


async def _receive_piece(receive: Receive) -> dict[str, Any]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise DisconnectedError
    return {"body": message.get("body", b""), "more_body": message.get("more_body", False)}


def _require(method: str, expected: str, path: str) -> None:
    if method != expected:
        raise WireError(405, f"{path[:80]} takes {expected}, found {method[:20]}")


def _metadata(model: Model) -> dict[str, Any]:
    def listed(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [{"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": list(spec.shape)} for spec in specs]

    offered = model.interface
    return {
        "name": offered.model,
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": listed(offered.inputs),
        "outputs": listed(offered.outputs),
        "parameters": {"bundle": offered.bundle, "split": offered.split},
    }


async def _send_json(send: Send, status: int, value: object, headers: Headers | None = None) -> None:
    body = json.dumps(value).encode("ascii")
    typed = [(b"content-type", b"application/json"), *(headers or [])]
    await _send(send, status, typed, body)


async def _send_tensors(send: Send, reply: Message, timing: str) -> None:
    headers = [
        (b"content-type", b"application/octet-stream"),
        (HEADER_LENGTH.lower().encode(), str(len(reply.header)).encode()),
        (b"server-timing", timing.encode()),
    ]
    await _send(send, 200, headers, b"".join([reply.header, *reply.tensors]))


async def _send(send: Send, status: int, headers: Headers, body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
