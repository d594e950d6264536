"""Several ONNX files whose weights lie once in one file beside them (ONNX's external data)."""

from __future__ import annotations

import hashlib

from onnx import ModelProto, TensorProto, numpy_helper

SMALLEST_BYTES = 1024
"""Tensors from this size on are shared; smaller ones, such as shapes, stay in the graph, where they are read."""

ALIGNMENT_BYTES = 64
"""Of every tensor in the file: a cache line, and more than any vector load wants."""


class SharedWeights:
    """A file of weights in the making; every content is in it once.

    Args:
        location: the file's name, in the folder that the models will be in.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        self._content = bytearray()
        self._offsets: dict[bytes, int] = {}

    @property
    def content(self) -> bytes:
        """What the file is to hold."""
        return bytes(self._content)

    def take(self, model: ModelProto) -> None:
        """Moves the weights of a model into the file, in place; the model is of no use without it from then on."""
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.STRING:
                continue
            if not tensor.HasField("raw_data"):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
            if len(tensor.raw_data) >= SMALLEST_BYTES:
                _refer(tensor, self._location, self._place(tensor.raw_data))

    def _place(self, data: bytes) -> int:
        key = hashlib.sha256(data).digest()
        if key not in self._offsets:
            self._content += bytes(-len(self._content) % ALIGNMENT_BYTES)
            self._offsets[key] = len(self._content)
            self._content += data
        return self._offsets[key]


def _refer(tensor: TensorProto, location: str, offset: int) -> None:
    """Puts the place of a tensor's data where the data were (onnx, ``docs/ExternalData.md``)."""
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
