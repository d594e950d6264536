"""The protocol's gRPC form, in the event loop of the HTTP front: the same service, checks and documents behind it.

A request is rewritten as its HTTP form, so that `splitboard.contract.wire` checks both. Refusals have Triton's status
codes where it has such a refusal, and their reason in the trailing metadata, since gRPC says ``UNAVAILABLE`` of an
overloaded server and of one that is gone.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from runtime_server import documents
from runtime_server.access import Token
from runtime_server.grpc_messages import CLASSES, HEALTH_SERVICE, SERVICE
from runtime_server.models import Model
from runtime_server.server import listen
from runtime_server.service import NO_MODEL, VERSION, Answer, Service
from splitboard.contract.checksum import crc32
from splitboard.contract.errors import UserError
from splitboard.contract.interface import MAX_HEADER_BYTES, Interface, Reason, WireError
from splitboard.contract.wire import DATATYPES, Request, decode_request, format_server_timing

CODES = {
    Reason.MALFORMED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.CORRUPT: grpc.StatusCode.DATA_LOSS,
    Reason.UNAUTHORISED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.METHOD: grpc.StatusCode.UNIMPLEMENTED,
    Reason.SLOW: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.PAIR: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
    Reason.OVERLOADED: grpc.StatusCode.UNAVAILABLE,
    Reason.DRAINING: grpc.StatusCode.UNAVAILABLE,
    Reason.EXPIRED: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""The status code of every refusal."""

MAX_CALLS = 512
"""Calls at the same time, with what has come of their requests; gRPC itself refuses more as ``RESOURCE_EXHAUSTED``."""

MAX_DEADLINE_US = 60_000_000
"""Longer deadlines are taken as this one: clients without any send the end of time."""

HANDSHAKE_MS = 10_000
IDLE_MS = 600_000

_OPEN_TO_ALL = ("ServerLive", "ServerReady", "Check")
"""Health may be asked for without a token."""

_LOG = logging.getLogger(__name__)

Call = Callable[[Any, Any], Awaitable[Any]]


@dataclass(frozen=True)
class GrpcServer:
    """A gRPC server that accepts calls.

    Attributes:
        port: that it listens on.
        server: gRPC's own.
    """

    port: int
    server: grpc.aio.Server

    async def stop(self, grace_s: float) -> None:
        """Takes no more calls, and cancels those that still run after ``grace_s``."""
        await self.server.stop(grace_s)


async def start_grpc(
    service: Service, host: str, port: int, token: Token | None = None, tls: tuple[Path, Path] | None = None
) -> GrpcServer:
    """Starts the front in the running event loop.

    Args:
        service: what answers.
        host: address to listen on.
        port: 0 lets the system choose.
        token: that every call must carry as metadata ``authorization``, health aside; ``None``: everyone may ask.
        tls: certificate with its chain, and key, both PEM files that `access.tls_context` has checked; ``None``: none.

    Raises:
        UserError: the port is taken or forbidden, or the address is not ours.
    """
    port = _free_port(host, port)
    server = grpc.aio.server(options=_options(service), maximum_concurrent_rpcs=MAX_CALLS)
    server.add_generic_rpc_handlers(_handlers(service, token))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if tls is None:
        server.add_insecure_port(address)
    else:
        chain, key = (path.read_bytes() for path in tls)
        server.add_secure_port(address, grpc.ssl_server_credentials([(key, chain)]))
    await server.start()
    return GrpcServer(port, server)


def _free_port(host: str, port: int) -> int:
    """The port that gRPC shall listen on. It cannot be given a socket, and explains to stderr why it finds no port."""
    try:
        with listen(host, port) as probe:
            free: int = probe.getsockname()[1]
            return free
    except UserError as error:
        raise UserError(f"no gRPC: {error.message}", ["--grpc with another port, 0 for a free one"]) from error


def _options(service: Service) -> list[tuple[str, int]]:
    largest = max([MAX_HEADER_BYTES, *(model.interface.max_request_bytes for model in service.models.values())])
    return [
        ("grpc.max_receive_message_length", largest),
        ("grpc.max_metadata_size", MAX_HEADER_BYTES),
        ("grpc.max_concurrent_streams", MAX_CALLS),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", IDLE_MS),
        ("grpc.so_reuseport", 0),  # else a second server would share the port and take half of the calls
    ]


def _handlers(service: Service, token: Token | None) -> list[grpc.GenericRpcHandler]:
    def handler(name: str, call: Call) -> grpc.RpcMethodHandler:
        needed = None if name in _OPEN_TO_ALL else token
        return grpc.unary_unary_rpc_method_handler(partial(_answer, service, needed, CLASSES[f"{name}Request"], call))

    calls: dict[str, Call] = {"ModelInfer": partial(_infer, service)}
    calls |= {name: partial(_document, name, make) for name, make in _documents(service).items()}
    health: dict[str, Call] = {"Check": partial(_document, "Check", partial(_health, service))}
    return [
        grpc.method_handlers_generic_handler(of, {name: handler(name, call) for name, call in methods.items()})
        for of, methods in ((SERVICE, calls), (HEALTH_SERVICE, health))
    ]


def _documents(service: Service) -> dict[str, Callable[[Any], dict[str, Any]]]:
    """What answers every call but the inference, from its request."""

    def model_of(request: Any) -> Model:
        return service.model(request.name, request.version)

    def statistics(request: Any) -> dict[str, Any]:
        names = [model_of(request).interface.model] if request.name else list(service.models)
        return documents.statistics(service, names)

    return {
        "ServerLive": lambda _: {"live": True},
        "ServerReady": lambda _: {"ready": service.ready},
        "ModelReady": lambda request: {"ready": _model_ready(service, request)},
        "ServerMetadata": lambda _: documents.server_metadata(),
        "ModelMetadata": lambda request: documents.model_metadata(model_of(request)),
        "ModelConfig": lambda request: {"config": documents.model_config(model_of(request))},
        "ModelStatistics": statistics,
        "RepositoryIndex": lambda request: {
            "models": documents.repository_index(service, ready_only=request.ready),
        },
    }


def _model_ready(service: Service, request: Any) -> bool:
    """Of a model that is not there the answer is no, as Triton's is, and not a refusal."""
    try:
        service.model(request.name, request.version)
    except WireError:
        return False
    return service.ready


def _health(service: Service, request: Any) -> dict[str, Any]:
    if request.service not in ("", SERVICE):
        raise WireError(Reason.NOT_FOUND, f'there is no service "{request.service[:80]}"')
    return {"status": "SERVING" if service.ready else "NOT_SERVING"}


async def _answer(
    service: Service, token: Token | None, request: Any, call: Call, data: bytes, context: grpc.aio.ServicerContext
) -> bytes:
    """One call, from bytes to bytes; what is refused ends with its code and reason."""
    began_ns = time.perf_counter_ns()
    message = None
    try:
        if token is not None:
            token.check(_authorization(context))
        message = _parsed(request, data)
        answered: bytes = (await call(message, context)).SerializeToString()
        return answered
    except WireError as error:
        refusal = error
    except Exception as error:  # a bug of ours; gRPC would say UNKNOWN of it
        _LOG.exception("a call failed")
        refusal = WireError(Reason.INTERNAL, f"the call failed with {type(error).__name__}")
    service.refused(refusal, _asked(service, message), time.perf_counter_ns() - began_ns)
    await context.abort(CODES[refusal.reason], refusal.message, (("reason", refusal.reason.word),))
    raise AssertionError("abort raises")


def _authorization(context: grpc.aio.ServicerContext) -> str | None:
    found = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    return found[0] if len(found) == 1 else None


def _parsed(request: Any, data: bytes) -> Any:
    try:
        return request.FromString(data)
    except DecodeError as error:
        raise WireError(Reason.MALFORMED, "the message is no protobuf message of this call") from error


def _asked(service: Service, message: Any) -> str:
    """The name that a refused inference is counted under."""
    name = getattr(message, "model_name", NO_MODEL)
    return name if name in service.models else NO_MODEL


async def _document(name: str, make: Callable[[Any], dict[str, Any]], request: Any, _context: Any) -> Any:
    """A document as the call's message; what the message has no field for is left out."""
    return json_format.ParseDict(make(request), CLASSES[f"{name}Response"](), ignore_unknown_fields=True)


async def _infer(service: Service, request: Any, context: grpc.aio.ServicerContext) -> Any:
    arrived_ns = time.perf_counter_ns()
    service.require_open()
    model = service.model(request.model_name, request.model_version)
    answer = await service.infer(model, _request(request, model, context.time_remaining()), arrived_ns)
    context.set_trailing_metadata((("server-timing", format_server_timing(answer.timing)),))
    return _reply(answer, model.interface)


def _request(message: Any, model: Model, left_s: float | None) -> Request:
    """Rewrites a request as its HTTP form, and checks that.

    Args:
        message: a ``ModelInferRequest``.
        model: that it asks.
        left_s: until the client's deadline; ``None`` for ever.

    Raises:
        WireError: as `splitboard.contract.wire.decode_request`, and for tensors that are not raw.
    """
    raw = message.raw_input_contents
    if len(raw) != len(message.inputs):
        found = f"{len(raw)} for {len(message.inputs)} inputs"
        raise WireError(Reason.MALFORMED, f"every input needs its bytes in raw_input_contents, found {found}")
    parameters = _plain(message.parameters)
    if left_s is not None and math.isfinite(left_s):
        left_us = max(0, min(int(left_s * 1e6), MAX_DEADLINE_US))
        given = parameters.get("timeout", left_us)
        parameters["timeout"] = min(given, left_us) if type(given) is int else given
    header: dict[str, Any] = {
        "parameters": parameters,
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": {"binary_data_size": len(contents)},
            }
            for tensor, contents in zip(message.inputs, raw, strict=True)
        ],
    }
    if message.id:
        header["id"] = message.id
    if message.outputs:
        header["outputs"] = [{"name": one.name, "parameters": {"binary_data": True}} for one in message.outputs]
    else:
        parameters["binary_data_output"] = True
    text = json.dumps(header).encode("ascii")
    return decode_request(b"".join([text, *raw]), str(len(text)), model.interface)


def _plain(parameters: Any) -> dict[str, Any]:
    """Parameters as JSON has them; one without a value is null."""
    kinds = ((key, value, value.WhichOneof("parameter_choice")) for key, value in parameters.items())
    return {key: None if kind is None else getattr(value, kind) for key, value, kind in kinds}


def _reply(answer: Answer, of: Interface) -> Any:
    specs = {spec.name: spec for spec in of.outputs}
    message = CLASSES["ModelInferResponse"](model_name=of.model, model_version=VERSION, id=answer.request.id or "")
    checksum = 0
    for name in answer.request.outputs:
        raw = answer.outputs[name].astype("<f4", copy=False).tobytes()
        checksum = crc32(raw, checksum)
        message.outputs.add(name=name, datatype=DATATYPES[specs[name].dtype], shape=specs[name].shape)
        message.raw_output_contents.append(raw)
    message.parameters["bundle"].string_param = of.bundle
    message.parameters["split"].string_param = of.split
    message.parameters["crc32"].int64_param = checksum
    return message
