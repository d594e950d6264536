from __future__ import annotations

import contextlib
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitboard.contract.bundle import TensorSpec
from splitboard.contract.forms import RequestForm
from splitboard.contract.interface import MAX_HEADER_BYTES, Interface, Reason, WireError
from splitboard.contract.wire import (
    Request,
    ServerTiming,
    decode_reply,
    decode_request,
    encode_jpeg_request,
    encode_reply,
    format_server_timing,
    parse_server_timing,
)

TO = Interface(
    model="tiny-s03",
    bundle="ab" * 32,
    split="s03",
    inputs=(TensorSpec("x", (1, 2, 1, 3), "int8", "NHWC", 0.5, -3), TensorSpec("y", (1, 2), "float32", "NC")),
    outputs=(TensorSpec("shape", (1, 2), "float32", "NC"), TensorSpec("colour", (1, 3), "float32", "NC")),
)
TENSORS = bytes([0x80, 0xFF, 0, 1, 2, 0x7F]) + struct.pack("<2f", 1.5, -2.25)


NAMES = ("shape", "colour")


def header() -> dict[str, Any]:
    """A request's JSON part, written from the protocol's text and not with our encoder."""
    return {
        "parameters": {"bundle": "ab" * 32, "split": "s03", "crc32": zlib.crc32(TENSORS), "timeout": 5000},
        "inputs": [
            {"name": "x", "shape": [1, 2, 1, 3], "datatype": "INT8", "parameters": {"binary_data_size": 6}},
            {"name": "y", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
        ],
        "outputs": [
            {"name": "shape", "parameters": {"binary_data": True}},
            {"name": "colour", "parameters": {"binary_data": True}},
        ],
    }


def body(head: object, tensors: bytes = TENSORS) -> tuple[bytes, str]:
    text = json.dumps(head).encode()
    return text + tensors, str(len(text))


def arrays() -> dict[str, Any]:
    x = np.array([-128, -1, 0, 1, 2, 127], np.int8).reshape(1, 2, 1, 3)
    return {"x": x, "y": np.array([[1.5, -2.25]], np.float32)}


def test_a_request_written_by_hand_is_read() -> None:
    request = decode_request(*body(header()), TO)
    np.testing.assert_array_equal(request.inputs["x"], arrays()["x"], strict=True)
    np.testing.assert_array_equal(request.inputs["y"], arrays()["y"], strict=True)
    assert request.outputs == ("shape", "colour")
    assert request.id is None


def test_the_encoder_writes_what_was_written_by_hand() -> None:
    message = RequestForm(TO, NAMES).encode(arrays(), 5000)
    assert json.loads(message.header) == {"id": "000000000000", **header()}
    assert b"".join(message.tensors) == TENSORS
    assert message.n_bytes == len(message.header) + len(TENSORS)


def test_tensors_may_come_in_any_order_and_outputs_may_be_fewer() -> None:
    head = header()
    tensors = TENSORS[6:] + TENSORS[:6]
    head["inputs"].reverse()
    head["outputs"] = head["outputs"][1:]
    head["parameters"]["crc32"] = zlib.crc32(tensors)
    head["id"] = "42"
    request = decode_request(*body(head, tensors), TO)
    np.testing.assert_array_equal(request.inputs["x"], arrays()["x"])
    assert (request.outputs, request.id) == (("colour",), "42")


def test_all_outputs_by_one_parameter() -> None:
    head = header()
    del head["outputs"]
    head["parameters"]["binary_data_output"] = True
    assert decode_request(*body(head), TO).outputs == ("shape", "colour")


def test_arrays_that_are_not_contiguous_arrive_as_they_are() -> None:
    x = np.arange(6, dtype=np.int8).reshape(1, 1, 2, 3).transpose(0, 2, 1, 3)[:, ::-1]
    message = RequestForm(TO, NAMES).encode({**arrays(), "x": x}, 5000)
    found = decode_request(message.header + b"".join(message.tensors), str(len(message.header)), TO)
    np.testing.assert_array_equal(found.inputs["x"], x)


def test_a_tensor_of_another_shape_is_not_sent() -> None:
    with pytest.raises(ValueError, match='tensor "y" is float64'):
        RequestForm(TO, NAMES).encode({**arrays(), "y": np.zeros((1, 2))}, 5000)


def test_a_reply_written_by_hand_is_read() -> None:
    head = {
        "model_name": "tiny-s03",
        "model_version": "1",
        "outputs": [
            {"name": "colour", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}},
            {"name": "shape", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
        ],
    }
    found = decode_reply(*body(head, struct.pack("<5f", 1, 2, 3, 4, 5)), TO)
    assert {name: array.tolist() for name, array in found.items()} == {"colour": [[1, 2, 3]], "shape": [[4, 5]]}
    with pytest.raises(WireError, match="asked was"):
        decode_reply(*body({**head, "model_name": "tiny-s04"}, struct.pack("<5f", 1, 2, 3, 4, 5)), TO)


def test_a_reply_survives_the_way_there_and_back() -> None:
    outputs = {"shape": np.array([[1, 2]], np.float32), "colour": np.array([[np.nan, np.inf, -0.0]], np.float32)}
    message = encode_reply(outputs, TO, Request({}, ("shape", "colour"), "7"))
    found = decode_reply(message.header + b"".join(message.tensors), str(len(message.header)), TO)
    assert json.loads(message.header)["id"] == "7"
    for name, array in outputs.items():
        assert found[name].tobytes() == array.tobytes()


def at(*path: Any) -> Callable[[Any, Any], None]:
    def put(head: Any, value: Any) -> None:
        for step in path[:-1]:
            head = head[step]
        if value is ...:
            del head[path[-1]]
        else:
            head[path[-1]] = value

    return put


MALFORMED = [
    (at("parameters"), [], 400, "parameters must be a JSON object"),
    (at("parameters", "bundle"), "cd" * 32, 409, "tiny-s03 is of bundle"),
    (at("parameters", "split"), "s04", 409, "tiny-s03 is of split"),
    (at("parameters", "split"), 3, 400, "parameter split must be text"),
    (at("parameters", "timeout"), -1, 400, "parameter timeout must be"),
    (at("parameters", "timeout"), 1.5, 400, "parameter timeout must be"),
    (at("parameters", "crc32"), True, 400, "parameter crc32 must be"),
    (at("parameters", "crc32"), -1, 400, "parameter crc32 must be"),
    (at("parameters", "crc32"), 1 << 32, 400, "parameter crc32 must be"),
    (at("parameters", "crc32"), 0, 400, "were changed on the way"),
    (at("inputs"), ..., 400, "inputs must be a JSON list"),
    (at("inputs"), {}, 400, "inputs must be a JSON list"),
    (at("inputs"), [], 400, "missing: "),
    (at("inputs", 1), ..., 400, "missing: y"),
    (at("inputs", 0), 7, 400, "an entry of inputs must be a JSON object"),
    (at("inputs", 0, "name"), "z", 400, 'found "z"'),
    (at("inputs", 0, "name"), ["x"], 400, "each once"),
    (at("inputs", 1, "name"), "x", 400, "each once"),
    (at("inputs", 0, "datatype"), "UINT8", 400, "must be INT8"),
    (at("inputs", 0, "datatype"), ["INT8"], 400, "must be INT8"),
    (at("inputs", 0, "shape"), [1, 1, 2, 3], 400, "must have shape"),
    (at("inputs", 0, "shape"), [1.0, 2, 1, 3], 400, "must have shape"),
    (at("inputs", 0, "shape"), [True, 2, 1, 3], 400, "must have shape"),
    (at("inputs", 0, "shape"), [-1, -2, 1, 3], 400, "must have shape"),
    (at("inputs", 0, "shape"), "1213", 400, "must be a JSON list"),
    (at("inputs", 0, "parameters"), ..., 400, "must have binary_data_size 6"),
    (at("inputs", 0, "parameters"), 6, 400, "must be a JSON object"),
    (at("inputs", 0, "parameters", "binary_data_size"), 7, 400, "must have binary_data_size 6"),
    (at("inputs", 0, "parameters", "binary_data_size"), 1 << 62, 400, "must have binary_data_size 6"),
    (at("inputs", 0, "data"), [1, 2, 3], 400, "only binary tensors"),
    (at("outputs"), [], 400, "found none"),
    (at("outputs"), "shape", 400, "outputs must be a JSON list"),
    (at("outputs", 0, "name"), "size", 400, "outputs must be among shape, colour"),
    (at("outputs", 0, "name"), "colour", 400, "each once"),
    (at("outputs", 0, "parameters"), ..., 400, "with binary_data true"),
    (at("outputs", 0, "parameters", "binary_data"), 1, 400, "with binary_data true"),
    (at("id"), 7, 400, "id must be text"),
]


@pytest.mark.parametrize(("put", "value", "status", "words"), MALFORMED)
def test_every_malformed_header_is_refused_with_its_reason(put: Any, value: Any, status: int, words: str) -> None:
    head = header()
    put(head, value)
    with pytest.raises(WireError) as caught:
        decode_request(*body(head), TO)
    assert caught.value.reason.status == status
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("data", "length", "status", "words"),
    [
        (b"", None, 400, "is missing"),
        (b"", "", 400, "must be a number of bytes"),
        (b"{}", "+2", 400, "must be a number of bytes"),
        (b"{}", "\u0662", 400, "must be a number of bytes"),
        (b"{}", "3", 400, "the body has 2 bytes"),
        (b"{}", "-1", 400, "must be a number of bytes"),
        (b"{}", "9" * 5000, 400, "must be a number of bytes"),
        (b"{", "1", 400, "cannot be read"),
        (b"\xff\xfe{}", "4", 400, "cannot be read"),
        (b"[" * 60000, "60000", 400, "cannot be read"),
        (b"1" * 6000, "6000", 400, ""),
        (b"null", "4", 400, "the JSON part must be a JSON object"),
        (b"x" * (MAX_HEADER_BYTES + 15), "1", 413, "at most 65550 bytes"),
    ],
)
def test_every_malformed_body_is_refused_with_its_reason(data: bytes, length: str, status: int, words: str) -> None:
    with pytest.raises(WireError) as caught:
        decode_request(data, length, TO)
    assert caught.value.reason.status == status
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("tensors", "words"), [(TENSORS[:-1], 'ends inside tensor "y"'), (TENSORS + b"!", "1 bytes after the last")]
)
def test_missing_and_left_over_bytes_are_refused(tensors: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        decode_request(*body(header(), tensors), TO)


@given(data=st.binary(max_size=200), length=st.one_of(st.none(), st.integers(-3, 300).map(str), st.text(max_size=4)))
def test_garbage_never_does_anything_but_fail(data: bytes, length: str | None) -> None:
    for decode in (decode_request, decode_reply):
        with pytest.raises(WireError):
            decode(data, length, TO)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("x"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
PLACES = sorted({cell.cell_contents for put, *_ in MALFORMED for cell in (put.__closure__ or ())}, key=str)


@settings(max_examples=300)
@given(place=st.sampled_from(PLACES), value=JSON)
def test_any_json_in_any_place_is_taken_or_refused(place: tuple[Any, ...], value: Any) -> None:
    head = header()
    at(*place)(head, value)
    with contextlib.suppress(WireError):
        decode_request(*body(head), TO)


@given(bit=st.integers(0, 8 * len(TENSORS) - 1))
def test_one_flipped_bit_of_a_tensor_is_noticed(bit: int) -> None:
    changed = bytearray(TENSORS)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WireError, match="changed on the way"):
        decode_request(*body(header(), bytes(changed)), TO)


DURATION = st.integers(0, 10**14)


@given(queue=DURATION, decode=DURATION, compute=DURATION)
def test_server_timing_keeps_the_nanoseconds(queue: int, decode: int, compute: int) -> None:
    found = parse_server_timing(format_server_timing(ServerTiming(queue, decode, compute)))
    assert found == (queue, decode, compute)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "queue;dur=1.000",
        "queue;dur=1.000, compute;dur=1.000",
        "queue;dur=-1.000, decode;dur=1.000, compute;dur=1.000",
    ],
)
def test_another_server_timing_is_refused(text: str) -> None:
    with pytest.raises(WireError, match="Server-Timing must read"):
        parse_server_timing(text)


def test_server_timing_in_milliseconds() -> None:
    text = "queue;dur=1.234567, decode;dur=0.000000, compute;dur=0.000089"
    assert format_server_timing(ServerTiming(1_234_567, 0, 89)) == text
    assert parse_server_timing("queue;dur=0.125, decode;dur=1.000, compute;dur=2.500") == (125_000, 10**6, 2_500_000)


def test_every_request_of_a_form_has_its_own_numbers() -> None:
    form = RequestForm(TO, ["colour"])
    first = form.encode(arrays(), 7)
    assert json.loads(first.header)["parameters"]["timeout"] == 7
    second = form.encode({**arrays(), "y": np.zeros((1, 2), np.float32)}, 10**30)
    assert json.loads(first.header)["parameters"]["timeout"] == 7
    found = json.loads(second.header)
    assert found["parameters"]["timeout"] == 10**12 - 1
    assert found["parameters"]["crc32"] == zlib.crc32(TENSORS[:6] + bytes(8))
    assert found["outputs"] == [{"name": "colour", "parameters": {"binary_data": True}}]


def test_foreign_requests_need_no_parameters() -> None:
    head = header()
    del head["parameters"]
    request = decode_request(*body(head), TO)
    assert (request.outputs, request.timeout_us) == (NAMES, None)
    assert decode_request(*body(header()), TO).timeout_us == 5000


def test_a_reply_to_another_request_is_refused() -> None:
    outputs = {"shape": np.array([[1, 2]], np.float32), "colour": np.zeros((1, 3), np.float32)}
    message = encode_reply(outputs, TO, Request({}, NAMES, "000000000041"))
    whole = (message.header + b"".join(message.tensors), str(len(message.header)), TO)
    assert decode_reply(*whole, number=41).keys() == outputs.keys()
    with pytest.raises(WireError, match="asked was 000000000042"):
        decode_reply(*whole, number=42)


IMAGE = Interface("tiny-s00", "ab" * 32, "s00", (TensorSpec("image", (1, 8, 8, 1), "uint8", "NHWC"),), TO.outputs)


def test_an_image_as_a_jpeg_file() -> None:
    message = encode_jpeg_request(b"\xff\xd8 file", IMAGE, NAMES, 9)
    (raw,) = message.tensors
    assert bytes(raw) == struct.pack("<I", 7) + b"\xff\xd8 file"
    head = json.loads(message.header)
    size = {"binary_data_size": 11}
    assert head["inputs"] == [{"name": "image", "shape": [1], "datatype": "BYTES", "parameters": size}]
    request = decode_request(message.header + bytes(raw), str(len(message.header)), IMAGE)
    assert request.jpeg is not None
    assert (bytes(request.jpeg), request.inputs, request.timeout_us) == (b"\xff\xd8 file", {}, 9)


@pytest.mark.parametrize(
    ("raw", "shape"),
    [(b"", [1]), (b"\x05\0\0\0abcd", [1]), (b"\x04\0\0\0abcde", [1]), (b"\x04\0\0\0abcd", [2]), (b"\xff" * 4, [1])],
)
def test_a_jpeg_file_of_another_length_is_refused(raw: bytes, shape: list[int]) -> None:
    entry = {"name": "image", "shape": shape, "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    with pytest.raises(WireError) as caught:
        decode_request(*body({"inputs": [entry]}, raw), IMAGE)
    assert caught.value.reason is Reason.MALFORMED
    assert "JPEG" in caught.value.message


def test_tensors_are_never_taken_as_jpeg_files() -> None:
    head = header()
    head["inputs"][0].update(datatype="BYTES", shape=[1])
    with pytest.raises(WireError, match="must be INT8"):
        decode_request(*body(head), TO)


@pytest.mark.parametrize("name", ["bundle", "split"])
def test_a_reply_of_another_pair_is_refused(name: str) -> None:
    outputs = {"shape": np.array([[1, 2]], np.float32), "colour": np.zeros((1, 3), np.float32)}
    message = encode_reply(outputs, TO, Request({}, NAMES))
    head = json.loads(message.header)
    head["parameters"][name] = "other"
    with pytest.raises(WireError) as caught:
        decode_reply(*body(head, b"".join(message.tensors)), TO)
    assert caught.value.reason is Reason.PAIR


@given(bit=st.integers(0, 8 * 20 - 1))
def test_one_flipped_bit_of_a_reply_is_noticed(bit: int) -> None:
    outputs = {"shape": np.array([[1, 2]], np.float32), "colour": np.zeros((1, 3), np.float32)}
    message = encode_reply(outputs, TO, Request({}, NAMES))
    changed = bytearray(b"".join(message.tensors))
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WireError) as caught:
        decode_reply(*body(json.loads(message.header), bytes(changed)), TO)
    assert caught.value.reason is Reason.CORRUPT
