"""The float TFLite file of all edge graphs: one signature per split, one copy of every weight, ONNX's tensor names.

Tensor names do not survive the converter. So every tensor of the converted file is matched by value, on a few real
samples, with a tensor of the ONNX graph, and gets its name back, as ``<signature>/<name>`` since a file's names must
differ. From then on a range table by ONNX name fits the file. Names that would have fitted as well are told, so that
whoever quantises can refuse where the choice matters.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_litert.schema_py_generated import ModelT, SignatureDefT, SubGraphT, TensorType
from ai_edge_litert.tools import flatbuffer_utils
from numpy.typing import NDArray

from export.graph import Graph
from export.reference import reference_session
from export.replay import Replay, shared_constants
from export.shuffles import shuffles
from export.signatures import cut_out, signature
from splitboard.contract.errors import SplitboardError

MATCH_LIMIT = 1e-3
"""Largest max |tflite - onnx| / max |onnx| of one tensor that still counts as the same tensor.

Batch norms that were folded over nearly dead channels amplify float32's rounding to about 1e-4. Where two ONNX tensors
are both this near, their ranges agree as closely, so either name serves."""

IMAGE_RANK = 4

_JOINED = "all signatures"
"""Signature of the one conversion that most others are cut out of."""

_REPEAT = "'"
"""Marks a second tensor with the values of the first, such as a flattened or a zero-padded copy."""

_MOVES = frozenset({"PAD", "RESHAPE", "TRANSPOSE"})
"""Operators that make no new values: their output has their input's range (TFLite's INT8 specification demands it)."""


def onnx_name(tflite_name: str) -> str:
    """The ONNX tensor that a tensor of the file was matched with."""
    return tflite_name.partition("/")[2].rstrip(_REPEAT)


@dataclass(frozen=True)
class FloatTflite:
    """The converted file.

    Attributes:
        content: the file.
        twins: by ONNX tensor that a tensor of the file was matched with, others of its size that have its values too.
    """

    content: bytes
    twins: Mapping[str, tuple[str, ...]]


def convert(
    graph: Graph,
    signatures: Mapping[str, Sequence[str]],
    samples: Sequence[NDArray[np.float32]],
    names: Collection[str],
) -> FloatTflite:
    """Converts the edge graphs of all splits at once.

    Args:
        graph: the whole model.
        signatures: tensors to return by signature name; the signature's outputs get the tensors' names.
        samples: a few normalised real images, each ``[1, c, h, w]``; tensors are matched on them.
        names: the tensors of the graph that the file may hold.

    Returns:
        A float TFLite file. Inputs and image-like outputs are NHWC.

    Raises:
        UserError: an operator has no TFLite form.
        SplitboardError: a tensor of the file has no partner in the graph.
    """
    conversions = _conversions(graph, signatures)
    content = _converted(graph, conversions, samples[0])
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    values = _all_values(graph, samples, names)
    twins: dict[str, tuple[str, ...]] = {}
    sources: dict[str, tuple[SubGraphT, dict[str, int]]] = {}
    for index, definition in enumerate(model.signatureDefs):
        key, subgraph = definition.signatureKey.decode(), model.subgraphs[definition.subgraphIndex]
        found = _match(content, index, subgraph, model, values, samples, graph)
        twins |= {match.name: match.twins for match in found.values()}
        _rename(subgraph, {position: match.name for position, match in found.items()})
        sources[key] = subgraph, dict(zip(conversions[key], _by_number(definition), strict=True))
    subgraphs = []
    for key, outputs in signatures.items():
        source, places = sources.get(key) or sources[_JOINED]
        subgraphs.append(cut_out(source, [places[name] for name in outputs], key))
    model.signatureDefs = [
        signature(key, subgraph, number, graph.inputs, outputs)
        for number, (subgraph, (key, outputs)) in enumerate(zip(subgraphs, signatures.items(), strict=True))
    ]
    model.subgraphs = subgraphs
    return FloatTflite(bytes(flatbuffer_utils.convert_object_to_bytearray(model)), twins)


def _conversions(graph: Graph, signatures: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """What to convert: tensors to return by name.

    Signatures whose outputs exist in the whole model are cut out of one conversion. A tensor inside of a fused operator
    is there only if it is an output, which would take the fusion from all others; such a signature is converted alone.
    """
    apart = {key: names for key, names in signatures.items() if any(graph.is_fused(name) for name in names)}
    joined = [name for key, names in signatures.items() if key not in apart for name in names]
    return {**({_JOINED: list(dict.fromkeys(joined))} if joined else {}), **apart}


def _rename(subgraph: SubGraphT, names: Mapping[int, str]) -> None:
    """Gives tensors their ONNX names, each once."""
    seen: dict[str, int] = {}
    for position, name in names.items():
        repeats = seen.setdefault(name, 0)
        subgraph.tensors[position].name = f"{name}{_REPEAT * repeats}".encode()
        seen[name] += 1


def _by_number(definition: SignatureDefT) -> list[int]:
    """Tensor indices of a signature's outputs. The converter numbers them in the order of the module's results."""
    by_number = sorted(definition.outputs, key=lambda output: int(output.name.decode().rsplit("_", 1)[1]))
    return [output.tensorIndex for output in by_number]


def _converted(graph: Graph, signatures: Mapping[str, Sequence[str]], sample: NDArray[np.float32]) -> bytes:
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    constants = shared_constants(graph)
    nhwc = (torch.from_numpy(np.ascontiguousarray(sample.transpose(0, 2, 3, 1))),)
    with warnings.catch_warnings():
        # The converter's packages warn about each other's internals, at import and while tracing.
        warnings.simplefilter("ignore")
        import litert_torch

        chain = litert_torch
        for key, outputs in signatures.items():
            images = [i for i, name in enumerate(outputs) if len(graph.shapes[name]) == IMAGE_RANK]
            module = Replay(graph, outputs, constants).eval()
            module = litert_torch.to_channel_last_io(module, args=[0], outputs=images).eval()
            chain = chain.signature(key, module, nhwc)
        content: bytes = chain.convert().model_content()
    return content


def _all_values(
    graph: Graph, samples: Sequence[NDArray[np.float32]], names: Collection[str]
) -> dict[str, NDArray[np.float32]]:
    """These tensors of the graph for all samples, ``[samples, ...]``, in the edge's layout."""
    made = [name for name in names if name in graph.producer]
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in made)
    session = reference_session(model)
    results = [session.run(made, {graph.inputs[0]: sample}) for sample in samples]
    return {name: np.stack([_edge_layout(one[i]) for one in results]) for i, name in enumerate(made)}


def _edge_layout(value: NDArray[np.float32]) -> NDArray[np.float32]:
    return value.transpose(0, 2, 3, 1) if value.ndim == IMAGE_RANK else value


@dataclass(frozen=True)
class _Match:
    """A tensor's name, and others that would have fitted."""

    name: str
    twins: tuple[str, ...]


def _match(
    content: bytes,
    subgraph_index: int,
    subgraph: SubGraphT,
    model: ModelT,
    values: Mapping[str, NDArray[np.float32]],
    samples: Sequence[NDArray[np.float32]],
    graph: Graph,
) -> dict[int, _Match]:
    """The ONNX tensor of every activation of one signature's subgraph, by tensor index."""
    seen = _tflite_values(content, subgraph_index, subgraph, model, samples)
    found = {subgraph.inputs[0]: _Match(graph.inputs[0], ())}
    dealt: dict[str, list[str]] = {}
    for one in shuffles(graph):
        dealt.setdefault(one.source, []).append(one.result)
    for operator in subgraph.operators:
        kind = flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)
        if kind in _MOVES and operator.inputs[0] in found:
            name, index = found[operator.inputs[0]].name, operator.outputs[0]
            if kind == "TRANSPOSE" and name in dealt and index in seen:
                # A channel shuffle, or the channels brought to the front for one: the same values in another order.
                shuffled = {one: values[one] for one in [name, *dealt[name]]}
                name = _nearest(seen[index], shuffled, subgraph.tensors[index].name.decode()).name
            found[index] = _Match(name, ())
        for index in operator.outputs:
            if index in seen and index not in found:
                found[index] = _nearest(seen[index], values, subgraph.tensors[index].name.decode())
    return found


def _tflite_values(
    content: bytes,
    subgraph_index: int,
    subgraph: SubGraphT,
    model: ModelT,
    samples: Sequence[NDArray[np.float32]],
) -> dict[int, NDArray[np.float32]]:
    """Every float activation of one signature's subgraph for all samples, ``[samples, ...]``, by tensor index."""
    interpreter = Interpreter(
        model_content=content,
        # A delegate would hide the tensors inside.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    signature = list(interpreter.get_signature_list())[subgraph_index]
    runner = interpreter.get_signature_runner(signature)
    (argument,) = interpreter.get_signature_list()[signature]["inputs"]
    wanted = [
        index
        for operator in subgraph.operators
        for index in operator.outputs
        if subgraph.tensors[index].type == TensorType.FLOAT32
    ]
    collected: dict[int, list[NDArray[np.float32]]] = {index: [] for index in wanted}
    for sample in samples:
        runner(**{argument: np.ascontiguousarray(_edge_layout(sample))})
        for index, values in collected.items():
            values.append(interpreter.get_tensor(index, model.signatureDefs[subgraph_index].subgraphIndex))
    return {index: np.stack(values) for index, values in collected.items()}


def _nearest(value: NDArray[np.float32], values: Mapping[str, NDArray[np.float32]], found_as: str) -> _Match:
    """The ONNX tensor with these values; shapes may differ by reshaping, and the channels may come first.

    The converter leaves them there for an addition between two shuffles, which are both in the middle of it.
    """
    errors = _errors(value, values)
    if min(errors.values(), default=np.inf) > MATCH_LIMIT:
        images = {name: one for name, one in values.items() if one.ndim == 1 + IMAGE_RANK and one.size == value.size}
        errors |= _errors(value, {name: np.moveaxis(one, -1, 2) for name, one in images.items()})
    best = min(errors, key=lambda name: errors[name], default="")
    if not errors.get(best, np.inf) <= MATCH_LIMIT:
        raise SplitboardError(
            f'tensor "{found_as}" {list(value.shape[1:])} of the TFLite file matches no tensor of model.onnx '
            f'(nearest: "{best}", off by {errors.get(best, np.inf):.1e})'
        )
    return _Match(best, tuple(name for name, error in errors.items() if name != best and error <= MATCH_LIMIT))


def _errors(value: NDArray[np.float32], values: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """Largest difference from each tensor of this size, relative to its largest value."""
    flat, found = value.reshape(-1), {}
    for name, candidate in values.items():
        if candidate.size == flat.size:
            scale = float(np.abs(candidate).max())
            found[name] = float(np.abs(candidate.reshape(-1) - flat).max()) / (scale or 1.0)
    return found
