"""What a TFLite file really holds, read from the file: operators, precision, scales, accelerated partitions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.schema_py_generated import ModelT, TensorType
from ai_edge_litert.tools import flatbuffer_utils

from splitboard.contract.bundle import TensorSpec


def read_model(content: bytes) -> ModelT:
    """The file as objects of TFLite's schema."""
    return flatbuffer_utils.read_model_from_bytearray(bytearray(content))


def float_tensors(content: bytes) -> list[tuple[str, str]]:
    """(signature, tensor) of everything in the file that is still floating point."""
    model = read_model(content)
    floating = (TensorType.FLOAT32, TensorType.FLOAT16)
    return [
        (definition.signatureKey.decode(), tensor.name.decode())
        for definition in model.signatureDefs
        for tensor in model.subgraphs[definition.subgraphIndex].tensors
        if tensor.type in floating
    ]


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
    """Number of each operator by signature, read from the file."""
    model = read_model(content)
    counts: dict[str, dict[str, int]] = {}
    for definition in model.signatureDefs:
        operators = model.subgraphs[definition.subgraphIndex].operators
        names = [flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex) for operator in operators]
        counts[definition.signatureKey.decode()] = dict(sorted(Counter(str(name) for name in names).items()))
    return counts


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
    scale, zero_point = details["quantization"]
    dtype = np.dtype(details["dtype"]).name
    return TensorSpec(name, shape, dtype, "NHWC" if len(shape) == 4 else "NC", float(scale), int(zero_point))


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
