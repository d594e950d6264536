from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asking
import grpc
import numpy as np
import onnxruntime
import pytest
from asking import INFER, by_hand, raw_request, refusal, remote_request, until_draining, wire_tensor
from serving import Running, running_server, start_server

from runtime_server.grpc_messages import CLASSES, SERVICE
from splitboard.contract.bundle import bundle_sha256, load_bundle
from splitboard.contract.errors import EXIT_USER_ERROR
from splitboard.contract.wire import ServerTiming, parse_server_timing


def ask(server: Running, method: str, path: str, body: Any = b"", headers: Any = None) -> tuple[int, Any, bytes]:
    return asking.ask(server.port, method, path, body, headers)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_split_answers_as_onnx_runtime_does_directly(server: Running, tiny_bundle: Path, number: int) -> None:
    bundle = load_bundle(tiny_bundle)
    split = bundle.splits[number]
    tensor = wire_tensor(split)
    body, headers = by_hand(bundle, tiny_bundle, split, tensor)
    status, found, reply = ask(server, "POST", f"/v2/models/tiny-{split.id}/infer", body, headers)
    assert status == 200, reply
    n_json = int(found["Inference-Header-Content-Length"])
    head = json.loads(reply[:n_json])
    assert (head["model_name"], head["id"]) == (f"tiny-{split.id}", "one")
    session = onnxruntime.InferenceSession(tiny_bundle / str(split.server), providers=["CPUExecutionProvider"])
    expected = session.run([task.name for task in bundle.tasks], {split.tensors[0].name: tensor})
    start = n_json
    for entry, array in zip(head["outputs"], expected, strict=True):
        assert entry["shape"] == list(array.shape)
        size = entry["parameters"]["binary_data_size"]
        np.testing.assert_array_equal(np.frombuffer(reply[start : start + size], "<f4"), array.ravel())
        start += size
    assert start == len(reply)
    timing = parse_server_timing(found["Server-Timing"])
    assert min(timing) > 0


def test_the_queue_is_told_apart_from_the_work(server: Running, tiny_bundle: Path) -> None:
    """With one worker, requests at the same time wait for one another: the longest wait exceeds one computation."""
    bundle = load_bundle(tiny_bundle)
    split = bundle.splits[0]
    body, headers = by_hand(bundle, tiny_bundle, split, wire_tensor(split))
    times: list[ServerTiming] = []

    def go() -> None:
        for _ in range(40):
            _, found, _ = ask(server, "POST", f"/v2/models/tiny-{split.id}/infer", body, headers)
            times.append(parse_server_timing(found["Server-Timing"]))

    threads = [threading.Thread(target=go) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == 320
    assert max(one.queue_ns for one in times) > sorted(one.compute_ns for one in times)[160]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/tiny-s00/ready", {"name": "tiny-s00", "ready": True}),
    ],
)
def test_health(server: Running, path: str, expected: object) -> None:
    status, _, body = ask(server, "GET", path)
    assert (status, json.loads(body)) == (200, expected)


def test_metadata(server: Running, tiny_bundle: Path) -> None:
    about = json.loads(ask(server, "GET", "/v2")[2])
    assert about["name"] == "splitboard"
    assert {"binary_tensor_data", "model_configuration", "statistics"} <= set(about["extensions"])
    model = json.loads(ask(server, "GET", "/v2/models/tiny-s00")[2])
    assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 1]}]
    assert model["outputs"][1] == {"name": "colour", "datatype": "FP32", "shape": [1, 3]}
    assert model["parameters"] == {"bundle": bundle_sha256(tiny_bundle), "split": "s00"}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "words"),
    [
        ("GET", "/", b"", {}, 404, "there is nothing at"),
        ("GET", "/v2/models", b"", {}, 404, "there is nothing at"),
        ("GET", "/v2/models/tiny-s00/versions/2", b"", {}, 404, "there is nothing at"),
        ("GET", "/v2/models/tiny-s00/metrics", b"", {}, 404, "there is nothing at"),
        ("GET", "/v2/models/tiny-s99", b"", {}, 404, 'no model "tiny-s99"; served are: tiny-s00'),
        ("POST", "/v2/models/%2e%2e%2fetc/infer", b"", {}, 404, 'no model "../etc"'),
        ("POST", "/v2/models/caf%C3%A9/infer", b"{}", {}, 404, "no model"),
        ("GET", INFER, b"", {}, 405, "takes POST, found GET"),
        ("POST", "/v2", b"{}", {}, 405, "takes GET, found POST"),
        ("DELETE", "/v2/models/tiny-s00", b"", {}, 405, "takes GET"),
        ("POST", INFER, b"", {}, 400, "is missing"),
        ("POST", INFER, b"{}", {}, 400, "only binary tensors"),
        ("POST", INFER, b"{}", {"Inference-Header-Content-Length": "9"}, 400, "the body has 2 bytes"),
        ("POST", INFER, b"x" * 100_000, {"Inference-Header-Content-Length": "9"}, 413, "at most 66560 bytes"),
        ("POST", INFER, iter([b"x" * 30_000] * 9), {"Inference-Header-Content-Length": "9"}, 400, "not in chunks"),
    ],
)
def test_refusals(server: Running, method: str, path: str, body: Any, headers: Any, status: int, words: str) -> None:
    found, said, answer = ask(server, method, path, body, headers)
    assert found == status
    assert words in json.loads(answer)["error"]
    if status == 405:
        assert said["Allow"] in ("GET", "POST")


DAMAGED = [
    (lambda body: body.replace(b'"split": "s00"', b'"split": "s01"'), 409),
    (lambda body: re.sub(rb'"bundle": "[0-9a-f]', b'"bundle": "x', body), 409),
    (lambda body: body[:-1] + bytes([body[-1] ^ 1]), 400),
    (lambda body: body[:-1], 400),
    (lambda body: body + b"!", 400),
    (lambda body: body.replace(b'"UINT8"', b'"INT8" '), 400),
]


@pytest.mark.parametrize(("change", "status"), DAMAGED)
def test_a_request_of_another_half_or_damaged_is_refused(
    server: Running, tiny_bundle: Path, change: Callable[[bytes], bytes], status: int
) -> None:
    bundle = load_bundle(tiny_bundle)
    body, headers = by_hand(bundle, tiny_bundle, bundle.splits[0], wire_tensor(bundle.splits[0]))
    changed = change(body)
    assert changed != body
    found, _, answer = ask(server, "POST", INFER, changed, headers)
    assert found == status, answer
    assert json.loads(answer)["error"]


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 40000000\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 413"


def test_rubbish_and_half_requests_do_not_stop_the_server(server: Running) -> None:
    for rubbish in (b"\x00" * 1000, b"GET / HTTP/9.9\r\n\r\n", b"POST " + INFER.encode() + b" HTTP/1.1\r\nContent-Len"):
        with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
            connection.sendall(rubbish)
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nhalf".encode())
    assert ask(server, "GET", "/v2/health/live")[0] == 200


def test_a_busy_port_is_an_error_of_the_user(server: Running, tiny_bundle: Path) -> None:
    second = start_server(server.port, tiny_bundle)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == EXIT_USER_ERROR
    assert f'error: port "{server.port}" is in use\nTry: ' in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(("port", "words"), [(70000, 'port "70000" does not exist'), (-1, 'port "-1" does not exist')])
def test_a_port_that_does_not_exist(tiny_bundle: Path, port: int, words: str) -> None:
    process = start_server(port, tiny_bundle)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, words in errors) == (EXIT_USER_ERROR, True)


def test_two_bundles_of_one_name_are_refused(tiny_bundle: Path) -> None:
    process = start_server(0, tiny_bundle, tiny_bundle)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, 'two bundles offer a model "tiny-s00"' in errors) == (EXIT_USER_ERROR, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_in_peace(tiny_bundle: Path, number: signal.Signals) -> None:
    with running_server(tiny_bundle) as running, socket.create_connection(("127.0.0.1", running.port), 20) as idle:
        idle.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(12) == b"HTTP/1.1 200"
        running.process.send_signal(number)
        output, errors = running.process.communicate(timeout=30)
        assert (running.process.returncode, output, errors) == (0, "", "")


def call(channel: grpc.Channel, name: str, **fields: Any) -> Any:
    """One call of the protocol's gRPC form, by the messages' numbers."""
    ask_for = channel.unary_unary(
        f"/{SERVICE}/{name}", lambda message: message.SerializeToString(), CLASSES[f"{name}Response"].FromString
    )
    return ask_for(CLASSES[f"{name}Request"](**fields), timeout=30)


def taken(server: Running) -> float:
    """Requests that were answered or wait."""
    page = ask(server, "GET", "/metrics")[2].decode()
    found = re.findall(r"^splitboard_(?:queue_depth|requests_total\S*) (\S+)$", page, re.MULTILINE)
    return sum(map(float, found))


def test_both_fronts_serve_one_queue_and_end_together(slow_bundle: Path) -> None:
    body, headers = remote_request(slow_bundle)
    tensor = body[int(headers["Inference-Header-Content-Length"]) :]
    infer = CLASSES["ModelInferRequest"](model_name="tiny-s00", raw_input_contents=[tensor])
    infer.inputs.add(name="image", datatype="UINT8", shape=[1, 32, 32, 1])
    options = {"grpc_port": 0, "workers": 1}
    with running_server(slow_bundle, **options) as running, grpc.insecure_channel(running.grpc) as channel:
        assert call(channel, "ServerReady").ready
        ask_for = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            lambda message: message.SerializeToString(),
            CLASSES["ModelInferResponse"].FromString,
        )
        waiting = [ask_for.future(infer, timeout=60) for _ in range(40)]
        while taken(running) < 39:  # of the last one may be that it is computed
            time.sleep(0.01)
        running.process.send_signal(signal.SIGTERM)
        until_draining(running.port)
        status, _, said = ask(running, "POST", INFER, body, headers)
        assert (status, refusal(said)) == (503, "draining")
        with pytest.raises(grpc.RpcError) as late:
            ask_for(infer, timeout=30)
        assert ("reason", "draining") in [tuple(pair) for pair in late.value.trailing_metadata()]
        answers = [one.result() for one in waiting]
        assert len({tuple(answer.raw_output_contents) for answer in answers}) == 1
        assert running.process.wait(30) == 0


def test_a_busy_grpc_port_is_an_error_of_the_user(tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start_server(0, tiny_bundle, grpc_port=taken.getsockname()[1])
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (EXIT_USER_ERROR, "")
    assert "error: no gRPC: port" in errors


def test_what_runs_is_finished_before_the_server_ends(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    body, headers = by_hand(bundle, tiny_bundle, bundle.splits[0], wire_tensor(bundle.splits[0]))
    with running_server(tiny_bundle) as running:
        head = raw_request(body, {**headers, "Expect": "100-continue"})[: -len(body)]
        with socket.create_connection(("127.0.0.1", running.port), 60) as connection:
            connection.sendall(head)
            assert connection.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"  # it has begun to read
            connection.sendall(body[:100])
            running.process.send_signal(signal.SIGTERM)
            until_draining(running.port)
            connection.sendall(body[100:])
            assert connection.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"
        assert running.process.wait(30) == 0


def test_the_server_needs_neither_the_export_nor_the_edge() -> None:
    code = (
        "import sys, runtime_server.server; "
        "print(sorted({'torch', 'onnx', 'runtime_edge', 'export', 'calib', 'boards', 'starlette'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"
