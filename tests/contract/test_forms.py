"""What is recognised must be what the long way reads, and what is not recognised must go the long way."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitboard.contract.bundle import TensorSpec
from splitboard.contract.forms import RequestForm, ServedForm
from splitboard.contract.interface import Interface, Reason, WireError
from splitboard.contract.wire import Request, decode_reply, decode_request, encode_reply

TO = Interface(
    model='od"d \u00e9 "crc32":999999999999 .*',
    bundle="ab" * 32,
    split="s03",
    inputs=(TensorSpec("x", (1, 2, 1, 3), "int8", "NHWC", 0.5, -3), TensorSpec("y", (1, 2), "float32", "NC")),
    outputs=(TensorSpec("shape", (1, 2), "float32", "NC"), TensorSpec("colour", (1, 3), "float32", "NC")),
)
X = np.array([-128, -1, 0, 1, 2, 127], np.int8).reshape(1, 2, 1, 3)
INPUTS = {"x": X, "y": np.array([[1.5, -2.25]], np.float32)}
OUTPUTS = {"shape": np.array([[1, 2]], np.float32), "colour": np.array([[3, 4, np.nan]], np.float32)}


def whole(form: RequestForm, timeout_us: int = 5000, number: int = 42) -> tuple[bytes, str]:
    message = form.encode(INPUTS, timeout_us, number)
    return bytes(message.header) + b"".join(message.tensors), str(len(message.header))


@given(
    wanted=st.sampled_from([("shape", "colour"), ("colour",), ("shape",)]),
    timeout_us=st.integers(0, 10**13),
    number=st.integers(0, 10**12 - 1),
)
def test_a_request_is_read_as_the_long_way_reads_it(wanted: tuple[str, ...], timeout_us: int, number: int) -> None:
    served, form = ServedForm(TO), RequestForm(TO, wanted)
    body, length = whole(form, timeout_us, number)
    expected = decode_request(body, length, TO)
    for _ in range(2):  # the first time the outputs are learnt, the second time they are known
        found = served.decode_request(body, length)
        assert dataclasses.replace(found, inputs={}) == dataclasses.replace(expected, inputs={})
        for name, array in expected.inputs.items():
            np.testing.assert_array_equal(found.inputs[name], array, strict=True)


@given(id_=st.sampled_from([None, "7", "000000000042", "12345678901x", "1234567890123", "\u0660" * 12]))
def test_a_reply_is_written_as_the_long_way_writes_it(id_: str | None) -> None:
    request = Request({}, ("colour", "shape"), id_)
    found, expected = ServedForm(TO).encode_reply(OUTPUTS, request), encode_reply(OUTPUTS, TO, request)
    assert json.loads(bytes(found.header)) == json.loads(bytes(expected.header))
    assert [bytes(one) for one in found.tensors] == [bytes(one) for one in expected.tensors]


def test_a_reply_is_read_as_the_long_way_reads_it() -> None:
    form = RequestForm(TO, ["colour"])
    message = ServedForm(TO).encode_reply(OUTPUTS, Request({}, ("colour",), "000000000042"))
    body, length = bytes(message.header) + b"".join(message.tensors), str(len(message.header))
    expected = decode_reply(body, length, TO, form.outputs, 42)
    found = form.decode_reply(body, length, 42)
    assert found.keys() == expected.keys() == {"colour"}
    np.testing.assert_array_equal(found["colour"], expected["colour"], strict=True)
    with pytest.raises(WireError, match="asked was 000000000043"):
        form.decode_reply(body, length, 43)
    with pytest.raises(WireError, match="bytes follow"):
        form.decode_reply(body + b"!", length, 42)
    changed = bytearray(body)
    changed[-1] ^= 1
    with pytest.raises(WireError) as caught:
        form.decode_reply(bytes(changed), length, 42)
    assert caught.value.reason is Reason.CORRUPT


def test_another_servers_reply_goes_the_long_way() -> None:
    head = {
        "outputs": [{"datatype": "FP32", "shape": [1, 3], "name": "colour", "parameters": {"binary_data_size": 12}}],
        "model_version": "1",
        "model_name": TO.model,
        "id": "000000000042",
    }
    text = json.dumps(head, indent=1).encode()
    found = RequestForm(TO, ["colour"]).decode_reply(text + struct.pack("<3f", 1, 2, 3), str(len(text)), 42)
    assert found["colour"].tolist() == [[1, 2, 3]]


@settings(max_examples=400)
@given(
    at=st.integers(0, 10_000),
    change=st.sampled_from([b"", b" ", b"9", b"-", b'"', b"\x00", b"\xff", b"99999999999999999999"]),
    cut=st.integers(0, 3),
    length_off=st.integers(-3, 3),
)
def test_both_ways_agree_on_whatever_is_wrong(at: int, change: bytes, cut: int, length_off: int) -> None:
    """The short way may take numbers with zeros in front of them, which JSON has not; else they refuse alike."""
    served = ServedForm(TO)
    body, length = whole(RequestForm(TO, ("shape", "colour")))
    served.decode_request(body, length)
    at %= len(body)
    broken, said = body[:at] + change + body[at + cut :], str(int(length) + length_off)
    expected: object = None
    with contextlib.suppress(WireError):
        expected = decode_request(broken, said, TO)
    try:
        found = served.decode_request(broken, said)
    except WireError:
        assert expected is None
        return
    if expected is not None:
        assert isinstance(expected, Request)
        assert (found.outputs, found.id, found.timeout_us) == (expected.outputs, expected.id, expected.timeout_us)
        assert all(found.inputs[name].tobytes() == array.tobytes() for name, array in expected.inputs.items())
    else:
        assert {name: array.tobytes() for name, array in found.inputs.items()} == {
            name: array.tobytes() for name, array in INPUTS.items()
        }
