"""Turns the tensors of a split into a request, in the coding that was chosen, and the reply into outputs."""

from __future__ import annotations

import importlib
import io
from time import perf_counter_ns
from typing import Any, Dict, Mapping, NamedTuple, Optional, Sequence, Tuple

from numpy.typing import NDArray

from runtime_edge.link.connection import LinkError, Reply
from runtime_edge.link.link import Link
from splitboard.contract.errors import UserError
from splitboard.contract.forms import RequestForm
from splitboard.contract.interface import Interface, WireError
from splitboard.contract.wire import (
    EXTENSION_JPEG,
    EXTENSION_ZSTD,
    HEADER_LENGTH,
    Message,
    ServerTiming,
    encode_jpeg_request,
    parse_server_timing,
)
from splitboard.contract.zstd import Zstd, find_zstd

Array = NDArray[Any]

PLAIN, ZSTD, JPEG = "none", "zstd", "jpeg"
CODINGS = (PLAIN, ZSTD, JPEG)


class Answer(NamedTuple):
    """What the server answered.

    Attributes:
        outputs: by task, float32 ``[1, classes]``; views that the next request overwrites.
        encode_ns: compressing, or writing the JPEG file.
        serialise_ns: the request's header and checksum.
        round_trip_ns: from the first byte of the request to the last one of the reply.
        server: the server's own part, ``None`` where it does not tell.
        sent_bytes: of the request's body, in the coding that it was sent in.
        raw_bytes: of the same body without a coding.
        arrived_ns: when the reply was there.
    """

    outputs: Dict[str, Array]
    encode_ns: int
    serialise_ns: int
    round_trip_ns: int
    server: Optional[ServerTiming]
    sent_bytes: int
    raw_bytes: int
    arrived_ns: int


class _Encoded(NamedTuple):
    """A request, and its zstd frame where it is sent as one."""

    message: Message
    frame: Optional[bytes]
    encode_ns: int
    serialise_ns: int


class Sender:
    """Asks the server halves of one bundle.

    Args:
        link: to the server.
        jpeg_quality: of images that are sent as JPEG files, 1 to 95.

    Raises:
        UserError: the quality is none.
    """

    def __init__(self, link: Link, jpeg_quality: int = 90) -> None:
        if not 1 <= jpeg_quality <= 95:
            raise UserError(f'the JPEG quality is "{jpeg_quality}"', ["from 1 to 95"])
        self.link = link
        self._jpeg_quality = jpeg_quality
        self._zstd: Optional[Zstd] = find_zstd()
        self._forms: Dict[Tuple[str, Tuple[str, ...]], RequestForm] = {}
        self._number = 0
        self._extensions: Optional[Tuple[str, ...]] = None

    def can(self, coding: str) -> bool:
        """Whether board and server both have what a coding needs; asks the server once.

        Raises:
            LinkError: it is not there.
        """
        if coding == PLAIN:
            return True
        if self._extensions is None:
            self._extensions = self.link.extensions()
        if coding == ZSTD:
            return self._zstd is not None and EXTENSION_ZSTD in self._extensions
        return EXTENSION_JPEG in self._extensions and _pillow() is not None

    def ask(
        self,
        to: Interface,
        outputs: Sequence[str],
        tensors: Mapping[str, Array],
        coding: str,
        timeout_s: Optional[float] = None,
    ) -> Answer:
        """Sends one request and reads its reply.

        Args:
            to: the model to ask.
            outputs: names of the outputs wanted.
            tensors: its inputs by name, as stored; others may be among them.
            coding: one of `CODINGS`; ``jpeg`` for remote only.
            timeout_s: for the round trip; the server is told.

        Raises:
            LinkError: the server is not there, refuses, or answers what cannot be used.
        """
        self._number += 1
        timeout_s = self.link.timeout_s if timeout_s is None else timeout_s
        start_ns = perf_counter_ns()
        form = self._form(to, outputs)
        encoded = self._encode(form, tensors, coding, round(timeout_s * 1e6), start_ns)
        message, frame = encoded.message, encoded.frame
        sent_ns = perf_counter_ns()
        if frame is None:
            reply = self.link.infer(to, message, timeout_s)
        else:
            reply = self.link.infer_compressed(to, len(message.header), frame, timeout_s)
        arrived_ns = perf_counter_ns()
        found, server = self._read(reply, form, arrived_ns - sent_ns)
        return Answer(
            outputs=found,
            encode_ns=encoded.encode_ns,
            serialise_ns=encoded.serialise_ns,
            round_trip_ns=arrived_ns - sent_ns,
            server=server,
            sent_bytes=message.n_bytes if frame is None else len(frame),
            raw_bytes=message.n_bytes,
            arrived_ns=arrived_ns,
        )

    def _encode(
        self, form: RequestForm, tensors: Mapping[str, Array], coding: str, timeout_us: int, start_ns: int
    ) -> _Encoded:
        if coding == JPEG:
            jpeg = jpeg_file(tensors[form.to.inputs[0].name], self._jpeg_quality)
            encoded_ns = perf_counter_ns()
            names = [spec.name for spec in form.outputs]
            message = encode_jpeg_request(jpeg, form.to, names, timeout_us, self._number)
            return _Encoded(message, None, encoded_ns - start_ns, perf_counter_ns() - encoded_ns)
        message = form.encode(tensors, timeout_us, self._number)
        serialised_ns = perf_counter_ns()
        if coding != ZSTD or self._zstd is None:
            return _Encoded(message, None, 0, serialised_ns - start_ns)
        frame = self._zstd.compress((message.header, *message.tensors))
        return _Encoded(message, frame, perf_counter_ns() - serialised_ns, serialised_ns - start_ns)

    def _form(self, to: Interface, outputs: Sequence[str]) -> RequestForm:
        key = (to.model, tuple(outputs))
        form = self._forms.get(key)
        if form is None:
            form = self._forms[key] = RequestForm(to, outputs)
        return form

    def _read(
        self, reply: Reply, form: RequestForm, round_trip_ns: int
    ) -> Tuple[Dict[str, Array], Optional[ServerTiming]]:
        try:
            length = reply.headers.get(HEADER_LENGTH.lower())
            outputs = form.decode_reply(reply.body, length, self._number)
            timing = reply.headers.get("server-timing")
            server = None if timing is None else parse_server_timing(timing)
        except WireError as error:
            self.link.close()  # what else comes on this connection cannot be trusted
            raise LinkError(
                error.reason.word if error.reason.word in ("corrupt", "pair") else "broken",
                f'the reply from "{self.link.url}" cannot be used: {error.message}',
            ) from error
        if server is not None and sum(server) > round_trip_ns:
            raise LinkError(
                "broken",
                f'the server at "{self.link.url}" claims more time than the round trip took: "{timing}"',
            )
        return outputs, server


def _pillow() -> Optional[Any]:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError:
        return None


def jpeg_file(image: Array, quality: int) -> bytes:
    """``[1, h, w, 1 or 3]``, uint8, as a JPEG file."""
    pillow = _pillow()
    if pillow is None:
        raise UserError('the coding "jpeg" needs Pillow', ["python3 -m pip install pillow", "--coding none"])
    file = io.BytesIO()
    pixels = image[0, :, :, 0] if image.shape[3] == 1 else image[0]
    pillow.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()
