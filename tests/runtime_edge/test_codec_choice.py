"""When compressing pays, against the arithmetic of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_edge.policy.codec_choice import TRY_EVERY, CodecChoice

SIZES = st.integers(1000, 1_000_000)
TIMES = st.integers(1, 10**9)


@given(SIZES, st.floats(0.05, 1.2), TIMES, TIMES, st.floats(1e5, 1e10))
def test_compresses_where_the_saved_bits_take_longer_than_the_codec(
    raw: int, ratio: float, encode_ns: int, decode_ns: int, rate_bps: float
) -> None:
    sent = round(raw * ratio)
    choice = CodecChoice()
    choice.observe("s17", raw, sent, encode_ns, decode_ns)
    plain_ns, packed_ns = 8e9 * raw / rate_bps, 8e9 * sent / rate_bps + encode_ns + decode_ns
    if abs(plain_ns - packed_ns) > 1e-6 * plain_ns:
        assert choice.compress("s17", rate_bps) == (packed_ns < plain_ns)


def test_the_first_request_of_a_split_is_compressed_whatever_the_rate() -> None:
    choice = CodecChoice()
    assert choice.compress("s17", None)
    assert choice.break_even_bps("s17") is None
    choice.observe("s17", 1000, 1000, 10, 10)
    assert not choice.compress("s17", 1e6)
    assert choice.compress("s31", 1e6)


def test_an_unknown_rate_is_no_reason_to_compress() -> None:
    choice = CodecChoice()
    choice.observe("s17", 1000, 100, 1, 1)
    assert not choice.compress("s17", None)


def test_what_does_not_pay_is_tried_again_once_in_a_while() -> None:
    choice = CodecChoice()
    choice.observe("s17", 1000, 990, 10**7, 10**7)
    asked = [choice.compress("s17", 100e6) for _ in range(3 * TRY_EVERY)]
    assert [i + 1 for i, yes in enumerate(asked) if yes] == [TRY_EVERY, 2 * TRY_EVERY, 3 * TRY_EVERY]


def test_figures_follow_the_data() -> None:
    choice = CodecChoice()
    choice.observe("s17", 1000, 1000, 10_000, 10_000)
    for _ in range(40):
        choice.observe("s17", 1000, 500, 10_000, 10_000)
    assert choice.break_even_bps("s17") == pytest.approx(8 * 500 / 20e-6, rel=0.01)


def test_break_even_of_the_measured_codecs() -> None:
    """Rows of a table of zstd level 1 on EfficientNet-Lite0's INT8 maps: KB, ratio, ms to encode, to decode, Mbit/s."""
    rows = [(401, 0.64, 0.60, 0.26, 1324), (75, 0.82, 0.06, 0.05, 1047), (63, 0.14, 0.06, 0.02, 5309)]
    for kilobytes, ratio, encode_ms, decode_ms, mbps in rows:
        choice = CodecChoice()
        raw = kilobytes * 1000
        choice.observe("s", raw, round(raw * ratio), round(encode_ms * 1e6), round(decode_ms * 1e6))
        assert choice.break_even_bps("s") == pytest.approx(mbps * 1e6, rel=0.15)  # the table's figures are rounded
