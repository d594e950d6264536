"""Both libraries behind one protocol; the standard library's module is here as its back-port, of the same interface."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from splitboard.contract.interface import Reason, WireError
from splitboard.contract.zstd import StandardZstd, WheelZstd, Zstd, find_zstd

DATA = np.random.default_rng(0).normal(0, 20, 31360).clip(-128, 127).astype(np.int8).tobytes()
LIBRARIES = [("backports.zstd", StandardZstd), ("zstandard", WheelZstd)]


@pytest.fixture(params=LIBRARIES, ids=[name for name, _ in LIBRARIES])
def zstd(request: pytest.FixtureRequest) -> Zstd:
    name, made = request.param
    pytest.importorskip(name)
    found: Zstd = made(importlib.import_module(name))
    return found


@pytest.mark.parametrize(("name", "made"), LIBRARIES)
def test_each_reads_what_the_other_wrote(zstd: Zstd, name: str, made: Any) -> None:
    pytest.importorskip(name)
    frame = zstd.compress([b"head", memoryview(DATA)])
    assert len(frame) < 0.95 * len(DATA)
    assert made(importlib.import_module(name)).decompress(frame, len(DATA) + 4) == b"head" + DATA


def frame_of(data: bytes) -> bytes:
    frame: bytes = pytest.importorskip("zstandard").ZstdCompressor(level=1).compress(data)
    return frame


@pytest.mark.parametrize(
    ("frame", "most_bytes", "reason"),
    [
        (frame_of(DATA), len(DATA) - 1, Reason.TOO_LARGE),
        (frame_of(bytes(1 << 28)), 1000, Reason.TOO_LARGE),
        (frame_of(DATA)[:-5], len(DATA), Reason.MALFORMED),
        (frame_of(DATA) + b"x", len(DATA), Reason.MALFORMED),
        (b"", 10, Reason.MALFORMED),
        (b"not a frame", 10, Reason.MALFORMED),
    ],
)
def test_what_is_no_frame_or_too_large_is_refused(zstd: Zstd, frame: bytes, most_bytes: int, reason: Reason) -> None:
    with pytest.raises(WireError) as caught:
        zstd.decompress(frame, most_bytes)
    assert caught.value.reason is reason


def test_a_bomb_that_lies_about_its_size_stays_small(zstd: Zstd) -> None:
    honest = frame_of(bytes(1 << 20))
    # RFC 8878: magic, descriptor (0x80: four bytes of content size), window, content size, blocks.
    assert honest[4] & 0xE0 == 0x80
    assert int.from_bytes(honest[6:10], "little") == 1 << 20
    liar = honest[:6] + (1000).to_bytes(4, "little") + honest[10:]
    with pytest.raises(WireError):
        zstd.decompress(liar, 1000)


def test_one_of_them_is_found() -> None:
    assert find_zstd() is not None
