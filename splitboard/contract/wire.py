"""Open Inference Protocol v2 over HTTP/1.1 with the binary tensor extension: the bytes that board and server exchange.

A body is a JSON header followed by the tensors' bytes, little-endian, in the header's order. The HTTP header
``Inference-Header-Content-Length`` says where the JSON ends. Source: the protocol's "Binary Tensor Data Extension"
(KServe and NVIDIA Triton speak it). Ours on top, as parameters of requests and replies, each checked where it is given:
``bundle`` and ``split`` pair the two halves, ``crc32`` (`zlib.crc32`) covers the bytes after the JSON. A request's
``timeout`` (Triton's name) is the microseconds that its answer is still of use.

The image of remote only may be sent as a JPEG file: datatype ``BYTES`` of shape ``[1]``, its length in four bytes in
front of it, as the extension stores text.

What arrives is untrusted. Every size, shape, type, name and checksum is compared with what the served model expects
before a tensor is made, and anything else is a `WireError`.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.bundle import TensorSpec
from splitboard.contract.checksum import crc32
from splitboard.contract.interface import MAX_HEADER_BYTES, Interface, Reason, WireError, too_large

HEADER_LENGTH = "Inference-Header-Content-Length"
DATATYPES = {"uint8": "UINT8", "int8": "INT8", "int16": "INT16", "float32": "FP32"}
"""The protocol's name of every numpy type that crosses the wire."""

BYTES = "BYTES"
EXTENSION_ZSTD = "zstd"
"""A server that names this among its extensions takes bodies with ``Content-Encoding: zstd``."""

EXTENSION_JPEG = "jpeg"
"""A server that names this takes the image of remote only as a JPEG file."""

STORED: Dict[str, np.dtype[Any]] = {
    "uint8": np.dtype("u1"),
    "int8": np.dtype("i1"),
    "int16": np.dtype("<i2"),
    "float32": np.dtype("<f4"),
}
_DURATION = r"([0-9]{1,12}\.[0-9]{3,9})"
_TIMING = re.compile(rf"queue;dur={_DURATION}, decode;dur={_DURATION}, compute;dur={_DURATION}", re.ASCII)
_LENGTH = re.compile(r"[0-9]{1,12}", re.ASCII)
_TEXT_LENGTH = struct.Struct("<I")
_MAX_CRC32 = (1 << 32) - 1
MAX_TIMEOUT_US = 10**12 - 1
ROOM = "999999999999"
"""Digits that are written over in place; blanks stand in front of shorter numbers, which JSON allows."""

Array = NDArray[Any]
Buffer = Union[bytes, bytearray, memoryview]


@dataclass(frozen=True)
class Message:
    """The body of a request or a reply.

    Attributes:
        header: the JSON part.
        tensors: views of the arrays that were encoded, in the header's order.
    """

    header: Buffer
    tensors: Tuple[memoryview, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole body."""
        return len(self.header) + sum(len(tensor) for tensor in self.tensors)


@dataclass(frozen=True)
class Request:
    """A request that passed every check.

    Attributes:
        inputs: views of the body, by name.
        outputs: names of the outputs asked for.
        id: the client's, to be echoed.
        timeout_us: how long the answer is of use, counted from the request's arrival; ``None`` for ever.
        jpeg: the image as a JPEG file where it came as one; it is not among the inputs then.
    """

    inputs: Dict[str, Array]
    outputs: Tuple[str, ...]
    id: Optional[str] = None
    timeout_us: Optional[int] = None
    jpeg: Optional[memoryview] = None


class ServerTiming(NamedTuple):
    """The server's own part of a round trip, in ns.

    Attributes:
        queue_ns: waiting for a worker.
        decode_ns: reading the request (JSON, checks, checksum), zstd and JPEG undone.
        compute_ns: the server graph.
    """

    queue_ns: int
    decode_ns: int
    compute_ns: int


def encode_jpeg_request(
    jpeg: bytes, to: Interface, outputs: Sequence[str], timeout_us: int, number: int = 0
) -> Message:
    """A request to remote only with the image as a JPEG file; see `RequestForm.encode`."""
    ((image),) = to.inputs
    text = _TEXT_LENGTH.pack(len(jpeg)) + jpeg
    timeout_us = min(max(timeout_us, 0), MAX_TIMEOUT_US)
    header = {
        "id": id_of(number),
        "parameters": {**_parameters(to), "crc32": crc32(text, 0), "timeout": timeout_us},
        "inputs": [
            {"name": image.name, "shape": [1], "datatype": BYTES, "parameters": {"binary_data_size": len(text)}}
        ],
        "outputs": _asked([spec for spec in to.outputs if spec.name in outputs]),
    }
    return Message(dump(header), (memoryview(text),))


def encode_reply(outputs: Mapping[str, Array], of: Interface, request: Request) -> Message:
    """The reply to a request.

    Args:
        outputs: by name, float32; those that the request asks for.
        of: the model that answered.
        request: what was asked.

    Raises:
        ValueError: an output has another shape or type than the interface says.
    """
    named = {spec.name: spec for spec in of.outputs}
    specs = [named[name] for name in request.outputs]
    views = tuple(view_of(outputs[spec.name], spec) for spec in specs)
    header = reply_header(of, specs, request.id, checksum(views))
    return Message(dump(header), views)


def reply_header(of: Interface, outputs: Sequence[TensorSpec], id_: Optional[str], crc32_: int) -> Dict[str, Any]:
    """The JSON part of a reply."""
    header: Dict[str, Any] = {"model_name": of.model, "model_version": "1"}
    if id_ is not None:
        header["id"] = id_
    return {
        **header,
        "parameters": {**_parameters(of), "crc32": crc32_},
        "outputs": [_entry(spec) for spec in outputs],
    }


def request_header(
    to: Interface, outputs: Sequence[TensorSpec], id_: str, crc32_: int, timeout_us: int
) -> Dict[str, Any]:
    """The JSON part of a request."""
    return {
        "id": id_,
        "parameters": {**_parameters(to), "crc32": crc32_, "timeout": timeout_us},
        "inputs": [_entry(spec) for spec in to.inputs],
        "outputs": _asked(outputs),
    }


def decode_request(body: Buffer, header_length: Optional[str], to: Interface) -> Request:
    """Checks a request and makes its tensors.

    Args:
        body: the whole body, its content coding undone.
        header_length: value of the HTTP header `HEADER_LENGTH`, ``None`` where there is none.
        to: the model that is asked.

    Raises:
        WireError: malformed or corrupt, of another bundle or split, or too large.
    """
    if len(body) > to.max_request_bytes:
        raise too_large(len(body), to)
    header, binary = _divide(body, header_length)
    parameters = _mapping(header.get("parameters", {}), "parameters")
    _check_pair(parameters, to)
    jpeg = _jpeg(header, binary, to)
    arrays = {} if jpeg is not None else _decode_tensors(header, "inputs", binary, to.inputs)
    _check_crc32(parameters, binary)
    return Request(arrays, _wanted(header, parameters, to), _id(header), _timeout(parameters), jpeg)


def decode_reply(
    body: Buffer,
    header_length: Optional[str],
    of: Interface,
    outputs: Optional[Sequence[TensorSpec]] = None,
    number: Optional[int] = None,
) -> Dict[str, Array]:
    """Checks a reply and makes its tensors.

    Args:
        body: the whole body; the arrays are views of it.
        header_length: value of the HTTP header `HEADER_LENGTH`, ``None`` where there is none.
        of: the model that was asked.
        outputs: those that were asked for; all of the model's by default.
        number: of the request, where it had one.

    Returns:
        Every output by name, float32 ``[1, classes]``.

    Raises:
        WireError: the reply is malformed or corrupt, or belongs to another model, bundle or split.
    """
    header, binary = _divide(body, header_length)
    if header.get("model_name") != of.model:
        raise _malformed(f"the reply is of model {_short(header.get('model_name'))}, asked was {_short(of.model)}")
    if number is not None and header.get("id") != id_of(number):
        raise _malformed(f"the reply is to request {_short(header.get('id'))}, asked was {id_of(number)}")
    parameters = _mapping(header.get("parameters", {}), "parameters")
    _check_pair(parameters, of)
    arrays = _decode_tensors(header, "outputs", binary, of.outputs if outputs is None else outputs)
    _check_crc32(parameters, binary)
    return arrays


def format_server_timing(timing: ServerTiming) -> str:
    """The ``Server-Timing`` header (W3C Server Timing, milliseconds) with the nanoseconds kept as decimals."""
    queue_ns, decode_ns, compute_ns = timing
    return f"queue;dur={queue_ns / 1e6:.6f}, decode;dur={decode_ns / 1e6:.6f}, compute;dur={compute_ns / 1e6:.6f}"


def parse_server_timing(text: str) -> ServerTiming:
    """The server's times in a header that `format_server_timing` wrote.

    Raises:
        WireError: it is of another form.
    """
    found = _TIMING.fullmatch(text)
    if found is None:
        raise _malformed(f"Server-Timing must read queue;dur=MS, decode;dur=MS, compute;dur=MS, found {_short(text)}")
    return ServerTiming(*[round(float(text_ms) * 1e6) for text_ms in found.groups()])


def parse_length(text: str, what: str) -> int:
    """A number of bytes from an HTTP header: digits only.

    Raises:
        WireError: it is none.
    """
    if not _LENGTH.fullmatch(text):
        raise _malformed(f"{what} must be a number of bytes, found {_short(text)}")
    return int(text)


def _malformed(message: str) -> WireError:
    return WireError(Reason.MALFORMED, message)


def dump(header: Mapping[str, Any]) -> bytes:
    """The shortest JSON of it."""
    return json.dumps(header, separators=(",", ":"), allow_nan=False).encode("ascii")


def _short(value: object) -> str:
    text = json.dumps(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _parameters(of: Interface) -> Dict[str, Any]:
    return {"bundle": of.bundle, "split": of.split}


def _entry(spec: TensorSpec) -> Dict[str, Any]:
    size = {"binary_data_size": spec.n_bytes}
    return {"name": spec.name, "shape": list(spec.shape), "datatype": DATATYPES[spec.dtype], "parameters": size}


def _asked(outputs: Sequence[TensorSpec]) -> List[Dict[str, Any]]:
    return [{"name": spec.name, "parameters": {"binary_data": True}} for spec in outputs]


def view_of(array: Array, spec: TensorSpec) -> memoryview:
    """The bytes of an array as they are stored on the wire; a copy only where its memory is laid out otherwise."""
    stored_as = STORED[spec.dtype]
    if array.shape != spec.shape or array.dtype != stored_as:
        raise ValueError(
            f'tensor "{spec.name}" is {array.dtype} {list(array.shape)}, expected {spec.dtype} {list(spec.shape)}'
        )
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return array.data.cast("B")


def checksum(views: Sequence[memoryview]) -> int:
    """crc32 of pieces as if they were one."""
    total = 0
    for view in views:
        total = crc32(view, total)
    return total


def id_of(number: int) -> str:
    """A request's number as its id."""
    return str(number).zfill(len(ROOM))


def _mapping(value: object, what: str, name: str = "") -> Mapping[str, Any]:
    """The JSON object; ``name`` is quoted where the error names one, which is put together only then."""
    if not isinstance(value, dict):
        what = f"{what} {_short(name)}" if name else what
        raise _malformed(f"{what} must be a JSON object, found {_short(value)}")
    return value


def _list(value: object, what: str, name: str = "") -> List[Any]:
    if not isinstance(value, list):
        what = f"{what} {_short(name)}" if name else what
        raise _malformed(f"{what} must be a JSON list, found {_short(value)}")
    return value


def _divide(body: Buffer, header_length: Optional[str]) -> Tuple[Mapping[str, Any], memoryview]:
    """The parsed JSON part and the binary part."""
    if header_length is None:
        raise _malformed(f"the HTTP header {HEADER_LENGTH} is missing: only binary tensors are taken")
    length = parse_length(header_length, HEADER_LENGTH)
    view = memoryview(body)
    if length > min(len(view), MAX_HEADER_BYTES):
        raise _malformed(f"{HEADER_LENGTH} is {length}, the body has {len(view)} bytes, at most {MAX_HEADER_BYTES}")
    try:
        header = json.loads(str(view[:length], "utf-8"))
    except (ValueError, RecursionError) as error:
        raise _malformed(f"the JSON part cannot be read: {_short(str(error))}") from error
    return _mapping(header, "the JSON part"), view[length:]


def _check_pair(parameters: Mapping[str, Any], to: Interface) -> None:
    for name, expected in (("bundle", to.bundle), ("split", to.split)):
        found = parameters.get(name, expected)
        if not isinstance(found, str):
            raise _malformed(f"parameter {name} must be text, found {_short(found)}")
        if found != expected:
            raise WireError(
                Reason.PAIR, f"{to.model} is of {name} {_short(expected)} here and of {_short(found)} over there"
            )


def _check_crc32(parameters: Mapping[str, Any], binary: memoryview) -> None:
    if "crc32" not in parameters:
        return
    claimed = parameters["crc32"]
    if type(claimed) is not int or not 0 <= claimed <= _MAX_CRC32:
        raise _malformed(f"parameter crc32 must be a whole number below 2**32, found {_short(claimed)}")
    found = crc32(binary, 0)
    if claimed != found:
        raise WireError(
            Reason.CORRUPT, f"the tensors were changed on the way: crc32 is {found}, the sender says {claimed}"
        )


def _timeout(parameters: Mapping[str, Any]) -> Optional[int]:
    value = parameters.get("timeout")
    if value is not None and (type(value) is not int or not 0 <= value <= MAX_TIMEOUT_US):
        raise _malformed(f"parameter timeout must be whole microseconds below 10**12, found {_short(value)}")
    return value


def _jpeg(header: Mapping[str, Any], binary: memoryview, to: Interface) -> Optional[memoryview]:
    """The one input as a JPEG file; ``None`` where it did not come as one."""
    listed = _list(header.get("inputs"), "inputs")
    if not to.takes_jpeg or len(listed) != 1 or not isinstance(listed[0], dict) or listed[0].get("datatype") != BYTES:
        return None
    entry, name = listed[0], to.inputs[0].name
    size = _mapping(entry.get("parameters", {}), "the parameters of the image").get("binary_data_size")
    if entry.get("name") != name or entry.get("shape") != [1] or type(size) is not int or size != len(binary):
        raise _malformed(f"a JPEG file must be the only input {_short(name)}, BYTES of shape [1], as long as the body")
    if size < _TEXT_LENGTH.size or _TEXT_LENGTH.unpack_from(binary)[0] != size - _TEXT_LENGTH.size:
        raise _malformed("a JPEG file must follow its length in four bytes, little-endian, and nothing else")
    return binary[_TEXT_LENGTH.size :]


def _decode_tensors(
    header: Mapping[str, Any], key: str, binary: memoryview, specs: Sequence[TensorSpec]
) -> Dict[str, Array]:
    """Exactly the tensors of ``specs``, in any order; nothing may be missing, twice, or left over."""
    expected = {spec.name: spec for spec in specs}
    arrays: Dict[str, Array] = {}
    start = 0
    for item in _list(header.get(key), key):
        entry = _mapping(item, f"an entry of {key}")
        name = entry.get("name")
        spec = expected.get(name) if isinstance(name, str) else None
        if spec is None or spec.name in arrays:
            raise _malformed(f"{key} must be {', '.join(expected)}, each once; found {_short(name)}")
        n_bytes = spec.n_bytes
        _check_entry(entry, spec, n_bytes)
        if start + n_bytes > len(binary):
            raise _malformed(f"the body ends inside tensor {_short(name)}")
        piece = binary[start : start + n_bytes]
        array = np.frombuffer(piece, dtype=STORED[spec.dtype]).reshape(spec.shape)
        arrays[spec.name] = array if array.flags.aligned else array.copy()
        start += n_bytes
    if len(arrays) != len(expected):
        raise _malformed(f"{key} must be {', '.join(expected)}; missing: {', '.join(expected.keys() - arrays)}")
    if start != len(binary):
        raise _malformed(f"the body has {len(binary) - start} bytes after the last tensor")
    return arrays


def _check_entry(entry: Mapping[str, Any], spec: TensorSpec, n_bytes: int) -> None:
    if "data" in entry:
        raise _malformed(f"tensor {_short(spec.name)} is given as JSON: only binary tensors are taken")
    datatype = entry.get("datatype")
    if datatype != DATATYPES[spec.dtype]:
        raise _malformed(f"tensor {_short(spec.name)} must be {DATATYPES[spec.dtype]}, found {_short(datatype)}")
    shape = _list(entry.get("shape"), "the shape of tensor", spec.name)
    if tuple(shape) != spec.shape or not all(type(size) is int for size in shape):
        raise _malformed(f"tensor {_short(spec.name)} must have shape {list(spec.shape)}, found {_short(shape)}")
    size = _mapping(entry.get("parameters", {}), "the parameters of tensor", spec.name).get("binary_data_size")
    if type(size) is not int or size != n_bytes:
        raise _malformed(f"tensor {_short(spec.name)} must have binary_data_size {n_bytes}, found {_short(size)}")


def _wanted(header: Mapping[str, Any], parameters: Mapping[str, Any], to: Interface) -> Tuple[str, ...]:
    """Names of the outputs asked for; without a list all of them."""
    all_binary = parameters.get("binary_data_output", False) is True
    known = [spec.name for spec in to.outputs]
    listed = [{"name": name} for name in known] if "outputs" not in header else _list(header["outputs"], "outputs")
    names: List[str] = []
    for item in listed:
        entry = _mapping(item, "an entry of outputs")
        name = entry.get("name")
        if name not in known or name in names:
            raise _malformed(f"outputs must be among {', '.join(known)}, each once; found {_short(name)}")
        own = _mapping(entry.get("parameters", {}), "the parameters of output", name)
        if own.get("binary_data", all_binary) is not True:
            raise _malformed(f"output {_short(name)} must be asked for with binary_data true")
        names.append(name)
    if not names:
        raise _malformed(f"outputs must be among {', '.join(known)}; found none")
    return tuple(names)


def _id(header: Mapping[str, Any]) -> Optional[str]:
    value = header.get("id")
    if value is not None and not isinstance(value, str):
        raise _malformed(f"id must be text, found {_short(value)}")
    return value
