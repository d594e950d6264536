"""What does a round trip cost with our link and server, and what with the usual clients and a real Triton?

The served graphs do nothing (`trivial_bundle.py`), so what is left is the way there and back, for 50 KB and 500 KB:

- ``floor``: the bytes over loopback with one write, an answer of 300 bytes, no work at all
- ``edge link``: `runtime_edge.link.sender` to ``splitboard serve``, with and without the crc32 that it sends
- ``http.client to Triton``: the standard library's client, to real Triton's HTTP front
- ``tritonclient gRPC to Triton`` and ``to us``: NVIDIA's client, to real Triton's gRPC front and to ours

Triton comes from its wheel (environment: see ``tests/triton_server.py``), with its Python back end calling ONNX Runtime
on the same graph. All take turns within every round, in an order that is turned from round to round.
Aims, of our edge link with crc32: at most 0.35x of http.client to Triton, and of tritonclient to Triton at most 0.30x
at 50 KB and 0.15x at 500 KB.

Usage: SPLITBOARD_TRITON_PYTHON=.../bin/python python benchmarks/round_trip.py
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from output import ratio, show
from servers import our_grpc, our_http, real_triton
from triton_server import triton_python
from trivial_bundle import CLASSES, TASKS, write_trivial_bundle

from runtime_edge.link.link import Link
from runtime_edge.link.sender import PLAIN, Sender
from splitboard.contract.bundle import Bundle, bundle_sha256, load_bundle
from splitboard.contract.interface import Interface, interface
from splitboard.contract.wire import HEADER_LENGTH, Message, decode_reply

SIZES = (50_000, 500_000)
REPLY_BYTES = 300
WARM_UP = 50
OURS = "edge link"
HTTP = "http.client to Triton"
GRPC = "tritonclient gRPC to Triton"
AIMS = {50_000: {HTTP: 0.35, GRPC: 0.30}, 500_000: {HTTP: 0.35, GRPC: 0.15}}

Rounds = Callable[[int], list[int]]
"""Makes so many calls, and says how long each took, in ns."""

_FLOOR = f"""
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection, _ = listener.accept()
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
buffer = memoryview(bytearray(1 << 20))
while n_bytes := int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big"):
    connection.recv_into(buffer, n_bytes, socket.MSG_WAITALL)
    connection.sendall(bytes({REPLY_BYTES}))
"""


def timed(call: Callable[[], object]) -> Rounds:
    """Times a call in this process."""

    def rounds(count: int) -> list[int]:
        times = []
        for _ in range(count):
            start_ns = time.perf_counter_ns()
            call()
            times.append(time.perf_counter_ns() - start_ns)
        return times

    return rounds


@contextlib.contextmanager
def floor() -> Iterator[Callable[[int], Rounds]]:
    """The bare exchange, for a number of bytes."""
    with subprocess.Popen([sys.executable, "-c", _FLOOR], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        connection = socket.create_connection(("127.0.0.1", int(process.stdout.readline())))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answer = bytearray(REPLY_BYTES)

        def exchange(body: memoryview, head: bytes) -> None:
            sent = connection.sendmsg([head, body])
            while sent < len(body) + len(head):
                sent += connection.send(body[sent - len(head) :])
            assert connection.recv_into(answer, REPLY_BYTES, socket.MSG_WAITALL) == REPLY_BYTES

        def of(n_bytes: int) -> Rounds:
            body, head = memoryview(bytes(n_bytes)), n_bytes.to_bytes(4, "big")
            return timed(lambda: exchange(body, head))

        yield of
        connection.close()


def edge_link(link: Link, to: Interface, pixels: Any) -> Rounds:
    """What the edge does for every image, from tensors to outputs."""
    sender = Sender(link)
    return timed(lambda: sender.ask(to, TASKS, {"x": pixels}, PLAIN))


def edge_link_unchecked(link: Link, to: Interface, pixels: Any) -> Rounds:
    """The same without a crc32 in the request."""
    header = json.dumps(request_header(pixels.size, {"bundle": to.bundle, "split": to.split})).encode()

    def call() -> None:
        reply = link.infer(to, Message(header, (pixels.data.cast("B"),)))
        decode_reply(reply.body, reply.headers[HEADER_LENGTH.lower()], to)

    return timed(call)


def request_header(n_bytes: int, parameters: dict[str, Any]) -> dict[str, Any]:
    """The JSON part of a request."""
    size = {"binary_data_size": n_bytes}
    return {
        "parameters": parameters,
        "inputs": [{"name": "x", "shape": [1, n_bytes], "datatype": "INT8", "parameters": size}],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in TASKS],
    }


def standard_client(port: int, model: str, pixels: Any) -> Rounds:
    """The standard library's client, one kept connection, written as its documentation has it."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    path = f"/v2/models/{model}/infer"

    def call() -> None:
        header = json.dumps(request_header(pixels.size, {})).encode()
        headers = {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"}
        connection.request("POST", path, header + pixels.tobytes(), headers)
        reply = connection.getresponse()
        body, n_json = reply.read(), int(reply.headers[HEADER_LENGTH])
        assert reply.status == 200
        start, outputs = n_json, {}
        for entry in json.loads(body[:n_json])["outputs"]:
            end = start + entry["parameters"]["binary_data_size"]
            outputs[entry["name"]] = np.frombuffer(body[start:end], "<f4").reshape(entry["shape"])
            start = end
        assert outputs["right"].shape == (1, CLASSES)

    return timed(call)


@contextlib.contextmanager
def nvidia_client() -> Iterator[Callable[[str, str, int], Rounds]]:
    """NVIDIA's gRPC client in its own process, for an address, a model and a number of bytes."""
    argv = [str(triton_python()), str(Path(__file__).with_name("triton_grpc_client.py"))]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def of(address: str, model: str, n_bytes: int) -> Rounds:
            def rounds(count: int) -> list[int]:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(f"{address} {model} {n_bytes} {count}\n")
                process.stdin.flush()
                times: list[int] = json.loads(process.stdout.readline())
                return times

            return rounds

        try:
            yield of
        finally:
            process.terminate()


def interleaved(variants: dict[str, Rounds], rounds: int, calls: int) -> dict[str, list[float]]:
    """Median of every round in us, by variant."""
    names, medians = list(variants), {name: [] for name in variants}
    for variant in variants.values():
        variant(WARM_UP)
    for number in range(rounds):
        turned = names[number % len(names) :] + names[: number % len(names)]
        for name in turned:
            medians[name].append(float(np.median(variants[name](calls))) / 1000)
    return medians


def rows_of(n_bytes: int, medians: dict[str, list[float]]) -> Iterator[dict[str, object]]:
    """One row per variant, and behind the edge link's ratios whether they meet their aims."""
    for name, found in medians.items():
        row: dict[str, object] = {
            "KB": n_bytes // 1000,
            "client and server": name,
            "median us": float(np.median(found)),
        }
        row["x floor"] = ratio(found, medians["floor"])
        for peer, aim in AIMS[n_bytes].items():
            of = row[f"of {peer}"] = ratio(found, medians[peer])
            row[f"aim for {peer.partition(' ')[0]}"] = f"{aim} {'met' if of.value <= aim else 'missed'}" * (
                name == OURS
            )
        yield row


def measure(bundle: Bundle, folder: Path, rounds: int, calls: int) -> Iterator[dict[str, object]]:
    """All rows."""
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(our_http(folder))
        grpc = stack.enter_context(our_grpc(folder))
        triton = stack.enter_context(real_triton(folder, folder.with_name("repository")))
        bare = stack.enter_context(floor())
        nvidia = stack.enter_context(nvidia_client())
        checked, unchecked = stack.enter_context(Link(ours)), stack.enter_context(Link(ours))
        for split, n_bytes in zip(bundle.splits, SIZES, strict=True):
            to = interface(bundle, bundle_sha256(folder), split)
            pixels = np.ones((1, n_bytes), np.int8)
            variants = {
                "floor": bare(n_bytes),
                OURS: edge_link(checked, to, pixels),
                "edge link without crc32": edge_link_unchecked(unchecked, to, pixels),
                HTTP: standard_client(triton.port, to.model, pixels),
                GRPC: nvidia(triton.grpc, to.model, n_bytes),
                "tritonclient gRPC to us": nvidia(grpc, to.model, n_bytes),
            }
            yield from rows_of(n_bytes, interleaved(variants, rounds, calls))


def main() -> None:
    """Measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=25, help="of every variant in every round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_trivial_bundle(Path(temporary) / "bundle", SIZES)
        rows = list(measure(load_bundle(folder), folder, options.rounds, options.calls))
    about = (
        f"medians of {options.rounds} interleaved rounds of {options.calls} calls; ratios of medians with their 95 % "
        "bootstrap interval over rounds"
    )
    show(rows, f"onnxruntime {version('onnxruntime')}", about, as_json=options.json)


if __name__ == "__main__":
    main()
