"""The gRPC front where it is more than another form of the same requests: deadlines, overload, secrets, bounds."""

from __future__ import annotations

import contextlib
import io
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_serving import running_front, running_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from protocol_table import MODEL, PIXELS, RAW, infer_message
from serving import running_server

from runtime_server.access import Token
from runtime_server.grpc_front import CODES
from runtime_server.grpc_messages import CLASSES, HEALTH_SERVICE, SERVICE
from runtime_server.models import load_models
from runtime_server.service import NO_MODEL, Service, Ticket
from splitboard.contract.errors import UserError
from splitboard.contract.interface import Reason, WireError
from splitboard.contract.wire import Request, parse_server_timing


def call(
    channel: grpc.Channel,
    method: str = "ModelInfer",
    data: bytes = b"",
    timeout: float = 60,
    service: str = SERVICE,
    metadata: tuple[tuple[str, str], ...] = (),
) -> tuple[str, str | None, bytes]:
    """Code, reason and reply of one call."""
    try:
        return "OK", None, channel.unary_unary(f"/{service}/{method}")(data, timeout=timeout, metadata=metadata)
    except grpc.RpcError as error:
        return error.code().name, dict(error.trailing_metadata() or ()).get("reason"), b""


class Held:
    """A service whose only worker is busy until it is released.

    Args:
        bundle: that is served.
        queue: requests that may wait.
    """

    def __init__(self, bundle: Path, queue: int = 64) -> None:
        self.service = Service(load_models([bundle], threads=1), workers=1, queue=queue)
        self._free, began = threading.Event(), threading.Event()

        def wait() -> Request:
            began.set()
            self._free.wait(120)
            raise WireError(Reason.EXPIRED, "this one only kept the worker busy")

        now_ns = time.perf_counter_ns()
        ticket = Ticket(self.service.models[MODEL], wait, now_ns, now_ns, lambda result: None)
        self.service.submit(ticket, lambda call: call())
        assert began.wait(60)

    def until_waiting(self, count: int) -> None:
        """Returns when so many requests wait."""
        end = time.monotonic() + 60
        while self.service.n_waiting != count:
            assert time.monotonic() < end
            time.sleep(0.005)

    def release(self) -> None:
        self._free.set()


@pytest.fixture
def held(tiny_bundle: Path) -> Iterator[Held]:
    made = Held(tiny_bundle)
    try:
        yield made
    finally:
        made.release()
        made.service.close()


@pytest.fixture(scope="module")
def channel(tiny_bundle: Path) -> Iterator[grpc.Channel]:
    with running_grpc(tiny_bundle) as address, grpc.insecure_channel(address) as made:
        yield made


INFER = infer_message().SerializeToString()


def test_the_servers_own_time_comes_in_the_trailing_metadata(channel: grpc.Channel) -> None:
    start_ns = time.perf_counter_ns()
    _, made = channel.unary_unary(f"/{SERVICE}/ModelInfer").with_call(INFER, timeout=20)
    took_ns = time.perf_counter_ns() - start_ns
    timing = parse_server_timing(dict(made.trailing_metadata())["server-timing"])
    assert 0 < timing.compute_ns < took_ns
    assert sum(timing) < took_ns


def test_every_reason_has_a_code() -> None:
    assert CODES.keys() == set(Reason)


def test_a_request_past_its_deadline_is_not_computed(held: Held) -> None:
    with running_front(held.service) as address, grpc.insecure_channel(address) as channel:
        assert call(channel, data=INFER, timeout=0.3)[0] == "DEADLINE_EXCEEDED"
        held.until_waiting(0)  # it has left the queue though the worker is still busy
        held.release()
        assert call(channel, data=INFER)[0] == "OK"
    assert held.service.statistics(MODEL).inference_count == 1


def test_a_client_that_cancels_leaves_the_queue(held: Held) -> None:
    with running_front(held.service) as address, grpc.insecure_channel(address) as channel:
        future = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(INFER, timeout=20)
        held.until_waiting(1)
        future.cancel()
        held.until_waiting(0)


def test_the_timeout_parameter_holds_within_the_deadline(held: Held) -> None:
    message = infer_message()
    message.parameters["timeout"].int64_param = 50_000
    found: list[tuple[str, str | None, bytes]] = []
    with running_front(held.service) as address, grpc.insecure_channel(address) as channel:
        thread = threading.Thread(target=lambda: found.append(call(channel, data=message.SerializeToString())))
        thread.start()
        held.until_waiting(1)
        time.sleep(0.1)
        held.release()
        thread.join()
    assert found == [("DEADLINE_EXCEEDED", "expired", b"")]
    assert held.service.statistics(MODEL).failures == {"expired": 1}


def test_an_overloaded_server_says_so(tiny_bundle: Path) -> None:
    held = Held(tiny_bundle, queue=2)
    with running_front(held.service) as address, grpc.insecure_channel(address) as channel:
        waiting = [channel.unary_unary(f"/{SERVICE}/ModelInfer").future(INFER, timeout=20) for _ in range(2)]
        held.until_waiting(2)
        assert call(channel, data=INFER)[:2] == ("UNAVAILABLE", "overloaded")
        held.release()
        assert all(one.result() for one in waiting)
    held.service.close()


def test_a_draining_server_finishes_what_has_begun(held: Held) -> None:
    with running_front(held.service) as address, grpc.insecure_channel(address) as channel:
        begun = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(INFER, timeout=20)
        held.until_waiting(1)
        held.service.drain()
        assert call(channel, data=INFER)[:2] == ("UNAVAILABLE", "draining")
        assert call(channel, "ServerLive")[0] == "OK"
        ready = CLASSES["ServerReadyResponse"].FromString(call(channel, "ServerReady")[2])
        named = CLASSES["ModelReadyRequest"](name=MODEL).SerializeToString()
        model = CLASSES["ModelReadyResponse"].FromString(call(channel, "ModelReady", named)[2])
        health = CLASSES["CheckResponse"].FromString(call(channel, "Check", service=HEALTH_SERVICE)[2])
        assert (ready.ready, model.ready, health.status) == (False, False, 2)
        held.release()
        assert begun.result()


def test_health(channel: grpc.Channel) -> None:
    """The protocol of ``grpc.health.v1``: 1 is SERVING."""
    for service in ("", SERVICE):
        data = CLASSES["CheckRequest"](service=service).SerializeToString()
        code, _, reply = call(channel, "Check", data, service=HEALTH_SERVICE)
        assert (code, CLASSES["CheckResponse"].FromString(reply).status) == ("OK", 1)
    data = CLASSES["CheckRequest"](service="nix").SerializeToString()
    assert call(channel, "Check", data, service=HEALTH_SERVICE)[:2] == ("NOT_FOUND", "not_found")


def test_the_token(tiny_bundle: Path) -> None:
    with running_grpc(tiny_bundle, token=Token("secret")) as address, grpc.insecure_channel(address) as channel:
        for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", "Basic secret"),)):
            assert call(channel, data=INFER, metadata=metadata)[:2] == ("UNAUTHENTICATED", "unauthorised")
            assert call(channel, "ModelStatistics", metadata=metadata)[0] == "UNAUTHENTICATED"
        assert call(channel, data=INFER, metadata=(("authorization", "Bearer secret"),))[0] == "OK"
        assert call(channel, "ServerReady")[0] == "OK"
        assert call(channel, "Check", service=HEALTH_SERVICE)[0] == "OK"


def test_tls(tiny_bundle: Path, tmp_path: Path) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*argv, *names, "-keyout", key, "-out", chain], check=True, capture_output=True)
    with running_grpc(tiny_bundle, tls=(chain, key)) as address:
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(chain.read_bytes())) as channel:
            assert call(channel, data=INFER)[0] == "OK"
        with grpc.secure_channel(address, grpc.ssl_channel_credentials()) as stranger:
            assert call(stranger, data=INFER)[0] == "UNAVAILABLE"
        with grpc.insecure_channel(address) as plain:
            assert call(plain, data=INFER, timeout=5)[0] in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def test_a_compressed_request_is_taken_up_to_the_same_size(tiny_bundle: Path) -> None:
    bomb = infer_message([bytes(10_000_000)]).SerializeToString()
    gzip = grpc.Compression.Gzip
    with running_grpc(tiny_bundle) as address, grpc.insecure_channel(address, compression=gzip) as channel:
        assert call(channel, data=INFER)[0] == "OK"
        assert call(channel, data=bomb)[0] == "RESOURCE_EXHAUSTED"


def test_an_image_may_come_as_a_jpeg_file(channel: grpc.Channel) -> None:
    """Its length in four bytes in front of it, as the protocol stores text; the answer is that of its pixels."""
    pillow = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    pillow.fromarray(PIXELS[0, :, :, 0]).save(file, "JPEG")
    pixels = np.asarray(pillow.open(file)).reshape(PIXELS.shape)
    text = struct.pack("<I", file.tell()) + file.getvalue()
    answers = [
        CLASSES["ModelInferResponse"].FromString(call(channel, data=message.SerializeToString())[2])
        for message in (infer_message([text], datatype="BYTES", shape=[1]), infer_message([pixels.tobytes()]))
    ]
    assert answers[0].raw_output_contents == answers[1].raw_output_contents != []


def test_refusals_are_counted(tiny_bundle: Path) -> None:
    service = Service(load_models([tiny_bundle], threads=1))
    with contextlib.closing(service), running_front(service) as address, grpc.insecure_channel(address) as channel:
        call(channel, data=infer_message([RAW[:-1]]).SerializeToString())
        call(channel, data=b"\xff")
        call(channel, data=INFER)
    assert service.statistics(MODEL).failures == {"malformed": 1}
    assert service.statistics(NO_MODEL).failures == {"malformed": 1}
    assert service.statistics(MODEL).inference_count == 1


def test_garbage_on_the_port_does_not_stop_the_server(tiny_bundle: Path) -> None:
    with running_grpc(tiny_bundle) as address:
        host, port = address.split(":")
        for garbage in (
            b"\x00" * 100_000,
            b"GET / HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 9_000,
        ):
            with socket.create_connection((host, int(port)), 10) as connection, contextlib.suppress(OSError):
                connection.sendall(garbage)
                connection.recv(100)
        with grpc.insecure_channel(address) as channel:
            assert call(channel, data=INFER)[0] == "OK"


def test_a_busy_port_is_an_error_of_the_user(tiny_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = f'no gRPC: port "{port}" is in use'
        with pytest.raises(UserError, match=words), running_grpc(tiny_bundle, port=port):
            pass
    assert capfd.readouterr().err == ""


def test_a_signal_ends_both_fronts_in_peace(tiny_bundle: Path) -> None:
    with running_server(tiny_bundle, grpc_port=0) as server, grpc.insecure_channel(server.grpc) as channel:
        assert call(channel, data=INFER)[0] == "OK"
        server.process.send_signal(signal.SIGTERM)
        output, errors = server.process.communicate(timeout=30)
        assert (server.process.returncode, output, errors) == (0, "", "")
        assert call(channel, data=INFER, timeout=5)[:2] == ("UNAVAILABLE", None)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, len(INFER)), st.integers(0, 40))
def test_damaged_messages_are_answered_or_refused(channel: grpc.Channel, garbage: bytes, at: int, cut: int) -> None:
    """Bytes put into a good message, or taken out of it."""
    code, reason, _ = call(channel, data=INFER[:at] + garbage + INFER[at + cut :])
    assert (code, reason) in [("OK", None), ("INVALID_ARGUMENT", "malformed"), ("NOT_FOUND", "not_found")]
