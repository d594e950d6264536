"""Requests and replies whose text is known beforehand: written and recognised without JSON.

Between one board and one server all headers of a split are alike but for the request's number, its checksum and the
time that is left. Both sides write those numbers into a text that was made once, and recognise the other's text by it.
What is not recognised (another client, another order of keys) goes the long way of `splitboard.contract.wire`.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Pattern, Sequence, Tuple

import numpy as np

from splitboard.contract.bundle import TensorSpec
from splitboard.contract.checksum import crc32
from splitboard.contract.interface import MAX_HEADER_BYTES, Interface, Reason, WireError
from splitboard.contract.wire import (
    MAX_TIMEOUT_US,
    ROOM,
    STORED,
    Array,
    Buffer,
    Message,
    Request,
    checksum,
    decode_reply,
    decode_request,
    dump,
    parse_length,
    reply_header,
    request_header,
    view_of,
)

_NUMBER = rb" {0,%d}([0-9]{1,%d})" % (len(ROOM) - 1, len(ROOM))
_ID = rb"([0-9]{%d})" % len(ROOM)
_MOST_TAILS = 64
_FULL_ID = re.compile(rf"[0-9]{{{len(ROOM)}}}", re.ASCII)


class RequestForm:
    """The board's side: requests to one model for some of its outputs.

    Args:
        to: the model to ask.
        outputs: names wanted, in any order.
    """

    def __init__(self, to: Interface, outputs: Sequence[str]) -> None:
        self.to = to
        self.outputs = tuple(spec for spec in to.outputs if spec.name in outputs)
        self._header = _template(dump(request_header(to, self.outputs, ROOM, int(ROOM), int(ROOM))))
        self._reply = _pattern(dump(reply_header(to, self.outputs, ROOM, int(ROOM))))
        self._places = _places(self.outputs)

    def encode(self, inputs: Mapping[str, Array], timeout_us: int, number: int = 0) -> Message:
        """One request.

        Args:
            inputs: by name, of the shapes and types in the interface.
            timeout_us: microseconds that the answer is still of use.
            number: the request's own, below 10**12; a server echoes it.

        Raises:
            ValueError: an input has another shape or type than the interface says.
        """
        views = tuple([view_of(inputs[spec.name], spec) for spec in self.to.inputs])
        timeout_us = min(max(timeout_us, 0), MAX_TIMEOUT_US)
        return Message(self._header % (b"%0*d" % (len(ROOM), number), checksum(views), timeout_us), views)

    def decode_reply(self, body: Buffer, header_length: Optional[str], number: int) -> Dict[str, Array]:
        """Checks the reply to a request of this form; see `splitboard.contract.wire.decode_reply`."""
        header, binary = _divide(body, header_length)
        found = self._reply.fullmatch(header)
        if found is None or int(found.group(1)) != number:
            return decode_reply(body, header_length, self.to, self.outputs, number)
        return _tensors(binary, self._places, int(found.group(2)))


class ServedForm:
    """The server's side: requests to one model, and its replies.

    Args:
        of: the model.
    """

    def __init__(self, of: Interface) -> None:
        self.of = of
        text = dump(request_header(of, of.outputs, ROOM, int(ROOM), int(ROOM)))
        ahead = text[: text.index(b'"outputs":')]
        self._request = _pattern(ahead)
        self._places = _places(of.inputs)
        self._tails: Dict[bytes, Tuple[str, ...]] = {}
        self._replies: Dict[Tuple[str, ...], Tuple[bytes, List[TensorSpec]]] = {}

    def decode_request(self, body: Buffer, header_length: Optional[str]) -> Request:
        """Checks a request and makes its tensors; see `splitboard.contract.wire.decode_request`."""
        header, binary = _divide(body, header_length)
        found = self._request.match(header)
        outputs = None if found is None else self._tails.get(header[found.end() :])
        if found is None or outputs is None:
            request = decode_request(body, header_length, self.of)
            if found is not None and len(self._tails) < _MOST_TAILS:
                self._tails[header[found.end() :]] = request.outputs
            return request
        tensors = _tensors(binary, self._places, int(found.group(2)))
        return Request(tensors, outputs, found.group(1).decode("ascii"), int(found.group(3)))

    def encode_reply(self, outputs: Mapping[str, Array], request: Request) -> Message:
        """The reply to a request; see `splitboard.contract.wire.encode_reply`."""
        template, specs = self._reply(request.outputs)
        views = tuple([view_of(outputs[spec.name], spec) for spec in specs])
        crc32_ = checksum(views)
        if request.id is not None and _FULL_ID.fullmatch(request.id):
            return Message(template % (request.id.encode("ascii"), crc32_), views)
        return Message(dump(reply_header(self.of, specs, request.id, crc32_)), views)

    def _reply(self, names: Tuple[str, ...]) -> Tuple[bytes, List[TensorSpec]]:
        known = self._replies.get(names)
        if known is None:
            named = {spec.name: spec for spec in self.of.outputs}
            specs = [named[name] for name in names]
            known = _template(dump(reply_header(self.of, specs, ROOM, int(ROOM)))), specs
            self._replies[names] = known
        return known


def _pieces(text: bytes) -> List[bytes]:
    """What stands between the numbers of a header."""
    pieces = []
    for mark in (b'"id":"', b'"crc32":', b'"timeout":'):
        before, found, text = text.partition(mark + ROOM.encode("ascii"))
        if not found:
            text = before
            break
        pieces.append(before + mark)
    return [*pieces, text]


def _template(text: bytes) -> bytes:
    """What writes a header: ``% (id, crc32, timeout)``, the numbers with blanks in front."""
    first, *others = [piece.replace(b"%", b"%%") for piece in _pieces(text)]
    return first + b"%b" + (b"%%%dd" % len(ROOM)).join(others)


def _pattern(text: bytes) -> Pattern[bytes]:
    first, *others = map(re.escape, _pieces(text))
    return re.compile(first + _ID + _NUMBER.join(others), re.ASCII)


def _divide(body: Buffer, header_length: Optional[str]) -> Tuple[bytes, memoryview]:
    """The JSON part and the rest; nothing where the length is none, which the long way then tells of."""
    view = memoryview(body)
    try:
        length = min(parse_length(header_length or "", ""), len(view), MAX_HEADER_BYTES)
    except WireError:
        length = 0
    return bytes(view[:length]), view[length:]


class _Place(NamedTuple):
    """Where a tensor lies behind the JSON part."""

    name: str
    start: int
    end: int
    dtype: np.dtype[Any]
    shape: Tuple[int, ...]


def _places(specs: Sequence[TensorSpec]) -> List[_Place]:
    places, start = [], 0
    for spec in specs:
        places.append(_Place(spec.name, start, start + spec.n_bytes, STORED[spec.dtype], spec.shape))
        start = places[-1].end
    return places


def _tensors(binary: memoryview, places: Sequence[_Place], claimed: int) -> Dict[str, Array]:
    """The tensors of a recognised header.

    Raises:
        WireError: there are more or fewer bytes, or they were changed on the way.
    """
    if len(binary) != places[-1].end:
        raise WireError(Reason.MALFORMED, f"{len(binary)} bytes follow the JSON part, its tensors have others")
    found = crc32(binary, 0)
    if found != claimed:
        raise WireError(
            Reason.CORRUPT, f"the tensors were changed on the way: crc32 is {found}, the sender says {claimed}"
        )
    arrays = {}
    for name, start, _, dtype, shape in places:
        array = np.ndarray(shape, dtype, binary, start)
        arrays[name] = array if array.flags.aligned else array.copy()
    return arrays
