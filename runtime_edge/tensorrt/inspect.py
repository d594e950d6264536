"""What TensorRT made of a graph, from its engine inspector.

The inspector's JSON, with detailed verbosity, is ``{"Layers": [{"Name", "LayerType", "Inputs": [{"Name",
"Format/Datatype"}], "Outputs", "Origin", "Weights": {"Type"}, "Metadata"}], "Bindings": [...]}``. Formats are sentences
until 10 ("Thirty-two wide channel vectorized row major Int8 format") and names of types in later releases ("Int8").
``Name`` joins what was fused by `` + ``; from 8.6 on ``Metadata`` names the ONNX nodes: ``[ONNX Layer: NAME]``. What
TensorRT's compiler made of several nodes is called ``{ForeignNode[FIRST...LAST]}``.
"""

from __future__ import annotations

import json
import re
from typing import Any, List, Mapping, NamedTuple, Optional, Tuple

from runtime_edge.tensorrt.graph import Graph
from runtime_edge.tensorrt.library import Library
from runtime_edge.tensorrt.runner import Loaded
from splitboard.contract.errors import UserError

INT8, FP16, FP32, UNKNOWN = "INT8", "FP16", "FP32", "unknown"
_WORDS = (
    ("int8", INT8),
    ("bf16", "BF16"),
    ("bfloat16", "BF16"),
    ("fp16", FP16),
    ("half", FP16),
    ("fp32", FP32),
    ("float", FP32),
    ("fp8", "FP8"),
    ("int32", "INT32"),
    ("int64", "INT64"),
    ("bool", "BOOL"),
)
_METADATA = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_REFORMATS = ("Reformat", "NoOp")
_BUILDERS_COPY = re.compile(r"Reformatting CopyNode for (?:Input|Output) Tensor \d+ to (.*)")


class Layer(NamedTuple):
    """One layer of an engine.

    Attributes:
        name: as the profiler calls it too.
        kind: TensorRT's type of layer.
        precision: that it computes in, ``unknown`` where the inspector does not tell.
        inputs: tensors.
        outputs: tensors.
        input_types: precision of each input.
        output_types: of each output.
        nodes: ONNX nodes that it stands for.
        by_qdq: whether it is a QuantizeLinear or DequantizeLinear that was left standing alone.
        serves: of a copy that changes the format alone, the layer that wants it; ``None`` of other layers.
    """

    name: str
    kind: str
    precision: str
    inputs: Tuple[str, ...]
    outputs: Tuple[str, ...]
    input_types: Tuple[str, ...]
    output_types: Tuple[str, ...]
    nodes: Tuple[str, ...]
    by_qdq: bool
    serves: Optional[str]

    @property
    def is_conversion(self) -> bool:
        """Whether it only changes type or format."""
        return self.by_qdq or self.kind in _REFORMATS


def inspect(library: Library, loaded: Loaded, graph: Graph) -> Tuple[Layer, ...]:
    """The layers of an engine.

    Raises:
        UserError: the engine was built without details.
    """
    inspector = loaded.engine.create_engine_inspector()
    return read_layers(inspector.get_engine_information(library.module.LayerInformationFormat.JSON), graph)


def read_layers(text: str, graph: Graph) -> Tuple[Layer, ...]:
    """Layers from the inspector's JSON.

    Args:
        text: it.
        graph: that the engine was built from.

    Raises:
        UserError: it is no such JSON, or has the layers' names alone.
    """
    try:
        found = json.loads(text)["Layers"]
        return tuple(_layer(one, graph) for one in found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'the engine inspector does not tell its layers: "{str(text)[:60]}"', ["build the engine again: trt-build"]
        ) from error


def _layer(one: Mapping[str, Any], graph: Graph) -> Layer:
    inputs, outputs = one.get("Inputs", []), one.get("Outputs", [])
    input_types, output_types = _types(inputs), _types(outputs)
    nodes = _nodes(one, graph)
    copy = _BUILDERS_COPY.match(one["Name"])
    alone = bool(nodes) and all(graph.nodes[name].is_quantisation for name in nodes) and copy is None
    return Layer(
        name=one["Name"],
        kind=one["LayerType"],
        precision=_precision(one, input_types),
        inputs=tuple(tensor["Name"] for tensor in inputs),
        outputs=tuple(tensor["Name"] for tensor in outputs),
        input_types=input_types,
        output_types=output_types,
        nodes=nodes,
        by_qdq=one.get("Origin") == "QDQ" or alone,
        serves=None if copy is None else copy.group(1),
    )


def _nodes(one: Mapping[str, Any], graph: Graph) -> Tuple[str, ...]:
    """The ONNX nodes of a layer: from its metadata where there are any, else the parts of its name that are nodes."""
    named = _METADATA.findall(str(one.get("Metadata", "")))
    if not named:
        plain = re.sub(r"\b(?:PWN|POINTWISE)\(|[(){}\[\],]", " ", one["Name"])
        named = [part for piece in re.split(r" \+ |\|\||\.\.\.", plain) for part in piece.split()]
    return tuple(dict.fromkeys(name for name in named if name in graph.nodes))


def _types(tensors: List[Mapping[str, Any]]) -> Tuple[str, ...]:
    return tuple(precision_of(str(tensor.get("Format/Datatype", tensor.get("Datatype", "")))) for tensor in tensors)


def precision_of(words: str) -> str:
    """The precision that a format's description names."""
    low = words.lower()
    return next((precision for word, precision in _WORDS if word in low), UNKNOWN)


def _precision(one: Mapping[str, Any], input_types: Tuple[str, ...]) -> str:
    """What a layer computes in: INT8 only where its first operand and its weights are, else the wider of the two."""
    weights = one.get("Weights")
    kinds = list(input_types[:1])
    if isinstance(weights, Mapping) and "Type" in weights:
        kinds.append(precision_of(str(weights["Type"])))
    widest = [precision for precision in (UNKNOWN, FP32, "BF16", FP16, INT8) if precision in kinds]
    return widest[0] if widest else (kinds[0] if kinds else UNKNOWN)
