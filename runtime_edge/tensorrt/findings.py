"""What of an engine is not as its graph asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Mapping, Optional, Sequence, Tuple

from runtime_edge.tensorrt.graph import Graph
from runtime_edge.tensorrt.inspect import INT8, Layer


@dataclass(frozen=True)
class LayerReport:
    """One layer of an engine, as it goes into results.

    Attributes:
        name: TensorRT's.
        kind: TensorRT's type of layer.
        precision: that it computes in; of a conversion from and to, e.g. ``FP16>INT8``.
        nodes: ONNX nodes that it stands for.
        time_ns: median of the profiled runs; ``None`` where it was not profiled.
    """

    name: str
    kind: str
    precision: str
    nodes: Tuple[str, ...]
    time_ns: Optional[int]


@dataclass(frozen=True)
class NotInt8:
    """An operator that was to run in INT8 and does not.

    Attributes:
        node: of the graph.
        layer: that it became part of; empty where no layer names it.
        precision: of that layer, ``unknown`` where it cannot be told.
    """

    node: str
    layer: str
    precision: str


@dataclass(frozen=True)
class Conversion:
    """A layer that only converts, for the sake of a QuantizeLinear, a DequantizeLinear or an INT8 layer.

    Attributes:
        layer: its name.
        types: from and to, e.g. ``FP16>INT8``.
        cause: the Q/DQ nodes, or the layer whose format it makes.
        time_ns: median; ``None`` where it was not profiled.
    """

    layer: str
    types: str
    cause: str
    time_ns: Optional[int]


@dataclass(frozen=True)
class Findings:
    """What became of INT8.

    Attributes:
        precisions: by precision, the number of layers that compute in it; conversions apart.
        not_int8: operators that were to run in INT8 and do not.
        conversions: that Q/DQ caused.
    """

    precisions: Dict[str, int]
    not_int8: Tuple[NotInt8, ...]
    conversions: Tuple[Conversion, ...]


Times = Mapping[str, int]
"""Median time of a layer by its name, ns; empty where nothing was profiled."""


def reports(layers: Sequence[Layer], times: Times) -> Tuple[LayerReport, ...]:
    """The layers with their times."""
    return tuple(
        LayerReport(
            one.name, one.kind, types(one) if one.is_conversion else one.precision, one.nodes, times.get(one.name)
        )
        for one in layers
    )


def findings(layers: Sequence[Layer], graph: Graph, times: Times) -> Findings:
    """Compares an engine with what its graph asked for.

    Args:
        layers: of the engine.
        graph: that it was built from.
        times: by layer; may be empty.
    """
    precisions: Dict[str, int] = {}
    for layer in layers:
        if not layer.is_conversion and layer.kind != "Constant":
            precisions[layer.precision] = precisions.get(layer.precision, 0) + 1
    return Findings(precisions, _not_int8(layers, graph), _conversions(layers, times))


def types(layer: Layer) -> str:
    """What a conversion goes from and to."""
    return f"{'+'.join(layer.input_types)}>{'+'.join(layer.output_types)}"


def _not_int8(layers: Sequence[Layer], graph: Graph) -> Tuple[NotInt8, ...]:
    found = []
    for node in graph.int8:
        holders = [layer for layer in layers if node.name in layer.nodes and not layer.is_conversion]
        if not holders:
            found.append(NotInt8(node.name, "", "unknown"))
        elif all(layer.precision != INT8 for layer in holders):
            found.append(NotInt8(node.name, holders[0].name, holders[0].precision))
    return tuple(found)


def _conversions(layers: Sequence[Layer], times: Times) -> Tuple[Conversion, ...]:
    by_name = {layer.name: layer for layer in layers}
    found = []
    for layer in layers:
        if layer.by_qdq:
            cause = ", ".join(layer.nodes) or layer.name
        elif layer.serves is not None and _is_for_int8(layer, by_name):
            cause = layer.serves
        else:
            continue
        found.append(Conversion(layer.name, types(layer), cause, times.get(layer.name)))
    return tuple(found)


def _is_for_int8(copy: Layer, by_name: Mapping[str, Layer]) -> bool:
    """Whether a copy that the builder put in would not be there without INT8: it makes INT8, takes it, or serves it."""
    served = by_name.get(copy.serves or "")
    return INT8 in (*copy.input_types, *copy.output_types) or (served is not None and served.precision == INT8)
