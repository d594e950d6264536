"""The nodes of an ONNX file, read without the package ``onnx``, which boards do not have.

Only what is needed to say which operators shall run in INT8: a reader of protobuf's wire format
(https://protobuf.dev/programming-guides/encoding) and the field numbers of onnx.proto3: ``ModelProto.graph`` 7,
``GraphProto.node`` 1, ``NodeProto.input`` 1, ``output`` 2, ``name`` 3, ``op_type`` 4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Tuple, Union

from splitboard.contract.errors import UserError

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_QUANTISE, _DEQUANTISE = "QuantizeLinear", "DequantizeLinear"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Node(NamedTuple):
    """One operator.

    Attributes:
        name: as TensorRT calls it: its own, or ``node_of_`` and its first output.
        kind: e.g. ``Conv``.
        inputs: tensors.
        outputs: tensors.
    """

    name: str
    kind: str
    inputs: Tuple[str, ...]
    outputs: Tuple[str, ...]

    @property
    def is_weighted(self) -> bool:
        """Whether it is one of those that INT8 is for."""
        return self.kind in _WEIGHTED

    @property
    def is_quantisation(self) -> bool:
        """Whether it goes to INT8 or comes from it."""
        return self.kind in (_QUANTISE, _DEQUANTISE)


class Graph:
    """What a graph asks for.

    Args:
        nodes: in the file's order.

    Attributes:
        nodes: by name.
    """

    def __init__(self, nodes: List[Node]) -> None:
        self.nodes: Dict[str, Node] = {node.name: node for node in nodes}
        self._makers = {tensor: node for node in nodes for tensor in node.outputs}

    @property
    def is_quantised(self) -> bool:
        """Whether there is any Q/DQ."""
        return any(node.is_quantisation for node in self.nodes.values())

    @property
    def int8(self) -> Tuple[Node, ...]:
        """Weighted operators that shall run in INT8: both of their operands come from DequantizeLinear."""
        return tuple(node for node in self.nodes.values() if node.is_weighted and len(self.pairs(node)) >= 2)

    def pairs(self, node: Node) -> Tuple[str, ...]:
        """The tensors that an operator takes through INT8, as they are called before it."""
        found = []
        for tensor in node.inputs[:2]:
            back = self._makers.get(tensor)
            if back is not None and back.kind == _DEQUANTISE:
                to = self._makers.get(back.inputs[0])
                found.append(to.inputs[0] if to is not None and to.kind == _QUANTISE else back.inputs[0])
        return tuple(found)


def read_graph(path: Path) -> Graph:
    """Reads the nodes of a file.

    Raises:
        UserError: it is no ONNX file.
    """
    try:
        data = path.read_bytes()
        graphs = [value for number, value in _fields(data) if number == 7 and isinstance(value, bytes)]
        nodes = [_node(value) for number, value in _fields(graphs[0]) if number == 1 and isinstance(value, bytes)]
    except (OSError, IndexError, ValueError) as error:
        raise UserError(f'"{path}" is no ONNX file: {error}', ["build the bundle again: splitboard build"]) from error
    return Graph(nodes)


def _node(data: bytes) -> Node:
    texts: Dict[int, List[str]] = {}
    for number, value in _fields(data):
        if number <= 4 and isinstance(value, bytes):
            texts.setdefault(number, []).append(value.decode("utf-8"))
    inputs, outputs = tuple(texts.get(1, ())), tuple(texts.get(2, ()))
    (name,), (kind,) = texts.get(3, [""]), texts.get(4, [""])
    return Node(name or f"node_of_{outputs[0]}", kind, inputs, outputs)


def _fields(data: bytes) -> Iterator[Tuple[int, Union[int, bytes]]]:
    """The fields of a message: their number and their bytes, or their value where that is a number."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind not in (_BYTES, _FIXED32, _FIXED64):
            raise ValueError(f"unknown wire type {kind}")
        size = {_FIXED32: 4, _FIXED64: 8}.get(kind, 0)
        if kind == _BYTES:
            size, at = _varint(data, at)
        if at + size > len(data):
            raise ValueError("it ends too early")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> Tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
