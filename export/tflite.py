"""The float TFLite file of all edge graphs: one signature per split, one copy of every weight, ONNX's tensor names.

Tensor names do not survive the converter. So every tensor of the converted file is matched by value, on one real
sample, with a tensor of the ONNX graph, and gets its name back, as ``<signature>/<name>`` since a file's names must
differ. From then on a range table by ONNX name fits the file.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_litert.schema_py_generated import ModelT, SubGraphT, TensorType
from ai_edge_litert.tools import flatbuffer_utils
from numpy.typing import NDArray

from export.graph import Graph
from export.reference import reference_session
from export.replay import Replay, shared_constants
from splitboard.contract.errors import SplitboardError

MATCH_LIMIT = 1e-3
"""Largest max |tflite - onnx| / max |onnx| of one tensor that still counts as the same tensor.

Batch norms that were folded over nearly dead channels amplify float32's rounding to about 1e-4. Where two ONNX tensors
are both this near, their ranges agree as closely, so either name serves."""

IMAGE_RANK = 4

_REPEAT = "'"
"""Marks a second tensor with the values of the first, such as a flattened or a zero-padded copy."""

_MOVES = frozenset({"PAD", "RESHAPE", "TRANSPOSE"})
"""Operators that make no new values: their output has their input's range (TFLite's INT8 specification demands it)."""


def onnx_name(tflite_name: str) -> str:
    """The ONNX tensor that a tensor of the file was matched with."""
    return tflite_name.partition("/")[2].rstrip(_REPEAT)


def convert(graph: Graph, signatures: Mapping[str, Sequence[str]], sample: NDArray[np.float32]) -> bytes:
    """Converts the edge graphs of all splits at once.

    Args:
        graph: the whole model.
        signatures: tensors to return by signature name; the signature's outputs get the tensors' names.
        sample: one normalised real image, ``[1, c, h, w]``; tensors are matched on it.

    Returns:
        A float TFLite file. Inputs and image-like outputs are NHWC.

    Raises:
        UserError: an operator has no TFLite form.
        SplitboardError: a tensor of the file has no partner in the graph.
    """
    converted = _convert(graph, signatures, sample)
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(converted))
    values = _all_values(graph, sample)
    image = graph.inputs[0]
    for index, definition in enumerate(model.signatureDefs):
        signature = definition.signatureKey.decode()
        subgraph = model.subgraphs[definition.subgraphIndex]
        names = _match(converted, index, subgraph, model, values, sample, image)
        for position, name in names.items():
            repeats = sum(other == name for earlier, other in names.items() if earlier < position)
            subgraph.tensors[position].name = f"{signature}/{name}{_REPEAT * repeats}".encode()
        definition.inputs[0].name = image.encode()
        # The converter calls outputs output_0, output_1, ... in the order of the module's results.
        by_number = sorted(definition.outputs, key=lambda output: int(output.name.decode().rsplit("_", 1)[1]))
        for output, name in zip(by_number, signatures[signature], strict=True):
            output.name = name.encode()
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _convert(graph: Graph, signatures: Mapping[str, Sequence[str]], sample: NDArray[np.float32]) -> bytes:
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    constants = shared_constants(graph)
    nhwc = (torch.from_numpy(np.ascontiguousarray(sample.transpose(0, 2, 3, 1))),)
    with warnings.catch_warnings():
        # The converter's packages warn about each other's internals, at import and while tracing.
        warnings.simplefilter("ignore")
        import litert_torch

        chain = litert_torch
        for signature, outputs in signatures.items():
            images = [i for i, name in enumerate(outputs) if len(graph.shapes[name]) == IMAGE_RANK]
            module = Replay(graph, outputs, constants).eval()
            module = litert_torch.to_channel_last_io(module, args=[0], outputs=images).eval()
            chain = chain.signature(signature, module, nhwc)
        content: bytes = chain.convert().model_content()
    return content


def _all_values(graph: Graph, sample: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Every float tensor of the graph for one sample, in the edge's layout."""
    names = [name for node in graph.nodes for name in node.output if name]
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    results = reference_session(model).run(names, {graph.inputs[0]: sample})
    return {name: _edge_layout(value) for name, value in zip(names, results, strict=True)}


def _edge_layout(value: NDArray[np.float32]) -> NDArray[np.float32]:
    return value.transpose(0, 2, 3, 1) if value.ndim == IMAGE_RANK else value


def _match(
    content: bytes,
    subgraph_index: int,
    subgraph: SubGraphT,
    model: ModelT,
    values: Mapping[str, NDArray[np.float32]],
    sample: NDArray[np.float32],
    image: str,
) -> dict[int, str]:
    """ONNX name of every activation of one signature's subgraph, by tensor index."""
    interpreter = Interpreter(
        model_content=content,
        # A delegate would hide the tensors inside.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    signature = list(interpreter.get_signature_list())[subgraph_index]
    runner = interpreter.get_signature_runner(signature)
    (argument,) = interpreter.get_signature_list()[signature]["inputs"]
    runner(**{argument: np.ascontiguousarray(_edge_layout(sample))})
    names: dict[int, str] = {subgraph.inputs[0]: image}
    for operator in subgraph.operators:
        if flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex) in _MOVES:
            names[operator.outputs[0]] = names[operator.inputs[0]]
        for index in operator.outputs:
            if subgraph.tensors[index].type == TensorType.FLOAT32 and index not in names:
                value = interpreter.get_tensor(index, model.signatureDefs[subgraph_index].subgraphIndex)
                names[index] = _nearest(value, values, subgraph.tensors[index].name.decode())
    return names


def _nearest(value: NDArray[np.float32], values: Mapping[str, NDArray[np.float32]], found_as: str) -> str:
    """Name of the ONNX tensor with these values; shapes may differ by reshaping.

    Two ONNX tensors with the same values (a flattened copy, say) have the same range, so either name will do.
    """
    flat = value.reshape(-1)
    best, best_error = "", np.inf
    for name, candidate in values.items():
        if candidate.size != flat.size:
            continue
        scale = float(np.abs(candidate).max())
        error = float(np.abs(candidate.reshape(-1) - flat).max()) / (scale or 1.0)
        if error < best_error:
            best, best_error = name, error
    if not best_error <= MATCH_LIMIT:
        raise SplitboardError(
            f'tensor "{found_as}" {list(value.shape)} of the TFLite file matches no tensor of model.onnx '
            f'(nearest: "{best}", off by {best_error:.1e})'
        )
    return best
