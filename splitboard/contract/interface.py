"""What one served model takes and gives, and how a message that does not fit is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

from splitboard.contract.bundle import Bundle, Split, TensorSpec

MAX_HEADER_BYTES = 1 << 16
"""Bound of a message's JSON part."""


class WireError(Exception):
    """A message that breaks the protocol or does not fit the served model.

    Attributes:
        status: the HTTP status to answer with.
        message: one line for the other side.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
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
    return WireError(413, f"{to.model} takes at most {to.max_request_bytes} bytes per request, found {n_bytes}")
