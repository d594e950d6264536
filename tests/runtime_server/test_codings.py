"""Bodies that were compressed, and images that come as JPEG files."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import zstandard
from asking import INFER, ask, refusal, remote_request, scores
from PIL import Image
from serving import Running

from splitboard.contract.bundle import load_bundle
from splitboard.contract.wire import parse_server_timing

ZSTD = {"Content-Encoding": "zstd"}


def test_a_compressed_request_is_answered_as_the_plain_one(server: Running, tiny_bundle: Path) -> None:
    body, headers = remote_request(tiny_bundle)
    for frame in (
        zstandard.ZstdCompressor(level=1).compress(body),
        zstandard.ZstdCompressor(level=19, write_checksum=True).compress(body),
    ):
        status, said, reply = ask(server.port, "POST", INFER, frame, {**headers, **ZSTD})
        assert status == 200, reply
        plain = ask(server.port, "POST", INFER, body, headers)
        assert scores(said, reply) == scores(plain[1], plain[2])
        assert parse_server_timing(said["Server-Timing"]).decode_ns > 0
    extensions = json.loads(ask(server.port, "GET", "/v2")[2])["extensions"]
    assert {"zstd", "jpeg"} <= set(extensions)


def bombs() -> dict[str, tuple[bytes, int, str]]:
    """Small frames that unfold to 256 MB of zeros, and how each is refused."""
    zeros = bytes(1 << 28)
    writer = zstandard.ZstdCompressor(level=19, write_content_size=False).compressobj()
    silent = writer.compress(zeros) + writer.flush()
    honest = zstandard.ZstdCompressor(level=19).compress(zeros)
    assert honest.count(struct.pack("<I", len(zeros))) == 1
    lying = honest.replace(struct.pack("<I", len(zeros)), struct.pack("<I", 60_000))
    return {
        "silent": (silent, 400, "malformed"),
        "honest": (honest, 413, "too_large"),
        "lying": (lying, 400, "malformed"),
    }


def peak_bytes(server: Running) -> int:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def test_a_bomb_is_refused_and_never_unfolded(server: Running) -> None:
    before = peak_bytes(server)
    for frame, status, reason in bombs().values():
        assert len(frame) < 60_000
        found, _, said = ask(server.port, "POST", INFER, frame, {"Inference-Header-Content-Length": "9", **ZSTD})
        assert (found, refusal(said)) == (status, reason)
    assert peak_bytes(server) - before < 32 << 20


def damaged() -> list[tuple[Any, int, str]]:
    def cut(frame: bytes) -> bytes:
        return frame[:-9]

    def longer(frame: bytes) -> bytes:
        return frame + b"x"

    def flipped(frame: bytes) -> bytes:
        return frame[:-60] + bytes([frame[-60] ^ 16]) + frame[-59:]

    def rubbish(frame: bytes) -> bytes:
        return bytes(len(frame))

    def empty(frame: bytes) -> bytes:
        return b""

    return [(change, 400, "malformed") for change in (cut, longer, rubbish, empty)] + [(flipped, 400, "corrupt")]


@pytest.mark.parametrize(("change", "status", "reason"), damaged())
def test_a_damaged_frame_is_refused(server: Running, tiny_bundle: Path, change: Any, status: int, reason: str) -> None:
    body, headers = remote_request(tiny_bundle)
    frame = zstandard.ZstdCompressor(level=1).compress(body)
    found, _, said = ask(server.port, "POST", INFER, change(frame), {**headers, **ZSTD})
    assert found == status
    assert refusal(said) in (reason, "malformed")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd, zstd", "x" * 500])
def test_another_coding_is_refused(server: Running, tiny_bundle: Path, coding: str) -> None:
    body, headers = remote_request(tiny_bundle)
    status, _, said = ask(server.port, "POST", INFER, body, {**headers, "Content-Encoding": coding})
    assert (status, refusal(said)) == (415, "unsupported")
    assert "what is: zstd" in json.loads(said)["error"]


def jpeg_request(folder: Path, file: bytes, **changes: Any) -> tuple[bytes, dict[str, str]]:
    raw = struct.pack("<I", len(file)) + file
    text = json.dumps(
        {
            "parameters": {"crc32": zlib.crc32(raw)},
            "inputs": [
                {
                    "name": load_bundle(folder).splits[0].tensors[0].name,
                    "shape": [1],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(raw)},
                    **changes,
                }
            ],
            "parameters_of_others": 1,
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in ("shape", "colour")],
        }
    ).encode()
    return text + raw, {"Inference-Header-Content-Length": str(len(text))}


def jpeg(width: int = 32, height: int = 32, mode: str = "L", form: str = "JPEG") -> bytes:
    noise = np.random.default_rng(1).integers(0, 256, (height, width, len(mode))).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise.squeeze(), mode).save(file, form)
    return file.getvalue()


def test_a_jpeg_is_decoded_as_its_reader_does(server: Running, tiny_bundle: Path) -> None:
    file = jpeg()
    status, said, reply = ask(server.port, "POST", INFER, *jpeg_request(tiny_bundle, file))
    assert status == 200, reply
    split = load_bundle(tiny_bundle).splits[0]
    session = onnxruntime.InferenceSession(tiny_bundle / str(split.server), providers=["CPUExecutionProvider"])
    pixels = np.asarray(Image.open(io.BytesIO(file))).reshape(split.tensors[0].shape)
    expected = session.run(["shape", "colour"], {split.tensors[0].name: pixels})
    assert scores(said, reply) == [array.ravel().tolist() for array in expected]


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not an image", id="text"),
        pytest.param(jpeg(33, 32), id="one wider"),
        pytest.param(jpeg(32, 32, "RGB"), id="colour"),
        pytest.param(jpeg(form="PNG"), id="png"),
        pytest.param(jpeg()[:-200], id="cut"),
        pytest.param(jpeg()[:100], id="head alone"),
        pytest.param(re.sub(rb"\x00\x20\x00\x20\x01", b"\xff\xff\xff\xff\x01", jpeg(), count=1), id="says 65535x65535"),
    ],
)
def test_another_file_than_the_image_is_refused(server: Running, tiny_bundle: Path, file: bytes) -> None:
    before = peak_bytes(server)
    status, _, said = ask(server.port, "POST", INFER, *jpeg_request(tiny_bundle, file))
    assert (status, refusal(said)) == (400, "malformed"), said
    assert peak_bytes(server) - before < 32 << 20
    assert ask(server.port, "POST", INFER, *jpeg_request(tiny_bundle, jpeg()))[0] == 200
