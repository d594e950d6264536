"""Bytes for the server's real protocol object without a socket, and a check of whatever it answers.

`Fuzzed.exchange` plays the part of the event loop: it hands over bytes in pieces as sockets do, runs what is scheduled
and collects what is written. `mutated_stream` makes requests that are nearly right, from any source of choices.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import queue
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import onnxruntime
import zstandard
from onnx import TensorProto, helper
from PIL import Image

from runtime_server.http_connection import Connection, Connections, Limits
from runtime_server.http_front import HttpFront
from runtime_server.models import Model
from runtime_server.service import Service
from splitboard.contract.bundle import TensorSpec
from splitboard.contract.interface import Interface, Reason

T = TypeVar("T")
_IMAGE = TensorSpec("image", (1, 8, 8, 1), "uint8", "NHWC")
_SCORES = (TensorSpec("a", (1, 4), "float32", "NC"), TensorSpec("b", (1, 2), "float32", "NC"))
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [A-Za-z -]+")
_HEADER = re.compile(rb"[A-Za-z-]+: [\x20-\x7e]+")
_REASONS = {reason.word: reason.status for reason in Reason}
_ANSWER_S = 20


def small_model() -> Model:
    """Two outputs of an image of 8x8 pixels, which may be sent as a JPEG file."""
    ranges = [helper.make_tensor(f"{name}.to", TensorProto.INT64, [1], [size]) for name, size in (("a", 4), ("b", 2))]
    zero = helper.make_tensor("zero", TensorProto.INT64, [1], [0])
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["float"], to=TensorProto.FLOAT),
        *(helper.make_node("Slice", ["float", "zero", f"{name}.to", "one"], [name]) for name in ("a", "b")),
    ]
    outputs = [helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, spec.shape) for spec in _SCORES]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, _IMAGE.shape)
    graph = helper.make_graph(nodes, "small", [image], outputs, [*ranges, zero, one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return Model(Interface("small", "ab" * 32, "s00", (_IMAGE,), _SCORES), session)


class _Loop:
    """As much of an event loop as a connection uses; its clock stands still."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()

    def time(self) -> float:
        return 0.0

    def call_soon(self, function: Callable[..., object], *arguments: Any) -> None:
        self.calls.put(lambda: function(*arguments))

    call_soon_threadsafe = call_soon


class _Transport:
    """Remembers what was written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.reads = True
        self.ended = self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.ended
        assert not self.closed
        self.written.append(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    abort = close


class Fuzzed:
    """A server without sockets."""

    def __init__(self) -> None:
        self.service = Service({"small": small_model()})
        self._loop = _Loop()
        self.connections = Connections(HttpFront(self.service), Limits(), self._loop)  # type: ignore[arg-type]

    def exchange(self, pieces: Iterable[bytes], *, times_out: bool = False) -> bytes:
        """Everything that a client is answered that sends these pieces and then goes, or waits for too long.

        Raises:
            queue.Empty: an answer never came.
        """
        connection, transport = Connection(self.connections), _Transport()
        connection.connection_made(transport)  # type: ignore[arg-type]
        for piece in pieces:
            left = memoryview(piece)
            while left and not transport.closed:
                while not transport.reads:
                    self._run_one()
                space = connection.get_buffer(-1)
                n_bytes = min(len(space), len(left))
                assert n_bytes > 0
                space[:n_bytes] = left[:n_bytes]
                connection.buffer_updated(n_bytes)
                left = left[n_bytes:]
                with contextlib.suppress(queue.Empty):
                    self._loop.calls.get_nowait()()
        self._settle(connection)
        if times_out and not transport.closed:
            connection.expire()
        connection.connection_lost(None)
        assert self.connections.arriving_bytes == 0
        return b"".join(transport.written)

    def _settle(self, connection: Connection) -> None:
        """Waits for answers that are still computed. A body that is not complete is awaited by nobody."""
        while self.service.n_waiting or connection.awaits_answer or not self._loop.calls.empty():
            self._run_one()

    def _run_one(self) -> None:
        self._loop.calls.get(timeout=_ANSWER_S)()


def check_answers(said: bytes) -> list[int]:
    """The statuses of a stream of answers, each of which must be well-formed to its last byte."""
    statuses = []
    while said:
        head, end, said = said.partition(b"\r\n\r\n")
        assert end, head
        first, *lines = head.split(b"\r\n")
        found = _STATUS.fullmatch(first)
        assert found, first
        status = int(found.group(1))
        assert all(_HEADER.fullmatch(line) for line in lines), lines
        headers = {name.decode().lower(): value.decode() for name, value in (line.split(b": ", 1) for line in lines)}
        if status == 100:
            assert not headers
            continue
        assert len(headers) == len(lines)
        size = int(headers["content-length"])
        statuses.append(status)
        if said[:5] == b"HTTP/" or not said:  # an answer to HEAD
            assert status >= 400
            continue
        body, said = said[:size], said[size:]
        assert len(body) == size
        _check_body(status, headers, body)
    return statuses


def _check_body(status: int, headers: dict[str, str], body: bytes) -> None:
    if "inference-header-content-length" in headers:
        n_json = int(headers["inference-header-content-length"])
        outputs = json.loads(body[:n_json])["outputs"]
        assert status == 200
        assert len(body) - n_json == sum(one["parameters"]["binary_data_size"] for one in outputs)
    elif status == 200:
        assert body[:1] in b"{[" or headers["content-type"].startswith("text/plain")
    else:
        said = json.loads(body)
        assert _REASONS[said["reason"]] == status
        assert said["error"].isprintable()


class Choices(Protocol):
    """Where choices come from: a seed, hypothesis, or a fuzzer's bytes."""

    def number(self, low: int, high: int) -> int:
        """A whole number, both ends included."""

    def one(self, options: Sequence[T]) -> T:
        """One of them."""

    def some_bytes(self, most: int) -> bytes:
        """At most so many."""


_PATHS = (
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/metrics",
    "/v2/models/stats",
    "/v2/models/small",
    "/v2/models/small/config",
    "/v2/models/small/ready",
    "/v2/repository/index",
    "/v2/models/other/infer",
    "/v2/models/sm%61ll/infer?x=1",
    "//",
    "*",
    "/" + "x" * 300,
    "/v2/models/%",
)
_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**40,
    0.5,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x",
    "small",
    "\ud800",
    "\x00",
    "é" * 50,
    [],
    [[]],
    [1, 8, 8, 1],
    [1.0, 8, 8, 1],
    {},
    {"name": "image"},
    {"binary_data_size": 64},
)
_HEADERS = (
    ("Transfer-Encoding", "chunked"),
    ("Transfer-Encoding", "identity"),
    ("Expect", "100-continue"),
    ("Connection", "close"),
    ("Connection", "upgrade"),
    ("Upgrade", "h2c"),
    ("Content-Encoding", "zstd"),
    ("Content-Encoding", "gzip"),
    ("Content-Length", "0"),
    ("Content-Length", "9" * 30),
    ("Content-Length", "+5"),
    ("Inference-Header-Content-Length", "1"),
    ("Inference-Header-Content-Length", "-1"),
    ("Inference-Header-Content-Length", "99999"),
    ("Authorization", "Bearer x"),
    ("X", "y" * 5000),
)
_NOISE = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)


def _jpeg(size: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_NOISE[:size]).save(file, "JPEG")
    return file.getvalue()


_JPEGS = (_jpeg(8), _jpeg(7))


def mutated_stream(choose: Choices) -> list[bytes]:
    """One to three requests, each right but for a few changes, as pieces of one stream."""
    stream = b"".join(_request(choose) for _ in range(choose.number(1, 3)))
    for _ in range(choose.one((0,) * 6 + (1, 2, 5))):
        stream = _damaged(choose, stream)
    cuts = sorted(choose.number(0, len(stream)) for _ in range(choose.one((0, 0, 1, 2, 8))))
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def _request(choose: Choices) -> bytes:
    if choose.number(0, 4) == 0:
        method, path, body, headers = (
            choose.one(("GET", "GET", "POST", "HEAD", "BREW", "")),
            choose.one(_PATHS),
            b"",
            [],
        )
    else:
        method, path = "POST", choose.one(("/v2/models/small/infer", "/v2/models/small/versions/1/infer"))
        body, headers = _infer(choose)
    if body or choose.number(0, 1):
        shift = choose.one((0,) * 12 + (1, -1, 100))
        headers.append(("Content-Length", str(max(0, len(body) + shift))))
    for _ in range(choose.one((0, 0, 0, 0, 0, 1, 2))):
        headers.insert(choose.number(0, len(headers)), choose.one(_HEADERS))
    version = choose.one(("1.1",) * 30 + ("1.0", "2.0", "0.9"))
    lines = [f"{method} {path} HTTP/{version}", "Host: x", *(f"{name}: {value}" for name, value in headers)]
    end = choose.one(("\r\n",) * 30 + ("\n", "\r"))
    return end.join([*lines, "", ""]).encode() + body


def _infer(choose: Choices) -> tuple[bytes, list[tuple[str, str]]]:
    jpeg = choose.number(0, 4) == 0
    file = choose.one(_JPEGS)
    raw = struct.pack("<I", len(file)) + file if jpeg else _NOISE.tobytes()
    header: dict[str, Any] = {
        "id": "7",
        "parameters": {
            "bundle": "ab" * 32,
            "split": "s00",
            "crc32": zlib.crc32(raw),
            "timeout": choose.one((10**9,) * 20 + (0,)),
        },
        "inputs": [
            {
                "name": "image",
                "shape": [1] if jpeg else [1, 8, 8, 1],
                "datatype": "BYTES" if jpeg else "UINT8",
                "parameters": {"binary_data_size": len(raw)},
            }
        ],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in ("a", "b")],
    }
    for _ in range(choose.one((0, 0, 0, 0, 1, 1, 2, 4))):
        _change(choose, header)
    text = json.dumps(header).encode()
    if choose.number(0, 19) == 0:
        text = choose.one((b"[" * 9000, b'{"a":' * 9000, b"\xff\xfe", b"{", text + b" " * 70_000))
    if choose.number(0, 9) == 0:
        raw = _damaged(choose, raw)
    length = max(0, len(text) + choose.one((0,) * 15 + (1, -1, 64)))
    headers = [("Inference-Header-Content-Length", str(length))]
    body = text + raw
    if choose.number(0, 4) == 0:
        frame = zstandard.ZstdCompressor(level=1).compress(body)
        body = frame if choose.number(0, 3) else _damaged(choose, frame)
        headers.append(("Content-Encoding", "zstd"))
    return body, headers


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _change(choose: Choices, header: dict[str, Any]) -> None:
    places = list(_places(header))
    if not places:
        return
    container, key = choose.one(places)
    what = choose.number(0, 5)
    if what == 0:
        del container[key]
    elif what == 1 and isinstance(container, list):
        container.append(copy.deepcopy(container[key]))
    elif what == 2 and isinstance(container, dict):
        container[str(choose.one(_VALUES))] = container.pop(key)
    else:
        container[key] = copy.deepcopy(choose.one(_VALUES))


def _damaged(choose: Choices, data: bytes) -> bytes:
    start = choose.number(0, len(data))
    end = min(len(data), start + choose.one((0, 1, 1, 4, 100)))
    what = choose.number(0, 4)
    if what == 0:
        return data[:start]
    if what == 1:
        return data[:start] + data[end:]
    if what == 2 and start < len(data):
        return data[:start] + bytes([data[start] ^ (1 << choose.number(0, 7))]) + data[start + 1 :]
    if what == 3:
        return data[:start] + data[start:end] * choose.number(1, 50) + data[end:]
    return data[:start] + choose.some_bytes(40) + data[end:]
