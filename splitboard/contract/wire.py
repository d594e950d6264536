"""Open Inference Protocol v2 over HTTP/1.1 with the binary tensor extension: the bytes that board and server exchange.

A body is a JSON header followed by the tensors' bytes, little-endian, in the header's order. The HTTP header
``Inference-Header-Content-Length`` says where the JSON ends. Source: the protocol's "Binary Tensor Data Extension"
(KServe and NVIDIA Triton speak it). Ours on top, as request parameters: ``bundle`` and ``split`` pair the two halves,
``crc32`` (`zlib.crc32`) covers the bytes after the JSON.

What arrives is untrusted. Every size, shape, type, name and checksum is compared with what the served model expects
before a tensor is made, and anything else is a `WireError`.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from splitboard.contract.bundle import TensorSpec
from splitboard.contract.interface import MAX_HEADER_BYTES, Interface, WireError, too_large

HEADER_LENGTH = "Inference-Header-Content-Length"
DATATYPES = {"uint8": "UINT8", "int8": "INT8", "int16": "INT16", "float32": "FP32"}
"""The protocol's name of every numpy type that crosses the wire."""

_STORED: Dict[str, np.dtype[Any]] = {
    "uint8": np.dtype("u1"),
    "int8": np.dtype("i1"),
    "int16": np.dtype("<i2"),
    "float32": np.dtype("<f4"),
}
_TIMING = re.compile(r"queue;dur=([0-9]{1,12}\.[0-9]{3,9}), compute;dur=([0-9]{1,12}\.[0-9]{3,9})", re.ASCII)
_LENGTH = re.compile(r"[0-9]{1,12}", re.ASCII)

Array = NDArray[Any]
Buffer = Union[bytes, bytearray, memoryview]


@dataclass(frozen=True)
class Message:
    """The body of a request or a reply.

    Attributes:
        header: the JSON part.
        tensors: views of the arrays that were encoded, in the header's order.
    """

    header: bytes
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
    """

    inputs: Dict[str, Array]
    outputs: Tuple[str, ...]
    id: Optional[str]


def encode_request(inputs: Mapping[str, Array], to: Interface) -> Message:
    """A request for all outputs in binary form.

    Args:
        inputs: by name, of the shapes and types in ``to.inputs``.
        to: the model to ask.

    Raises:
        ValueError: an input has another shape or type than the interface says.
    """
    listed, views = _encode_tensors(inputs, to.inputs)
    crc32 = 0
    for view in views:
        crc32 = zlib.crc32(view, crc32)
    header = {
        "parameters": {"bundle": to.bundle, "split": to.split, "crc32": crc32},
        "inputs": listed,
        "outputs": [{"name": spec.name, "parameters": {"binary_data": True}} for spec in to.outputs],
    }
    return Message(_dump(header), views)


def encode_reply(outputs: Mapping[str, Array], of: Interface, request: Request) -> Message:
    """The reply to a request.

    Args:
        outputs: by name, float32; those that the request asks for.
        of: the model that answered.
        request: what was asked.

    Raises:
        ValueError: an output has another shape or type than the interface says.
    """
    specs = {spec.name: spec for spec in of.outputs}
    listed, views = _encode_tensors(outputs, [specs[name] for name in request.outputs])
    header: Dict[str, Any] = {"model_name": of.model, "model_version": "1", "outputs": listed}
    if request.id is not None:
        header["id"] = request.id
    return Message(_dump(header), views)


def decode_request(body: Buffer, header_length: Optional[str], to: Interface) -> Request:
    """Checks a request and makes its tensors.

    Args:
        body: the whole body.
        header_length: value of the HTTP header `HEADER_LENGTH`, ``None`` where there is none.
        to: the model that is asked.

    Raises:
        WireError: 400 malformed, 409 another bundle or split, 413 too large.
    """
    if len(body) > to.max_request_bytes:
        raise too_large(len(body), to)
    header, binary = _divide(body, header_length)
    parameters = _mapping(header.get("parameters", {}), "parameters")
    _check_pair(parameters, to)
    arrays = _decode_tensors(header, "inputs", binary, to.inputs)
    claimed = parameters.get("crc32")
    if type(claimed) is not int or not 0 <= claimed < 1 << 32:
        raise WireError(400, f"parameter crc32 must be a whole number below 2**32, found {_short(claimed)}")
    found = zlib.crc32(binary)
    if claimed != found:
        raise WireError(400, f"the tensors were changed on the way: crc32 is {found}, the request says {claimed}")
    return Request(arrays, _wanted(header, parameters, to), _id(header))


def decode_reply(body: Buffer, header_length: Optional[str], of: Interface) -> Dict[str, Array]:
    """Checks a reply to `encode_request` and makes its tensors.

    Args:
        body: the whole body; the arrays are views of it.
        header_length: value of the HTTP header `HEADER_LENGTH`, ``None`` where there is none.
        of: the model that was asked.

    Returns:
        Every output by name, float32 ``[1, classes]``.

    Raises:
        WireError: the reply is malformed or belongs to another model.
    """
    header, binary = _divide(body, header_length)
    if header.get("model_name") != of.model:
        raise WireError(400, f"the reply is of model {_short(header.get('model_name'))}, asked was {_short(of.model)}")
    return _decode_tensors(header, "outputs", binary, of.outputs)


def format_server_timing(queue_ns: int, compute_ns: int) -> str:
    """The ``Server-Timing`` header (W3C Server Timing, milliseconds) with the nanoseconds kept as decimals."""
    return f"queue;dur={queue_ns / 1e6:.6f}, compute;dur={compute_ns / 1e6:.6f}"


def parse_server_timing(text: str) -> Tuple[int, int]:
    """Queue and compute time in ns of a header that `format_server_timing` wrote.

    Raises:
        WireError: it is of another form.
    """
    found = _TIMING.fullmatch(text)
    if found is None:
        raise WireError(400, f"Server-Timing must read queue;dur=MS, compute;dur=MS, found {_short(text)}")
    return round(float(found.group(1)) * 1e6), round(float(found.group(2)) * 1e6)


def parse_length(text: str, what: str) -> int:
    """A number of bytes from an HTTP header: digits only.

    Raises:
        WireError: it is none.
    """
    if not _LENGTH.fullmatch(text):
        raise WireError(400, f"{what} must be a number of bytes, found {_short(text)}")
    return int(text)


def _dump(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":"), allow_nan=False).encode("ascii")


def _short(value: object) -> str:
    text = json.dumps(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _encode_tensors(
    arrays: Mapping[str, Array], specs: Sequence[TensorSpec]
) -> Tuple[List[Dict[str, Any]], Tuple[memoryview, ...]]:
    listed, views = [], []
    for spec in specs:
        array = arrays[spec.name]
        if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
            raise ValueError(
                f'tensor "{spec.name}" is {array.dtype} {list(array.shape)}, expected {spec.dtype} {list(spec.shape)}'
            )
        stored = np.ascontiguousarray(array, dtype=_STORED[spec.dtype])
        views.append(stored.reshape(-1).data.cast("B"))
        size = {"binary_data_size": spec.n_bytes}
        listed.append(
            {"name": spec.name, "shape": list(spec.shape), "datatype": DATATYPES[spec.dtype], "parameters": size}
        )
    return listed, tuple(views)


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise WireError(400, f"{what} must be a JSON object, found {_short(value)}")
    return value


def _list(value: object, what: str) -> List[Any]:
    if not isinstance(value, list):
        raise WireError(400, f"{what} must be a JSON list, found {_short(value)}")
    return value


def _divide(body: Buffer, header_length: Optional[str]) -> Tuple[Mapping[str, Any], memoryview]:
    """The parsed JSON part and the binary part."""
    if header_length is None:
        raise WireError(400, f"the HTTP header {HEADER_LENGTH} is missing: only binary tensors are taken")
    length = parse_length(header_length, HEADER_LENGTH)
    view = memoryview(body)
    if length > min(len(view), MAX_HEADER_BYTES):
        raise WireError(400, f"{HEADER_LENGTH} is {length}, the body has {len(view)} bytes, at most {MAX_HEADER_BYTES}")
    try:
        header = json.loads(str(view[:length], "utf-8"))
    except (ValueError, RecursionError) as error:
        raise WireError(400, f"the JSON part cannot be read: {_short(str(error))}") from error
    return _mapping(header, "the JSON part"), view[length:]


def _check_pair(parameters: Mapping[str, Any], to: Interface) -> None:
    for name, expected in (("bundle", to.bundle), ("split", to.split)):
        found = parameters.get(name)
        if not isinstance(found, str):
            raise WireError(400, f"parameter {name} is missing: the two halves must be of one bundle and split")
        if found != expected:
            raise WireError(409, f"{to.model} is of {name} {_short(expected)}, the request is of {_short(found)}")


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
            raise WireError(400, f"{key} must be {', '.join(expected)}, each once; found {_short(name)}")
        n_bytes = spec.n_bytes
        _check_entry(entry, spec, n_bytes)
        if start + n_bytes > len(binary):
            raise WireError(400, f"the body ends inside tensor {_short(name)}")
        piece = binary[start : start + n_bytes]
        array = np.frombuffer(piece, dtype=_STORED[spec.dtype]).reshape(spec.shape)
        arrays[spec.name] = array if array.flags.aligned else array.copy()
        start += n_bytes
    if len(arrays) != len(expected):
        raise WireError(400, f"{key} must be {', '.join(expected)}; missing: {', '.join(expected.keys() - arrays)}")
    if start != len(binary):
        raise WireError(400, f"the body has {len(binary) - start} bytes after the last tensor")
    return arrays


def _check_entry(entry: Mapping[str, Any], spec: TensorSpec, n_bytes: int) -> None:
    what = f"tensor {_short(spec.name)}"
    if "data" in entry:
        raise WireError(400, f"{what} is given as JSON: only binary tensors are taken")
    if entry.get("datatype") != DATATYPES[spec.dtype]:
        raise WireError(400, f"{what} must be {DATATYPES[spec.dtype]}, found {_short(entry.get('datatype'))}")
    shape = _list(entry.get("shape"), f"the shape of {what}")
    if not all(type(size) is int for size in shape) or tuple(shape) != spec.shape:
        raise WireError(400, f"{what} must have shape {list(spec.shape)}, found {_short(shape)}")
    size = _mapping(entry.get("parameters", {}), f"the parameters of {what}").get("binary_data_size")
    if type(size) is not int or size != n_bytes:
        raise WireError(400, f"{what} must have binary_data_size {n_bytes}, found {_short(size)}")


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
            raise WireError(400, f"outputs must be among {', '.join(known)}, each once; found {_short(name)}")
        own = _mapping(entry.get("parameters", {}), f"the parameters of output {_short(name)}")
        if own.get("binary_data", all_binary) is not True:
            raise WireError(400, f"output {_short(name)} must be asked for with binary_data true")
        names.append(name)
    if not names:
        raise WireError(400, f"outputs must be among {', '.join(known)}; found none")
    return tuple(names)


def _id(header: Mapping[str, Any]) -> Optional[str]:
    value = header.get("id")
    if value is not None and not isinstance(value, str):
        raise WireError(400, f"id must be text, found {_short(value)}")
    return value
