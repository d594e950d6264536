"""Whether TensorRT takes a graph: one rule per refusal, from the graph alone.

A rule is certain: what it refuses is refused by TensorRT's parser or builder, or built into something else than the
graph says (unsigned integers as signed ones; in float what has its scales along another axis than the outputs').
What each rule rests on stands with it. A graph that passes may still be refused: only the board knows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from calib.qdq.parsers import Parser, parser_of, release
from export.opset import opset_of
from splitboard.contract.board import BoardKind
from splitboard.contract.errors import SplitboardError

Rule = Literal[
    "unsigned",
    "zero-point",
    "int32-bias",
    "axis",
    "scale",
    "stored-weights",
    "type",
    "dynamic",
    "operator",
    "opset",
    "no-int8",
]

_STORES_INT8 = (10, 0)
"""The first release that takes weights which are INT8 already."""

_QUANTISED = (TensorProto.INT8, TensorProto.FLOAT8E4M3FN, TensorProto.INT4, TensorProto.FLOAT4E2M1)
"""What TensorRT quantises to; only INT8 has rules here."""

_NO_TYPES = (
    TensorProto.STRING,
    TensorProto.DOUBLE,
    TensorProto.COMPLEX64,
    TensorProto.COMPLEX128,
    TensorProto.INT16,
    TensorProto.UINT16,
    TensorProto.UINT32,
    TensorProto.UINT64,
)
"""That no release of TensorRT has a type for (``nvinfer1::DataType``)."""

_ONNX = ("", "ai.onnx")
"""Names of the domain of ONNX's own operators."""

_CHANNELS = {"Conv": (0,), "ConvTranspose": (0, 1)}
"""Axes of weights that scales may lie along. Of ConvTranspose the output channels are axis 1, and TensorRT's developers
say that its kernels take axis 0 (NVIDIA/TensorRT issue 2380), so neither is refused."""


@dataclass(frozen=True)
class Refusal:
    """Why TensorRT does not take a graph.

    Attributes:
        rule: that is broken.
        where: the operator or tensor.
        wrong: what is wrong with it.
        change: what to do about it.
    """

    rule: Rule
    where: str
    wrong: str
    change: str

    def __str__(self) -> str:
        return f"{self.where} {self.wrong}"


@dataclass(frozen=True)
class Legality:
    """``splitboard check-onnx --json``.

    Attributes:
        graph: the file.
        board: kind of board.
        tensorrt: releases that it was judged for.
        refusals: none where it is legal.
        not_judged: operators of domains other than ONNX's own, as ``domain::Operator``.
    """

    graph: str
    board: str
    tensorrt: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    not_judged: tuple[str, ...]


def is_int8(model: ModelProto) -> bool:
    """Whether anything in a graph is quantised."""
    return any(_of_type(model, "QuantizeLinear", "DequantizeLinear"))


def refusals(model: ModelProto, kind: BoardKind, tensorrt: Sequence[str]) -> tuple[Refusal, ...]:
    """All that some releases of TensorRT on a kind of board refuse of a graph.

    Args:
        model: with its weights, or without what external data hold.
        kind: the board.
        tensorrt: releases, e.g. those of the kind's systems that a graph of this precision is for.

    Raises:
        UserError: what a release reads is not known.
    """
    parsers = {one: parser_of(one) for one in tensorrt}
    return (
        *quantisation(model),
        *stored_weights(model, tensorrt),
        *types(model),
        *dynamic_shapes(model),
        *operators(model, parsers),
        *opset(model, parsers, kind),
        *no_int8(model, kind),
    )


def quantisation(model: ModelProto) -> tuple[Refusal, ...]:
    """All that every TensorRT refuses of QuantizeLinear and DequantizeLinear."""
    rules = (scales, zero_points, unsigned, int32_biases, axes)
    return tuple(refusal for rule in rules for refusal in rule(model))


def not_judged(model: ModelProto) -> tuple[str, ...]:
    """Operators that no rule here knows, which may be plugins: those of other domains than ONNX's own, each once."""
    return tuple(dict.fromkeys(f"{one.domain}::{one.op_type}" for one in _all_nodes(model.graph) if not _is_onnxs(one)))


def check_legal(model: ModelProto) -> None:
    """Checks a graph that was written here: `quantisation`, and every DequantizeLinear has its QuantizeLinear.

    Raises:
        SplitboardError: names the operator that breaks a rule.
    """
    for refusal in quantisation(model):
        raise SplitboardError(str(refusal))
    quantised = {node.output[0]: node for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for node in _of_type(model, "DequantizeLinear"):
        source = quantised.get(node.input[0])
        if source is None or source.input[1] != node.input[1]:
            raise SplitboardError(f"{_named(node)} does not take what a QuantizeLinear of the same scale gives")


# The rules.


def scales(model: ModelProto) -> Iterator[Refusal]:
    """Scales are positive float32 constants.

    The parser: "Scale coefficients must all be positive". A scale in fp16 makes what is dequantised fp16, and fails on
    Orin where Thor builds it (NVIDIA/TensorRT issue 4832).
    """
    constants = _constants(model.graph)
    for node in _of_type(model, "QuantizeLinear", "DequantizeLinear"):
        if len(node.input) < 3 or node.input[1] not in constants or node.input[2] not in constants:
            wrong = "has no constant scale and zero point"
            yield Refusal("scale", _named(node), wrong, "write both as initializers; the zero point is 0 in int8")
            continue
        scale = _values(constants[node.input[1]])
        if scale.dtype != np.float32 or not np.isfinite(scale).all() or not (scale > 0).all():
            wrong = f'has a scale that is not a positive float32: "{scale.min():g}" in {scale.dtype}'
            change = "calibrate with images on which the tensor is not constant, and keep scales in float32"
            yield Refusal("scale", _named(node), wrong, change)


def zero_points(model: ModelProto) -> Iterator[Refusal]:
    """Zero points of INT8 are 0. The parser: "Non-zero zero point is not supported"."""
    for node, zero in _zero_points(model):
        if zero.data_type == TensorProto.INT8 and _values(zero).any():
            wrong = f'has a zero point that is not 0 in int8: {_values(zero).dtype} "{_values(zero).max()}"'
            change = "quantise symmetrically (ONNX Runtime: ActivationSymmetric and WeightSymmetric)"
            yield Refusal("zero-point", _named(node), wrong, change)


def unsigned(model: ModelProto) -> Iterator[Refusal]:
    """Integers are signed and of 8 bits.

    The parser takes unsigned ones for signed, with a warning, so values above 127 come out wrong; others it refuses.
    """
    for node, zero in _zero_points(model):
        is_bias = node.op_type == "DequantizeLinear" and zero.data_type == TensorProto.INT32
        if zero.data_type not in _QUANTISED and not is_bias:
            wrong = f"has a zero point that is not 0 in int8: {_values(zero).dtype}"
            change = "quantise to signed 8-bit integers (ONNX Runtime: QuantType.QInt8 for activations and weights)"
            yield Refusal("unsigned", _named(node), wrong, change)


def int32_biases(model: ModelProto) -> Iterator[Refusal]:
    """Biases stay float: DequantizeLinear takes no int32 (onnx/onnx-tensorrt issue 850)."""
    constants = _constants(model.graph)
    for node in _of_type(model, "DequantizeLinear"):
        source = constants.get(node.input[0])
        if source is not None and source.data_type == TensorProto.INT32:
            change = "leave biases in float (ONNX Runtime: extra_options QuantizeBias=False)"
            yield Refusal("int32-bias", _named(node), f'takes the int32 bias "{node.input[0]}"', change)


def axes(model: ModelProto) -> Iterator[Refusal]:
    """Weights have one scale per output channel or one in all, everything else one in all.

    TensorRT developer guide, "Quantization granularities". RTX's builder takes others, and computes in float then.
    """
    constants, makers = _constants(model.graph), {name: node for node in model.graph.node for name in node.output}
    for node in _of_type(model, "QuantizeLinear", "DequantizeLinear"):
        if len(node.input) < 2 or node.input[1] not in constants or _size(constants[node.input[1]]) == 1:
            continue
        source = makers.get(node.input[0])
        behind = source is not None and source.op_type == "QuantizeLinear" and node.op_type == "DequantizeLinear"
        tensor = source.input[0] if behind and source is not None else node.input[0]
        if tensor in constants:
            yield from _wrong_axes(model, node, constants[tensor])
        elif not behind:  # of a pair, the first tells
            wrong = f'has a scale per channel of "{tensor}", which is no constant'
            yield Refusal(
                "axis", _named(node), wrong, "one scale for the whole tensor; scales per channel are weights'"
            )


def stored_weights(model: ModelProto, tensorrt: Sequence[str]) -> Iterator[Refusal]:
    """Before TensorRT 10 weights are stored in float, in front of their QuantizeLinear.

    The parser: "invalid weights type of Int8" (NVIDIA/TensorRT issue 2163, microsoft/onnxruntime issue 11535).
    """
    older = [one for one in tensorrt if release(one) < _STORES_INT8]
    constants = _constants(model.graph)
    for node in _of_type(model, "DequantizeLinear") if older else ():
        if node.input[0] in constants and constants[node.input[0]].data_type == TensorProto.INT8:
            wrong = f'takes the weights "{node.input[0]}", which are INT8 already: ' + _none_taken_by(older)
            change = "store them in float, with QuantizeLinear behind (ONNX Runtime: extra_options AddQDQPairToWeight)"
            yield Refusal("stored-weights", _named(node), wrong, change)


def types(model: ModelProto) -> Iterator[Refusal]:
    """Inputs and outputs are of types that TensorRT has.

    The parser: "Unsupported ONNX data type". Older ones refuse float64 as well, newer ones take it for float32
    (``convertDtype`` of onnx/onnx-tensorrt), so that an engine's inputs are others than the graph says. Weights may be
    float64.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [(f'input "{one.name}"', one) for one in model.graph.input if one.name not in constants]
    for where, value in [*inputs, *((f'output "{one.name}"', one) for one in model.graph.output)]:
        elem_type = value.type.tensor_type.elem_type
        if elem_type in _NO_TYPES:
            name = TensorProto.DataType.Name(elem_type).lower().replace("double", "float64")
            change = "cast it outside of the graph: to float32, or whole numbers to int32"
            known = "refuses or takes for float32" if elem_type == TensorProto.DOUBLE else "does not have"
            yield Refusal("type", where, f'is of type "{name}", which TensorRT {known}', change)


def dynamic_shapes(model: ModelProto) -> Iterator[Refusal]:
    """Inputs have fixed shapes: without an optimisation profile, which nothing here has, no engine is built."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in constants and not all(dim.dim_value > 0 for dim in dims):
            shape = "x".join(dim.dim_param or str(dim.dim_value or "?") for dim in dims)
            wrong = f'has the open shape "{shape}"'
            yield Refusal(
                "dynamic", f'input "{value.name}"', wrong, "fix it: splitboard export MODEL --input 1x3x224x224"
            )


def operators(model: ModelProto, parsers: Mapping[str, Parser]) -> Iterator[Refusal]:
    """ONNX's own operators are read by the parsers; of others nothing is known here, they may be plugins."""
    first: dict[str, NodeProto] = {}
    for node in _all_nodes(model.graph):
        if _is_onnxs(node) and onnx.defs.has(node.op_type):
            first.setdefault(node.op_type, node)
    for op_type, node in first.items():
        lacking = [one for one, parser in parsers.items() if op_type not in parser.operators]
        if lacking:
            wrong = f"is not read by the parser of TensorRT {_listed(lacking)}"
            change = f"a split in front of it, or other operators in its place{_or_newer(lacking, parsers)}"
            yield Refusal("operator", _named(node), wrong, change)


def opset(model: ModelProto, parsers: Mapping[str, Parser], kind: BoardKind) -> Iterator[Refusal]:
    """The opset is one that the parsers are documented for; a newer one is read by the rules of an older."""
    found = opset_of(model)
    older = {one: parser.opset for one, parser in parsers.items() if parser.opset < found}
    if older:
        limits = ", ".join(f"TensorRT {one} reads up to {newest}" for one, newest in older.items())
        wanted = min(older.values())
        change = (
            f"write it in opset {wanted}: splitboard build --board {kind.name} does (server halves: "
            f"--server-opset {wanted}), for others onnx.version_converter{_or_newer(older, parsers)}"
        )
        yield Refusal("opset", "the graph", f'is of opset "{found}"; {limits}', change)


def no_int8(model: ModelProto, kind: BoardKind) -> Iterator[Refusal]:
    """INT8 goes to boards that have it. The builder: "require hardware with Int8 support"."""
    if "int8" in kind.refused:
        for node in [*_of_type(model, "QuantizeLinear", "DequantizeLinear")][:1]:
            wrong = f"is INT8, and {kind.name} refuses it: {kind.refused['int8']}"
            yield Refusal(
                "no-int8", _named(node), wrong, f"splitboard build MODEL --board {kind.name} --precision fp16"
            )


# What the rules look at.


def _of_type(model: ModelProto, *op_types: str) -> Iterator[NodeProto]:
    return (node for node in model.graph.node if node.op_type in op_types)


def _is_onnxs(node: NodeProto) -> bool:
    return node.domain in _ONNX


def _named(node: NodeProto) -> str:
    return f'{node.op_type} that makes "{node.output[0]}"'


def _listed(names: Sequence[str]) -> str:
    return " and ".join(", ".join(names).rsplit(", ", 1))


def _none_taken_by(releases: Sequence[str]) -> str:
    return f"TensorRT {_listed(releases)} {'takes' if len(releases) == 1 else 'take'} none"


def _or_newer(refused_by: Collection[str], parsers: Mapping[str, Parser]) -> str:
    return "; or name the newer TensorRT alone (--tensorrt)" if len(refused_by) < len(parsers) else ""


def _constants(graph: GraphProto) -> Mapping[str, TensorProto]:
    """Initializers, and what operators ``Constant`` hold."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                found[node.output[0]] = attribute.t
    return found


def _values(tensor: TensorProto) -> NDArray[Any]:
    return numpy_helper.to_array(tensor)


def _size(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))


def _zero_points(model: ModelProto) -> Iterator[tuple[NodeProto, TensorProto]]:
    constants = _constants(model.graph)
    for node in _of_type(model, "QuantizeLinear", "DequantizeLinear"):
        if len(node.input) > 2 and node.input[2] in constants:
            yield node, constants[node.input[2]]


def _wrong_axes(model: ModelProto, quantiser: NodeProto, weights: TensorProto) -> Iterator[Refusal]:
    """Weighted operators that take weights with scales along another axis than that of their outputs."""
    rank = len(weights.dims)
    axis = _attribute(quantiser, "axis", 1) % rank
    for node in model.graph.node:
        if len(node.input) > 1 and node.input[1] == quantiser.output[0]:
            expected = _channels(node, rank)
            if expected and axis not in expected:
                wrong = f'has the scales of its weights along axis "{axis}", and its outputs are along {expected[-1]}'
                change = "one scale per output channel: axis 0 of Conv, of Gemm and MatMul the one that becomes columns"
                yield Refusal("axis", _named(node), wrong, change)


def _channels(node: NodeProto, rank: int) -> tuple[int, ...]:
    """Axes of an operator's weights that scales may lie along; none where it is no weighted operator."""
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB", 0)):
        return (rank - 1,)
    return (0,) if node.op_type == "Gemm" else _CHANNELS.get(node.op_type, ())


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(helper.get_attribute_value(one)) for one in node.attribute if one.name == name), default)


def _all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Those of inner graphs as well."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _all_nodes(attribute.g)
