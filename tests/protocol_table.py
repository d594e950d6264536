"""How a server of the protocol answers: requests, good and bad, and the statuses of real Triton and of our server.

Triton's column was read off Triton 2.51 and is compared with the real one by the tests marked triton. Where the two
columns differ, the row says why. All requests go to the tiny bundle's ``tiny-s00``, whose input is an image of
``[1, 32, 32, 1]``, UINT8, and whose outputs are ``shape`` and ``colour``.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runtime_server.grpc_messages import CLASSES

MODEL = "tiny-s00"
SHAPES = {"shape": [1, 2], "colour": [1, 3]}
PIXELS = np.random.default_rng(1).integers(0, 256, (1, 32, 32, 1)).astype(np.uint8)
RAW = PIXELS.tobytes()
INFER = f"/v2/models/{MODEL}/infer"
LENGTH = "Inference-Header-Content-Length"

BLAME = "the client is at fault, and an error of the server would make it try again"
BINARY = "only binary tensors are taken and given"
ONCE = "a name that is there twice is a mistake of the client"


@dataclass(frozen=True)
class HttpRow:
    """One HTTP request.

    Attributes:
        name: of the case.
        triton: status that Triton answers.
        ours: status that our server answers.
        body: of the request; an iterator is sent in chunks.
        headers: of the request.
        path: where it goes.
        method: by which.
        outputs: of a reply with tensors, their names in order.
        id: that the reply has.
        why: the statuses differ.
    """

    name: str
    triton: int
    ours: int
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = INFER
    method: str = "POST"
    outputs: tuple[str, ...] = ()
    id: str | None = None
    why: str = ""


def _input(**changes: Any) -> dict[str, Any]:
    size = {"binary_data_size": len(RAW)}
    return {"name": "image", "shape": [1, 32, 32, 1], "datatype": "UINT8", "parameters": size, **changes}


def _binary(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "parameters": {"binary_data": True}} for name in names]


def _header(*inputs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The JSON part; a key that is given as ``None`` is left out."""
    whole = {"inputs": list(inputs) or [_input()], "outputs": _binary(*SHAPES), **changes}
    return {key: value for key, value in whole.items() if value is not None}


def _ask(name: str, triton: int, header: Any, ours: int | None = None, raw: bytes = RAW, **more: Any) -> HttpRow:
    """An inference whose JSON part is `header`, an object or text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    headers = {LENGTH: str(len(text))}
    return HttpRow(name, triton, triton if ours is None else ours, text + raw, headers, **more)


def _good(name: str, header: Any, **more: Any) -> HttpRow:
    return _ask(name, 200, header, **{"outputs": tuple(SHAPES), **more})


def _get(name: str, path: str, triton: int, ours: int | None = None, method: str = "GET", why: str = "") -> HttpRow:
    return HttpRow(name, triton, triton if ours is None else ours, path=path, method=method, why=why)


def _encoded() -> tuple[bytes, dict[str, str]]:
    text = json.dumps(_header()).encode()
    return gzip.compress(text + RAW), {LENGTH: str(len(text)), "Content-Encoding": "gzip"}


def _unframed(name: str, body: bytes, length: str | None, triton: int, why: str = "") -> HttpRow:
    """A body whose JSON part is not told as it should be, which our server calls malformed."""
    return HttpRow(name, triton, 400, body, {} if length is None else {LENGTH: length}, why=why)


WHOLE = json.dumps(_header()).encode() + RAW

HTTP = [
    _good("all outputs", _header()),
    _good("an id is echoed", _header(id="seven"), id="seven"),
    _good("some outputs", _header(outputs=_binary("colour")), outputs=("colour",)),
    _good("outputs in another order", _header(outputs=_binary("colour", "shape"))),
    _good("no outputs named", _header(outputs=None, parameters={"binary_data_output": True})),
    _good("what splitboard adds", _header(parameters={"split": "s00", "crc32": zlib.crc32(RAW), "timeout": 9_000_000})),
    _good("unknown parameters", _header(parameters={"mine": 1, "yours": "x", "ours": True})),
    _good("by version", _header(), path=f"/v2/models/{MODEL}/versions/1/infer"),
    # The pair.
    _ask("of another bundle", 400, _header(parameters={"bundle": "0" * 64}), 409, why="Triton's back ends have no 409"),
    _ask("of another split", 400, _header(parameters={"split": "s99"}), 409, why="Triton's back ends have no 409"),
    _ask("changed on the way", 400, _header(parameters={"crc32": zlib.crc32(RAW) ^ 1})),
    _ask("crc32 that is no number", 400, _header(parameters={"crc32": "x"})),
    _ask("bundle that is no text", 400, _header(parameters={"bundle": 3})),
    _ask("too late", 503, _header(parameters={"timeout": 1}), 504, why="overloaded and expired are told apart"),
    _ask("timeout below 0", 500, _header(parameters={"timeout": -1}), 400, why=BLAME),
    _ask("timeout that is no number", 500, _header(parameters={"timeout": "5"}), 400, why=BLAME),
    _ask("parameters that are a list", 500, _header(parameters=[]), 400, why=BLAME),
    # Inputs.
    _ask("another shape", 400, _header(_input(shape=[1, 1024]))),
    _ask("another rank", 400, _header(_input(shape=[1, 1, 32, 32, 1]))),
    _ask("a size below 0", 500, _header(_input(shape=[1, -1, 32, 1])), 400, why=BLAME),
    _ask("a size that is not whole", 500, _header(_input(shape=[1, 32.0, 32, 1])), 400, why=BLAME),
    _ask("a shape that is text", 500, _header(_input(shape="1x32x32x1")), 400, why=BLAME),
    _ask("another type", 400, _header(_input(datatype="INT8"))),
    _ask("an unknown type", 400, _header(_input(datatype="uint8"))),
    _ask("no type", 500, _header({**_input(), "datatype": None}), 400, why=BLAME),
    _ask("a short body", 400, _header(), raw=RAW[:-1]),
    _ask("a long body", 400, _header(), raw=RAW + b"!"),
    _ask("a size that is too small", 400, _header(_input(parameters={"binary_data_size": 10}))),
    _ask("a size that is too large", 400, _header(_input(parameters={"binary_data_size": 5000}))),
    _ask("a size that is text", 500, _header(_input(parameters={"binary_data_size": "1024"})), 400, why=BLAME),
    _ask("no binary size", 400, _header(_input(parameters={}))),
    _ask("no inputs", 400, _header(inputs=[]), raw=b""),
    _ask("no list of inputs", 500, _header(inputs=None), 400, why=BLAME),
    _ask("an unknown input", 400, _header(_input(name="picture"))),
    _ask("an input more", 400, _header(_input(), _input(name="picture")), raw=RAW * 2),
    _ask("an input twice", 400, _header(_input(), _input()), raw=RAW * 2),
    _ask("an input's name is a number", 500, _header(_input(name=3)), 400, why=BLAME),
    _ask(
        "a file in place of pixels", 400, _header(_input(datatype="BYTES", shape=[1])), raw=b"\x04\0\0\0" + RAW[:1020]
    ),
    _ask("tensors as JSON", 200, _header({**_input(data=[0] * 1024), "parameters": {}}), 400, raw=b"", why=BINARY),
    # Outputs.
    _ask("an unknown output", 400, _header(outputs=_binary("depth"))),
    _ask("an output twice", 200, _header(outputs=_binary("shape", "shape")), 400, why=ONCE),
    _ask("an empty list of outputs", 200, _header(outputs=[]), 400, why=BINARY),
    _ask("outputs as JSON", 200, _header(outputs=[{"name": "shape"}]), 400, why=BINARY),
    _ask("no word on outputs", 200, _header(outputs=None), 400, why=BINARY),
    _ask(
        "names of classes",
        200,
        _header(outputs=[{"name": "shape", "parameters": {"classification": 1}}]),
        400,
        why="the classification extension is not there",
    ),
    # The JSON part.
    _ask("an id that is a number", 500, _header(id=3), 400, why=BLAME),
    _ask("bad JSON", 500, b"{nix", 400, raw=b"", why=BLAME),
    _ask("JSON that is a list", 500, b"[]", 400, raw=b"", why=BLAME),
    _ask("deep JSON", 500, b"[" * 20_000, 400, raw=b"", why=BLAME),
    _unframed("a length beyond the body", b"{}", "9", 400),
    _unframed("a length below 0", b"{}", "-1", 400),
    _unframed("a length that is no number", b"{}", "x", 400),
    _unframed("no length", WHOLE, None, 500, BLAME),
    _unframed("an empty body", b"", None, 400),
    _unframed("a length of 0", RAW, "0", 200, "the extension for raw requests is not there"),
    HttpRow("gzip", 200, 415, *_encoded(), outputs=tuple(SHAPES), why="zstd is the one encoding that is taken"),
    HttpRow(
        "in chunks",
        200,
        400,
        [WHOLE],
        {LENGTH: str(len(WHOLE) - len(RAW))},
        outputs=tuple(SHAPES),
        why="the length is asked for in advance, so that memory stays bounded",
    ),
    _ask("a body that is too large", 400, _header(), 413, raw=RAW * 100, why="it is refused before it is received"),
    # Names and methods.
    _ask("an unknown model", 404, _header(), path="/v2/models/nix/infer"),
    _ask("an unknown version", 404, _header(), path=f"/v2/models/{MODEL}/versions/9/infer"),
    _ask("infer by PUT", 405, _header(), method="PUT"),
    _get("infer by GET", INFER, 405),
    _get("a model by DELETE", f"/v2/models/{MODEL}", 405, method="DELETE"),
    _get("the server by POST", "/v2", 405, method="POST"),
    _get("health by POST", "/v2/health/ready", 405, method="POST"),
    _get("alive", "/v2/health/live", 200),
    _get("ready", "/v2/health/ready", 200),
    _get("a model is ready", f"/v2/models/{MODEL}/ready", 200),
    _get("an unknown model is not ready", "/v2/models/nix/ready", 400, 404, why="the model is not there"),
    _get("the server", "/v2", 200),
    _get("a model", f"/v2/models/{MODEL}", 200),
    _get("a model by version", f"/v2/models/{MODEL}/versions/1", 200),
    _get("no such version", f"/v2/models/{MODEL}/versions/9", 404),
    _get("no such model", "/v2/models/nix", 404),
    _get("configuration", f"/v2/models/{MODEL}/config", 200),
    _get("configuration of no model", "/v2/models/nix/config", 404),
    _get("statistics", f"/v2/models/{MODEL}/stats", 200),
    _get("statistics of all", "/v2/models/stats", 200),
    _get("statistics of no model", "/v2/models/nix/stats", 400, 404, why="the model is not there"),
    _get("the repository", "/v2/repository/index", 200, method="POST"),
    _get(
        "loading a model",
        f"/v2/repository/models/{MODEL}/load",
        503,
        404,
        method="POST",
        why="models come with their bundle, there is no such endpoint",
    ),
    _get("nothing", "/", 404),
    _get("a list of models", "/v2/models", 404),
    _get("another version of the protocol", "/v1/models", 404),
]

Change = Callable[[Any], None]


@dataclass(frozen=True)
class GrpcRow:
    """One gRPC call.

    Attributes:
        name: of the case.
        triton: status code's name that Triton answers.
        ours: that our server answers.
        reason: in the trailing metadata of our refusals; ``None`` where gRPC itself refuses.
        method: of the service.
        request: the message, or bytes that are none.
        outputs: of a reply with tensors, their names in order.
        why: the codes differ.
    """

    name: str
    triton: str
    ours: str
    reason: str | None
    method: str
    request: Any
    outputs: tuple[str, ...] = ()
    why: str = ""

    @property
    def data(self) -> bytes:
        """The request's bytes."""
        return self.request if isinstance(self.request, bytes) else bytes(self.request.SerializeToString())


def infer_message(raw: Sequence[bytes] = (RAW,), outputs: Sequence[str] = tuple(SHAPES), **changes: Any) -> Any:
    """A good ``ModelInferRequest``, but for what is changed of its input."""
    message = CLASSES["ModelInferRequest"](model_name=MODEL, id="seven", raw_input_contents=raw)
    message.inputs.add(**{"name": "image", "datatype": "UINT8", "shape": PIXELS.shape, **changes})
    for name in outputs:
        message.outputs.add(name=name)
    return message


def _call(
    name: str, triton: str, request: Any, ours: str | None = None, reason: str = "malformed", why: str = ""
) -> GrpcRow:
    return GrpcRow(name, triton, triton if ours is None else ours, reason, "ModelInfer", request, why=why)


def _answered(name: str, request: Any, outputs: tuple[str, ...] = tuple(SHAPES)) -> GrpcRow:
    return GrpcRow(name, "OK", "OK", None, "ModelInfer", request, outputs)


def _changed(change: Change, **more: Any) -> Any:
    message = infer_message(**more)
    change(message)
    return message


def _parameter(name: str, **value: Any) -> Any:
    """A good request with a parameter of this name; without a value for ``None``."""
    return _changed(lambda message: message.parameters[name].MergeFrom(CLASSES["InferParameter"](**value)))


def _named(method: str, name: str, triton: str, ours: str | None = None, why: str = "") -> GrpcRow:
    request = CLASSES[f"{method}Request"](name=name)
    return GrpcRow(f"{method} of {name}", triton, ours or triton, "not_found", method, request, why=why)


def _bare(method: str) -> GrpcRow:
    return GrpcRow(method, "OK", "OK", None, method, CLASSES[f"{method}Request"]())


def _second(name: str) -> Change:
    return lambda message: message.inputs.add(name=name, datatype="UINT8", shape=PIXELS.shape)


def _version(version: str) -> Change:
    return lambda message: setattr(message, "model_version", version)


INVALID = "INVALID_ARGUMENT"
REASON = "the reason has a code of its own"

GRPC = [
    _answered("all outputs", infer_message()),
    _answered("some outputs", infer_message(outputs=["colour"]), ("colour",)),
    _answered("no outputs named", infer_message(outputs=[])),
    _answered("by version", _changed(_version("1"))),
    _answered("crc32", _parameter("crc32", int64_param=zlib.crc32(RAW))),
    _answered("split", _parameter("split", string_param="s00")),
    _answered("unknown parameter", _parameter("mine", bool_param=True)),
    _call("of another bundle", INVALID, _parameter("bundle", string_param="0"), "FAILED_PRECONDITION", "pair", REASON),
    _call("of another split", INVALID, _parameter("split", string_param="s99"), "FAILED_PRECONDITION", "pair", REASON),
    _call("changed on the way", INVALID, _parameter("crc32", int64_param=1), "DATA_LOSS", "corrupt", REASON),
    _call("a parameter without a value", INVALID, _parameter("bundle")),
    _call("too late", "UNAVAILABLE", _parameter("timeout", int64_param=1), "DEADLINE_EXCEEDED", "expired", REASON),
    _call("timeout that is text", INVALID, _parameter("timeout", string_param="5")),
    _call("timeout below 0", "OK", _parameter("timeout", int64_param=-1), INVALID, why="such a time means nothing"),
    _call("another shape", INVALID, infer_message(shape=[1, 1024])),
    _call("a size below 0", INVALID, infer_message(shape=[1, -1, 32, 1])),
    _call("another type", INVALID, infer_message(datatype="INT8")),
    _call("an unknown type", INVALID, infer_message(datatype="uint8")),
    _call("too few bytes", INVALID, infer_message([RAW[:-1]])),
    _call("too many bytes", INVALID, infer_message([RAW + b"!"])),
    _call("no bytes", INVALID, infer_message([])),
    _call("bytes of no input", "OK", infer_message([RAW, RAW]), INVALID, why="bytes that are left over are a mistake"),
    _call("an unknown input", INVALID, infer_message(name="picture")),
    _call("an input more", INVALID, _changed(_second("picture"), raw=[RAW, RAW])),
    _call("an input twice", INVALID, _changed(_second("image"), raw=[RAW, RAW])),
    _call("no input", INVALID, _changed(lambda message: message.inputs.pop(), raw=[])),
    _call("an unknown output", INVALID, infer_message(outputs=["depth"])),
    _call("an output twice", "OK", infer_message(outputs=["shape", "shape"]), INVALID, why=ONCE),
    _call(
        "an unknown model",
        "NOT_FOUND",
        _changed(lambda message: setattr(message, "model_name", "nix")),
        None,
        "not_found",
    ),
    _call("an unknown version", "NOT_FOUND", _changed(_version("9")), None, "not_found"),
    _call(
        "a version that is text", INVALID, _changed(_version("x")), "NOT_FOUND", "not_found", "there is no such version"
    ),
    _call("no message", "INTERNAL", b"\xff\xff\xff", INVALID, why=BLAME),
    _call("an empty message", "NOT_FOUND", b"", None, "not_found"),
    GrpcRow(
        "a message that is too large",
        INVALID,
        "RESOURCE_EXHAUSTED",
        None,
        "ModelInfer",
        infer_message([RAW * 100]),
        why="gRPC refuses it before it is received",
    ),
    GrpcRow("an unknown method", "UNIMPLEMENTED", "UNIMPLEMENTED", None, "Nix", b""),
    _bare("ServerLive"),
    _bare("ServerReady"),
    _bare("ServerMetadata"),
    _bare("RepositoryIndex"),
    *(_named(f"Model{what}", MODEL, "OK") for what in ("Ready", "Metadata", "Config", "Statistics")),
    _named("ModelStatistics", "", "OK"),
    _named("ModelReady", "nix", "OK"),
    _named("ModelMetadata", "nix", "NOT_FOUND"),
    _named("ModelConfig", "nix", "NOT_FOUND"),
    _named("ModelStatistics", "nix", INVALID, "NOT_FOUND", "the model is not there"),
]


def tensors(header: Mapping[str, Any], binary: bytes) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The float32 tensors of an HTTP reply, one by one; nothing may be left over."""
    start = 0
    for entry in header["outputs"]:
        assert entry["datatype"] == "FP32"
        end = start + entry["parameters"]["binary_data_size"]
        yield entry["name"], np.frombuffer(binary[start:end], "<f4").reshape(entry["shape"])
        start = end
    assert start == len(binary)
