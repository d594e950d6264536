"""What one served model takes and gives, and how a message that does not fit is refused."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Tuple

from splitboard.contract.bundle import Bundle, Split, TensorSpec

MAX_HEADER_BYTES = 1 << 16
"""Bound of a message's JSON part."""


class Reason(enum.Enum):
    """Why a message is refused: the word that goes into a refusal, and its HTTP status."""

    MALFORMED = ("malformed", 400)
    CORRUPT = ("corrupt", 400)
    UNAUTHORISED = ("unauthorised", 401)
    NOT_FOUND = ("not_found", 404)
    METHOD = ("method", 405)
    SLOW = ("slow", 408)
    PAIR = ("pair", 409)
    TOO_LARGE = ("too_large", 413)
    UNSUPPORTED = ("unsupported", 415)
    INTERNAL = ("internal", 500)
    OVERLOADED = ("overloaded", 503)
    DRAINING = ("draining", 503)
    EXPIRED = ("expired", 504)

    def __init__(self, word: str, status: int) -> None:
        self.word = word
        self.status = status


class WireError(Exception):
    """A message that breaks the protocol or does not fit the served model, or a request that cannot be served now.

    Attributes:
        reason: which kind.
        message: one line for the other side.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Interface:
    """What one served model takes and gives; both sides derive it from the same bundle.

    Attributes:
        model: served name.
        bundle: sha256 of the manifest.
        split: id.
        inputs: the wire tensors.
        outputs: one float32 ``[1, classes]`` tensor per task that the edge does not answer, in the bundle's order.
    """

    model: str
    bundle: str
    split: str
    inputs: Tuple[TensorSpec, ...]
    outputs: Tuple[TensorSpec, ...]

    @property
    def takes_jpeg(self) -> bool:
        """Whether the input is an image as it came from its source, which may be sent as a JPEG file."""
        return len(self.inputs) == 1 and self.inputs[0].dtype == "uint8"

    @property
    def max_request_bytes(self) -> int:
        """No body of a valid request is larger."""
        return MAX_HEADER_BYTES + sum(tensor.n_bytes for tensor in self.inputs)

    @property
    def max_reply_bytes(self) -> int:
        """No body of a valid reply is larger."""
        return MAX_HEADER_BYTES + sum(tensor.n_bytes for tensor in self.outputs)


def interface(bundle: Bundle, bundle_sha256: str, split: Split) -> Interface:
    """The interface of a split's server half."""
    remote = [task for task in bundle.tasks if task.name not in split.local_tasks]
    outputs = tuple(TensorSpec(task.name, (1, len(task.labels)), "float32", "NC") for task in remote)
    return Interface(bundle.served_name(split), bundle_sha256, split.id, split.tensors, outputs)


def too_large(n_bytes: int, to: Interface) -> WireError:
    """The refusal of a body of ``n_bytes``."""
    return WireError(
        Reason.TOO_LARGE, f"{to.model} takes at most {to.max_request_bytes} bytes per request, found {n_bytes}"
    )
