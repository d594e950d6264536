"""The table of requests and statuses, against our server, and against the real Triton."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
from protocol_table import GRPC, HTTP, LENGTH, PIXELS, SHAPES, GrpcRow, HttpRow, tensors
from serving import Running, running_server
from triton_server import Triton, running_triton

from runtime_server.grpc_messages import CLASSES, SERVICE
from runtime_server.triton import Backend, write_repository

Outputs = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path) -> Outputs:
    session = onnxruntime.InferenceSession(tiny_bundle / "server" / "s00.onnx", providers=["CPUExecutionProvider"])
    return dict(zip(SHAPES, session.run(list(SHAPES), {"image": PIXELS}), strict=True))


@pytest.fixture(scope="module")
def triton(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    repository = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(tiny_bundle, repository, Backend.PYTHON, threads=1, instances=1)
    with running_triton(repository) as running:
        yield running


@pytest.fixture(scope="module")
def ours(tiny_bundle: Path) -> Iterator[Running]:
    with running_server(tiny_bundle, grpc_port=0) as running:
        yield running


def ask(port: int, row: HttpRow) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(row.method, row.path, row.body or None, dict(row.headers))
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        connection.close()


def check_reply(row: HttpRow, headers: Any, body: bytes, expected: Outputs) -> None:
    n_json = int(headers[LENGTH])
    header = json.loads(body[:n_json])
    assert (header["model_name"], header["model_version"], header.get("id")) == ("tiny-s00", "1", row.id)
    found = dict(tensors(header, body[n_json:]))
    assert sorted(found) == sorted(row.outputs)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], strict=True)


def call(address: str, row: GrpcRow) -> tuple[str, str | None, bytes]:
    """Code, reason and reply."""
    with grpc.insecure_channel(address) as channel:
        try:
            return "OK", None, channel.unary_unary(f"/{SERVICE}/{row.method}")(row.data, timeout=20)
        except grpc.RpcError as error:
            metadata = dict(error.trailing_metadata())
            return error.code().name, metadata.get("reason"), b""


def check_message(row: GrpcRow, data: bytes, expected: Outputs) -> None:
    message = CLASSES["ModelInferResponse"].FromString(data)
    assert (message.model_name, message.model_version, message.id) == ("tiny-s00", "1", "seven")
    assert sorted(output.name for output in message.outputs) == sorted(row.outputs)
    for output, raw in zip(message.outputs, message.raw_output_contents, strict=True):
        assert output.datatype == "FP32"
        np.testing.assert_array_equal(np.frombuffer(raw, "<f4").reshape(output.shape), expected[output.name])


@pytest.mark.parametrize("row", [*HTTP, *GRPC], ids=lambda row: f"{type(row).__name__}: {row.name}")
def test_a_difference_has_its_reason(row: HttpRow | GrpcRow) -> None:
    assert (row.ours != row.triton) == bool(row.why)


@pytest.mark.parametrize("row", HTTP, ids=lambda row: row.name)
def test_http(ours: Running, row: HttpRow, expected: Outputs) -> None:
    status, headers, body = ask(ours.port, row)
    assert status == row.ours, body
    if status >= 400:
        assert json.loads(body).keys() == {"error", "reason"}
    elif row.outputs:
        check_reply(row, headers, body, expected)


@pytest.mark.parametrize("row", GRPC, ids=lambda row: row.name)
def test_grpc(ours: Running, row: GrpcRow, expected: Outputs) -> None:
    code, reason, data = call(ours.grpc, row)
    assert code == row.ours
    assert reason == (None if code == "OK" else row.reason)
    if row.outputs:
        check_message(row, data, expected)


@pytest.mark.triton
@pytest.mark.parametrize("row", HTTP, ids=lambda row: row.name)
def test_http_of_triton(triton: Triton, row: HttpRow, expected: Outputs) -> None:
    status, headers, body = ask(triton.port, row)
    assert status == row.triton, body
    if row.outputs:
        check_reply(row, headers, body, expected)


@pytest.mark.triton
@pytest.mark.parametrize("row", GRPC, ids=lambda row: row.name)
def test_grpc_of_triton(triton: Triton, row: GrpcRow, expected: Outputs) -> None:
    code, _, data = call(triton.grpc, row)
    assert code == row.triton
    if row.outputs:
        check_message(row, data, expected)
