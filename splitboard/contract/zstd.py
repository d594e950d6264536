"""Zstandard (RFC 8878) from whichever library is there: Python 3.14's own module, else the wheel ``zstandard``."""

from __future__ import annotations

import importlib
from typing import Any, Optional, Protocol, Sequence, Union

from splitboard.contract.interface import Reason, WireError

LEVEL = 1
"""Higher levels save less than one percent more of INT8 tensors, negative ones nothing at all."""

CODING = "zstd"
"""The name of the content coding."""

Buffer = Union[bytes, bytearray, memoryview]


class Zstd(Protocol):
    """One library."""

    def compress(self, pieces: Sequence[Buffer]) -> bytes:
        """One frame that holds all pieces, one after the other."""

    def decompress(self, frame: Buffer, most_bytes: int) -> bytes:
        """Undoes `compress`, whatever the frame claims of itself, in bounded memory.

        Raises:
            WireError: it is no whole frame, or holds more than ``most_bytes``.
        """
        ...


def find_zstd() -> Optional[Zstd]:
    """The library that is there; ``None`` where there is none."""
    for name, made in (("compression.zstd", StandardZstd), ("zstandard", WheelZstd)):
        try:
            return made(importlib.import_module(name))
        except ImportError:
            continue
    return None


class StandardZstd:
    """Python 3.14's ``compression.zstd``."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def compress(self, pieces: Sequence[Buffer]) -> bytes:
        """See `Zstd.compress`."""
        compressor = self._library.ZstdCompressor(level=LEVEL)
        compressor.set_pledged_input_size(sum(len(piece) for piece in pieces))
        return b"".join([*(compressor.compress(piece) for piece in pieces), compressor.flush()])

    def decompress(self, frame: Buffer, most_bytes: int) -> bytes:
        """See `Zstd.decompress`."""
        decompressor = self._library.ZstdDecompressor()
        try:
            found: bytes = decompressor.decompress(frame, max_length=most_bytes + 1)
        except self._library.ZstdError as error:
            raise WireError(Reason.MALFORMED, f"the body is no zstd frame: {error}") from error
        if len(found) > most_bytes:
            raise _too_large(most_bytes)
        if not decompressor.eof or decompressor.unused_data:
            raise WireError(Reason.MALFORMED, "the zstd frame is cut short or followed by something")
        return found


class WheelZstd:
    """``zstandard``; its compressor is kept, which saves setting up its tables for every message."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._compressor = library.ZstdCompressor(level=LEVEL)

    def compress(self, pieces: Sequence[Buffer]) -> bytes:
        """See `Zstd.compress`."""
        one = self._compressor.compressobj(size=sum(len(piece) for piece in pieces))
        return b"".join([*(one.compress(piece) for piece in pieces), one.flush()])

    def decompress(self, frame: Buffer, most_bytes: int) -> bytes:
        """See `Zstd.decompress`."""
        try:
            claimed = self._library.frame_content_size(frame)
            if claimed < 0:
                raise WireError(Reason.MALFORMED, "the zstd frame does not say how much it holds")
            if claimed > most_bytes:
                raise _too_large(most_bytes)
            # The frame is decoded into so many bytes and no more, whatever it holds.
            found: bytes = self._library.ZstdDecompressor().decompress(frame, allow_extra_data=False)
        except self._library.ZstdError as error:
            raise WireError(Reason.MALFORMED, f"the body is no zstd frame: {error}") from error
        return found


def _too_large(most_bytes: int) -> WireError:
    return WireError(Reason.TOO_LARGE, f"the zstd frame holds more than {most_bytes} bytes")
