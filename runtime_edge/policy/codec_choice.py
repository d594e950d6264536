"""Whether a request is worth compressing: measured sizes and times against the link's rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional

TRY_EVERY = 50
"""A split whose requests go out uncompressed is compressed once in so many, so that its figures stay true."""

_WEIGHT = 0.2


@dataclass(frozen=True)
class _Measured:
    """Moving averages over the compressed requests of one split; both per byte before compression."""

    saved: float
    codec_ns: float

    def joined(self, new: _Measured) -> _Measured:
        return _Measured(
            self.saved + _WEIGHT * (new.saved - self.saved), self.codec_ns + _WEIGHT * (new.codec_ns - self.codec_ns)
        )


class CodecChoice:
    """Compress or not, per split.

    Compressing pays where the saved bits take longer on the link than encoding and decoding do. The first request of
    a split is compressed to see what that gives, and so is every `TRY_EVERY`-th of those that need not be.
    """

    def __init__(self) -> None:
        self._measured: Dict[str, _Measured] = {}
        self._plain: Dict[str, int] = {}

    def compress(self, split: str, rate_bps: Optional[float]) -> bool:
        """Whether to compress the next request.

        Args:
            split: id.
            rate_bps: of the link; ``None`` where it is not known, which counts as too fast to be worth it.
        """
        measured = self._measured.get(split)
        if measured is None:
            return True
        if rate_bps is not None and 8e9 * measured.saved / rate_bps > measured.codec_ns:
            self._plain[split] = 0
            return True
        self._plain[split] = (self._plain.get(split, 0) + 1) % TRY_EVERY
        return self._plain[split] == 0

    def observe(self, split: str, raw_bytes: int, sent_bytes: int, encode_ns: int, decode_ns: int) -> None:
        """Takes in a request that was compressed; others tell nothing.

        Args:
            split: id.
            raw_bytes: before compression, above 0.
            sent_bytes: after it.
            encode_ns: on the board.
            decode_ns: on the server.
        """
        new = _Measured((raw_bytes - sent_bytes) / raw_bytes, (encode_ns + decode_ns) / raw_bytes)
        known = self._measured.get(split)
        self._measured[split] = new if known is None else known.joined(new)

    def break_even_bps(self, split: str) -> Optional[float]:
        """The rate below which compressing pays; ``None`` before the split was compressed once, 0 if it never pays."""
        measured = self._measured.get(split)
        if measured is None:
            return None
        return max(8e9 * measured.saved, 0.0) / max(measured.codec_ns, 1e-9)
