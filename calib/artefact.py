"""What a TFLite file really holds, read from the file: operators, precision, scales, accelerated partitions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.schema_py_generated import ModelT, OperatorT, SubGraphT, TensorType
from ai_edge_litert.tools import flatbuffer_utils

from export.tflite import onnx_name
from splitboard.contract.bundle import TensorSpec

CONVERSIONS = ("DEQUANTIZE", "QUANTIZE")
"""Operators that convert between precisions."""

_FLOATING = (TensorType.FLOAT32, TensorType.FLOAT16)


def read_model(content: bytes) -> ModelT:
    """The file as objects of TFLite's schema."""
    return flatbuffer_utils.read_model_from_bytearray(bytearray(content))


def float_tensors(content: bytes) -> list[tuple[str, str]]:
    """(signature, tensor) of everything in the file that is still floating point."""
    model = read_model(content)
    return [
        (definition.signatureKey.decode(), tensor.name.decode())
        for definition in model.signatureDefs
        for tensor in model.subgraphs[definition.subgraphIndex].tensors
        if tensor.type in _FLOATING
    ]


def constant_bytes(content: bytes) -> int:
    """Bytes of all constants, each stored once; the rest of the file is what the signatures cost."""
    return sum(len(buffer.data) for buffer in read_model(content).buffers if buffer.data is not None)


def unexpected_float(content: bytes, keep_float: Collection[str]) -> list[tuple[str, str]]:
    """(signature, operator's tensor) of every operator with a float operand that was not to be kept in float.

    The operators that convert at the borders of what was kept have one by their nature.
    """
    model = read_model(content)
    found = []
    for definition in model.signatureDefs:
        subgraph = model.subgraphs[definition.subgraphIndex]
        for operator in subgraph.operators:
            name = subgraph.tensors[operator.outputs[0]].name.decode()
            kind = str(flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex))
            if _computes_in_float(subgraph, operator, kind) and onnx_name(name) not in keep_float:
                found.append((definition.signatureKey.decode(), name))
        ends = [subgraph.tensors[index] for index in (*subgraph.inputs, *subgraph.outputs)]
        found += [(definition.signatureKey.decode(), end.name.decode()) for end in ends if end.type in _FLOATING]
    return found


def overflowed_biases(content: bytes) -> list[str]:
    """Names of the int32 constants that hold a value at the end of their range."""
    model = read_model(content)
    found = []
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            data = model.buffers[tensor.buffer].data
            if tensor.type == TensorType.INT32 and data is not None and len(data):
                values = np.frombuffer(np.asarray(data, np.uint8).tobytes(), np.int32).astype(np.int64)
                if np.abs(values).max() >= 2**31 - 1:
                    found.append(tensor.name.decode())
    return found


def count_operators(content: bytes) -> dict[str, dict[str, int]]:
    """Number of each operator by signature, read from the file; one that computes in float says so in its name."""
    model = read_model(content)
    counts: dict[str, dict[str, int]] = {}
    for definition in model.signatureDefs:
        subgraph = model.subgraphs[definition.subgraphIndex]
        names = []
        for operator in subgraph.operators:
            kind = str(flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex))
            names.append(f"{kind} float" if _computes_in_float(subgraph, operator, kind) else kind)
        counts[definition.signatureKey.decode()] = dict(sorted(Counter(names).items()))
    return counts


def count_shuffles(content: bytes) -> dict[str, int]:
    """Number of channel shuffles by signature: each a ``TRANSPOSE`` between two ``RESHAPE`` that is the model's own."""
    model = read_model(content)
    counts: dict[str, int] = {}
    for definition in model.signatureDefs:
        operators = model.subgraphs[definition.subgraphIndex].operators
        kinds = [str(flatbuffer_utils.opcode_to_name(model, one.opcodeIndex)) for one in operators]
        reshaped = {one.outputs[0] for one, kind in zip(operators, kinds, strict=True) if kind == "RESHAPE"}
        shaped_back = {one.inputs[0] for one, kind in zip(operators, kinds, strict=True) if kind == "RESHAPE"}
        counts[definition.signatureKey.decode()] = sum(
            kind == "TRANSPOSE" and one.inputs[0] in reshaped and one.outputs[0] in shaped_back
            for one, kind in zip(operators, kinds, strict=True)
        )
    return counts


def _computes_in_float(subgraph: SubGraphT, operator: OperatorT, kind: str) -> bool:
    """Whether an operator has a float operand. Those that convert have one by their nature."""
    operands = [subgraph.tensors[index] for index in (*operator.inputs, *operator.outputs) if index >= 0]
    return kind not in CONVERSIONS and any(tensor.type in _FLOATING for tensor in operands)


def io_specs(content: bytes, signature: str, image: str) -> tuple[TensorSpec, Mapping[str, TensorSpec]]:
    """Specs of a signature's input and, by name, of its outputs, as the interpreter sees them."""
    interpreter = Interpreter(model_content=content)
    runner = interpreter.get_signature_runner(signature)
    return (
        _spec(image, runner.get_input_details()[image]),
        {name: _spec(name, details) for name, details in runner.get_output_details().items()},
    )


def _spec(name: str, details: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(int(size) for size in details["shape"])
    dtype = np.dtype(details["dtype"]).name
    layout = "NHWC" if len(shape) == 4 else "NC"
    if dtype.startswith("float"):
        return TensorSpec(name, shape, dtype, layout)
    scale, zero_point = details["quantization"]
    return TensorSpec(name, shape, dtype, layout, float(scale), int(zero_point))


def accelerated_partitions(content: bytes) -> dict[str, int | None]:
    """Number of parts that the interpreter's accelerator (XNNPACK) takes over, by signature.

    One part means that the whole graph runs accelerated; every further one costs a hand-over and the operators between
    run unaccelerated. Read from the interpreter's plan, which holds one ``DELEGATE`` node per part. The plan that
    Python can see is the first subgraph's, so each signature is looked at in a file of its own.

    Returns:
        By signature; ``None`` where parts of the graph lie outside of all partitions.
    """
    signatures = [definition.signatureKey.decode() for definition in read_model(content).signatureDefs]
    found: dict[str, int | None] = {}
    for signature in signatures:
        interpreter = Interpreter(model_content=_alone(content, signature))
        interpreter.allocate_tensors()
        parts = [node for node in interpreter._get_ops_details() if node["op_name"] == "DELEGATE"]
        made = {int(index) for part in parts for index in part["outputs"]}
        taken = {int(index) for part in parts for index in part["inputs"]}
        inputs = {detail["index"] for detail in interpreter.get_input_details()}
        outputs = {detail["index"] for detail in interpreter.get_output_details()}
        found[signature] = len(parts) if inputs <= taken and outputs <= made else None
    return found


def _alone(content: bytes, signature: str) -> bytes:
    """The file with one signature only."""
    model = read_model(content)
    kept = next(definition for definition in model.signatureDefs if definition.signatureKey.decode() == signature)
    model.subgraphs = [model.subgraphs[kept.subgraphIndex]]
    kept.subgraphIndex = 0
    model.signatureDefs = [kept]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
