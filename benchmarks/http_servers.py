"""What does a round trip cost on our HTTP server, and what on uvicorn with the same work behind?

Both run one trivial graph (a slice of the input and a cast) at 50 KB and 500 KB, each in a process of its own, with the
same checks of the message: ours behind its queue, uvicorn as a plain ASGI callable with a thread pool. A third only
reads the request and writes 300 bytes (the floor of loopback and Python). Two clients: the standard library's
http.client, and one ``sendmsg`` with the reply received in place, as the edge runtime has it. Everything takes turns
within every round, and the clients make and check the crc32 as the edge does.

``--repository FOLDER`` writes the same graphs for a Triton with the Python back end; with that Triton running,
``--triton PORT`` measures it too (aim: ours with ``sendmsg`` at most 0.35 of Triton with http.client).

Usage: python benchmarks/http_servers.py
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
import uvloop
from onnx import TensorProto, helper
from output import ratio, show

from runtime_server.http_connection import Connection, Connections, Limits
from runtime_server.http_front import HttpFront
from runtime_server.models import Model
from runtime_server.service import Service
from splitboard import __version__
from splitboard.contract.bundle import TensorSpec
from splitboard.contract.forms import RequestForm
from splitboard.contract.interface import Interface
from splitboard.contract.wire import (
    HEADER_LENGTH,
    ServerTiming,
    decode_reply,
    decode_request,
    encode_reply,
    format_server_timing,
)

SIZES = (50_000, 500_000)
OUTPUTS = ("left", "right")


TRITON_MODEL = """
import pathlib, onnxruntime, triton_python_backend_utils as pb
class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        graph = pathlib.Path(__file__).with_name("model.onnx")
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    def execute(self, requests):
        return [self.answer(one) for one in requests]
    def answer(self, request):
        tensor = pb.get_input_tensor_by_name(request, "x").as_numpy()
        names = request.requested_output_names()
        outputs = self.session.run(names, {"x": tensor})
        return pb.InferenceResponse([pb.Tensor(*pair) for pair in zip(names, outputs)])
"""


def graph_bytes(n_bytes: int) -> bytes:
    """A graph that is all overhead: two outputs, ten numbers each, of an int8 input."""
    shape = [1, n_bytes]
    constants = [
        helper.make_tensor(name, TensorProto.INT64, [1], [value])
        for name, value in (("from", 0), ("to", 10), ("axis", 1))
    ]
    nodes = [helper.make_node("Slice", ["x", "from", "to", "axis"], ["some"])]
    nodes += [helper.make_node("Cast", ["some"], [name], to=TensorProto.FLOAT) for name in OUTPUTS]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 10]) for name in OUTPUTS]
    inputs = [helper.make_tensor_value_info("x", TensorProto.INT8, shape)]
    graph = helper.make_graph(nodes, "trivial", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def write_repository(folder: Path) -> None:
    """The graphs as models of a Triton."""
    outputs = ", ".join(f'{{ name: "{name}" data_type: TYPE_FP32 dims: [1, 10] }}' for name in OUTPUTS)
    for n_bytes in SIZES:
        version = folder / f"t{n_bytes}" / "1"
        version.mkdir(parents=True)
        (version / "model.onnx").write_bytes(graph_bytes(n_bytes))
        (version / "model.py").write_text(TRITON_MODEL)
        (version.parent / "config.pbtxt").write_text(
            f'name: "t{n_bytes}" backend: "python" max_batch_size: 0 instance_group [ {{ count: 1 kind: KIND_CPU }} ]\n'
            f'input [ {{ name: "x" data_type: TYPE_INT8 dims: [1, {n_bytes}] }} ]\noutput [ {outputs} ]\n'
        )


def trivial(n_bytes: int) -> Model:
    """The graph, ready to run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph_bytes(n_bytes), options, providers=["CPUExecutionProvider"])
    specs = tuple(TensorSpec(name, (1, 10), "float32", "NC") for name in OUTPUTS)
    offered = Interface(f"t{n_bytes}", "ab" * 32, "s01", (TensorSpec("x", (1, n_bytes), "int8", "NC", 1.0, 0),), specs)
    return Model(offered, session)


def serve_own(listener: socket.socket) -> None:
    """The server of this project."""
    service = Service({model.interface.model: model for model in map(trivial, SIZES)})

    async def run() -> None:
        loop = asyncio.get_running_loop()
        connections = Connections(HttpFront(service), Limits(), loop)
        server = await loop.create_server(lambda: Connection(connections), sock=listener)
        await server.serve_forever()

    uvloop.run(run())


def serve_uvicorn(listener: socket.socket) -> None:
    """A plain ASGI callable that computes on a thread pool, as this project had it first."""
    models = {f"/v2/models/t{n_bytes}/infer": trivial(n_bytes) for n_bytes in SIZES}
    pool = ThreadPoolExecutor(1)

    def compute(body: bytes, length: str, model: Model) -> tuple[Any, ...]:
        request = decode_request(body, length, model.interface)
        start_ns = time.perf_counter_ns()
        (outputs,) = model.run([request])
        return encode_reply(outputs, model.interface, request), start_ns, time.perf_counter_ns()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message["body"]
            more = message.get("more_body", False)
        arrived_ns = time.perf_counter_ns()
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        work = compute, bytes(body), headers[HEADER_LENGTH.lower()], models[scope["path"]]
        reply, start_ns, end_ns = await asyncio.get_running_loop().run_in_executor(pool, *work)
        timing = format_server_timing(ServerTiming(start_ns - arrived_ns, 0, end_ns - start_ns))
        said = [
            (b"content-type", b"application/octet-stream"),
            (HEADER_LENGTH.lower().encode(), str(len(reply.header)).encode()),
            (b"server-timing", timing.encode()),
            (b"content-length", str(reply.n_bytes).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": said})
        await send({"type": "http.response.body", "body": b"".join([reply.header, *reply.tensors])})

    config = uvicorn.Config(
        app, http="httptools", loop="uvloop", ws="none", lifespan="off", log_config=None, access_log=False
    )
    uvicorn.Server(config).run(sockets=[listener])


def serve_floor(listener: socket.socket) -> None:
    """Reads as many bytes as the head says and answers 300, without looking at them."""
    buffer = memoryview(bytearray(1 << 20))
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while received := connection.recv_into(buffer):
            head = bytes(buffer[:1024]).partition(b"\r\n\r\n")[0]
            left = len(head) + 4 + int(head.rpartition(b"Content-Length: ")[2]) - received
            while left > 0:
                left -= connection.recv_into(buffer)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 240\r\n\r\n" + bytes(240))


SERVERS: dict[str, Callable[[socket.socket], None]] = {
    "ours": serve_own,
    "uvicorn": serve_uvicorn,
    "floor": serve_floor,
}


@contextlib.contextmanager
def running(name: str) -> Iterator[int]:
    """A server in a process of its own; yields its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name, "--socket", str(listener.fileno())],
            pass_fds=[listener.fileno()],
        )
        try:
            yield int(listener.getsockname()[1])
        finally:
            process.kill()
            process.wait()


class Wire:
    """The edge's way: one ``sendmsg``, the reply received in place, its head looked at with two finds."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 20)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._view = memoryview(bytearray(1 << 16))

    def ask(self, path: str, pieces: list[Any], n_json: int, n_bytes: int) -> tuple[memoryview, str]:
        """The reply's body, and the length of its JSON part."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
            f"{HEADER_LENGTH}: {n_json}\r\nContent-Length: {n_bytes}\r\n\r\n"
        ).encode()
        left = [memoryview(head), *map(memoryview, pieces)]
        while left:
            sent = self._socket.sendmsg(left)
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = left[0][sent:]
        received = self._socket.recv_into(self._view)
        said, _, _ = bytes(self._view[:received]).partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in said.split(b"\r\n")[1:])
        end = len(said) + 4 + int(fields[b"content-length"])
        while received < end:
            received += self._socket.recv_into(self._view[received:])
        return self._view[len(said) + 4 : end], fields.get(HEADER_LENGTH.lower().encode(), b"0").decode()


class Standard:
    """The standard library's client."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, path: str, pieces: list[Any], n_json: int, _n_bytes: int) -> tuple[bytes, str]:
        """The reply's body, and the length of its JSON part."""
        self._connection.request("POST", path, b"".join(pieces), {HEADER_LENGTH: str(n_json)})
        reply = self._connection.getresponse()
        return reply.read(), reply.headers.get(HEADER_LENGTH, "0")


def round_trip_ns(client: Any, form: RequestForm, tensor: Any, *, check: bool) -> int:
    """One inference as the edge does it, its crc32 included."""
    start_ns = time.perf_counter_ns()
    message = form.encode({"x": tensor}, 10**7)
    pieces = [message.header, *message.tensors]
    body, length = client.ask(f"/v2/models/{form.to.model}/infer", pieces, len(message.header), message.n_bytes)
    if check:
        found = decode_reply(body, length, form.to)
        if found["left"][0, 3] != tensor[0, 3]:
            raise RuntimeError("a wrong answer")
    return time.perf_counter_ns() - start_ns


def measure(clients: dict[str, Any], rounds: int, calls: int) -> list[dict[str, Any]]:
    """Medians of every client at every size, and what they are of a few of them."""
    rows = []
    others = [name for name in ("floor, sendmsg", "uvicorn, http.client", "triton, http.client") if name in clients]
    for n_bytes in SIZES:
        form = RequestForm(trivial(n_bytes).interface, OUTPUTS)
        tensor = np.random.default_rng(0).integers(-128, 128, (1, n_bytes)).astype(np.int8)
        times: dict[str, list[float]] = {name: [] for name in clients}
        for number in range(rounds + 1):
            for name, client in clients.items():
                check = not name.startswith("floor")
                taken = [round_trip_ns(client, form, tensor, check=check) for _ in range(calls)]
                if number:
                    times[name].append(float(np.median(taken)) / 1e3)
        for name, found in times.items():
            row = {"bytes": n_bytes, "server, client": name, "median us": float(np.median(found))}
            rows.append({**row, **{f"over {other}": ratio(found, times[other]) for other in others}})
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--triton", type=int, help="port of the HTTP front of a Triton on this machine")
    parser.add_argument("--repository", type=Path, help="write the graphs for a Triton and end")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--socket", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        SERVERS[options.serve](socket.socket(fileno=options.socket))
        return
    if options.repository is not None:
        write_repository(options.repository)
        return
    with contextlib.ExitStack() as stack:
        ports = {name: stack.enter_context(running(name)) for name in SERVERS}
        if options.triton is not None:
            ports["triton"] = options.triton
        clients = {
            f"{name}, {kind}": made(port)
            for name, port in ports.items()
            for kind, made in (("sendmsg", Wire), ("http.client", Standard))
            if (name, kind) != ("floor", "http.client")
        }
        rows = measure(clients, options.rounds, options.calls)
    about = f"{options.rounds} interleaved rounds of {options.calls} calls after one that is discarded"
    show(rows, f"splitboard {__version__}, uvicorn {uvicorn.__version__}", about, as_json=options.json)


if __name__ == "__main__":
    main()
