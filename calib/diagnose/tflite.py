"""Switches layers of a TFLite edge half.

A layer in INT8 has a corrected bias, which makes up for its rounded weights; in float it has the model's. So the graph
is converted with both, and each layer's constants are taken from the one or from the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from ai_edge_litert.schema_py_generated import BufferT, ModelT, OperatorT, SubGraphT, TensorType
from ai_edge_litert.tools import flatbuffer_utils

from calib.artefact import read_model
from calib.diagnose.rebuild import Rebuilt, require_same
from calib.diagnose.variants import Real, Runner, layers_of
from calib.interpret import TfliteRun, TfliteTensors
from calib.quantise import int8, only
from calib.recipe import Prepared
from calib.tflite_edge import FloatEdge, float_edge, written_out
from export.graph import Graph
from export.tflite import IMAGE_RANK, FloatTflite, onnx_name
from splitboard.contract.errors import SplitboardError

_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
_N_MATCHED = 3
"""Golden images on which the tensors of the file are matched with those of the model."""


class TfliteVariants:
    """The edge half of one split; see `calib.diagnose.variants.Variants`.

    Args:
        folder: the bundle.
        edge: path of its edge file in it.
        signature: of the split.
        rebuilt: what it was made from.

    Raises:
        UserError: what is rebuilt is not what the bundle has.
    """

    def __init__(self, folder: Path, edge: str, signature: str, rebuilt: Rebuilt) -> None:
        content = (folder / edge).read_bytes()
        self._rebuilt, self._signature = rebuilt, signature
        self._exact = self._converted(rebuilt.balanced)
        self._corrected = self._converted(rebuilt.corrected()) if rebuilt.biases else self._exact
        (self._table,) = self._corrected.tables.values()
        self._artefact = TfliteTensors(content, signature)
        graph, present = rebuilt.balanced, set(self._artefact.names)
        self.layers = tuple(one for one in layers_of(graph, rebuilt.outputs, rebuilt.crossing) if one in present)
        self.switchable = frozenset(self.layers) - frozenset(rebuilt.keep_float)
        scales = _scales(content, signature)
        self._input = scales[graph.inputs[0]]
        self.steps: Mapping[str, tuple[float, int]] = {name: scales[name] for name in self.layers if name in scales}
        self.deviation = self._proved(folder, content)

    def tensors(self, image: Real) -> dict[str, Real]:
        """See `calib.diagnose.variants.Variants.tensors`."""
        found = self._artefact(image)
        flat = {name: _model_layout(found[name]).ravel() for name in self.layers}
        return {self._rebuilt.graph.inputs[0]: rounded(image.ravel(), *self._input), **flat}

    def left_float(self, layers: Collection[str]) -> Runner:
        """See `calib.diagnose.variants.Variants.left_float`."""
        graph = self._corrected.graph
        floating = _with_constants(self._corrected.floating, self._exact.floating, written_out(graph, layers))
        kept = written_out(graph, {*self._rebuilt.keep_float, *layers})
        return self._runner(int8(floating, self._table, kept))

    def int8(self, layer: str) -> Runner:
        """See `calib.diagnose.variants.Variants.int8`."""
        parts = written_out(self._corrected.graph, {layer})
        floating = _with_constants(self._exact.floating, self._corrected.floating, parts)
        return self._runner(only(floating, self._table, parts))

    def _converted(self, graph: Graph) -> FloatEdge:
        rebuilt = self._rebuilt
        prepared = Prepared(graph, {rebuilt.table.method: rebuilt.table}, 0, rebuilt.biases)
        samples = [rebuilt.images[i : i + 1] for i in range(min(_N_MATCHED, len(rebuilt.images)))]
        return float_edge(prepared, {self._signature: rebuilt.outputs}, samples)

    def _runner(self, content: bytes) -> Runner:
        run = TfliteRun(content, self._signature)
        return lambda image: {name: _model_layout(value) for name, value in run(image).items()}

    def _proved(self, folder: Path, content: bytes) -> float:
        whole, images = self._runner(content), self._rebuilt.images
        mine, exact = self.left_float(()), self._runner(self._exact.floating.content)
        found = [
            [np.concatenate([run(image[None])[name] for image in images]) for name in self._rebuilt.outputs]
            for run in (whole, mine, exact)
        ]
        return require_same(folder, found[0], found[1], found[2])


def rounded(values: Real, scale: float, zero_point: int) -> Real:
    """Real numbers after INT8 with this scale and zero point."""
    stored = np.clip(np.rint(values.astype(np.float64) / scale) + zero_point, -128, 127)
    return np.asarray((stored - zero_point) * scale, np.float32)


def _model_layout(value: Real) -> Real:
    return value.transpose(0, 3, 1, 2) if value.ndim == IMAGE_RANK else value


def _scales(content: bytes, signature: str) -> dict[str, tuple[float, int]]:
    """Scale and zero point of the INT8 tensors of a signature, by ONNX name, the input's included."""
    model = read_model(content)
    (definition,) = [one for one in model.signatureDefs if one.signatureKey.decode() == signature]
    subgraph = model.subgraphs[definition.subgraphIndex]
    found: dict[str, tuple[float, int]] = {}
    for index in (*subgraph.inputs, *(index for one in subgraph.operators for index in one.outputs)):
        tensor = subgraph.tensors[index]
        if tensor.type == TensorType.INT8:
            scale, zero_point = float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])
            found.setdefault(onnx_name(tensor.name.decode()), (scale, zero_point))
    return found


def _with_constants(floating: FloatTflite, donor: FloatTflite, names: Collection[str]) -> FloatTflite:
    """The file with the weights and biases that another has in the operators that make some tensors."""
    if floating is donor or not names:
        return floating
    model, other = read_model(floating.content), read_model(donor.content)
    target, source = (one.subgraphs[one.signatureDefs[0].subgraphIndex] for one in (model, other))
    given = _weighted(other, source, names)
    for name, operator in _weighted(model, target, names).items():
        if name not in given:
            raise SplitboardError(f'the operator that makes "{name}" was converted in another way')
        for position, index in enumerate(given[name].inputs):
            constant = index >= 0 and other.buffers[source.tensors[index].buffer].data is not None
            if constant and operator.inputs[position] >= 0:
                tensor = source.tensors[index]
                model.buffers.append(BufferT(data=other.buffers[tensor.buffer].data))
                tensor.buffer = len(model.buffers) - 1
                tensor.name += b"/other"  # the quantizer tells tensors apart by their names
                target.tensors.append(tensor)
                operator.inputs[position] = len(target.tensors) - 1
    return replace(floating, content=bytes(flatbuffer_utils.convert_object_to_bytearray(model)))


def _weighted(model: ModelT, subgraph: SubGraphT, names: Collection[str]) -> dict[str, OperatorT]:
    """Operators with weights, by the ONNX tensor that they make, where it is one of these."""
    made = {onnx_name(subgraph.tensors[one.outputs[0]].name.decode()): one for one in reversed(subgraph.operators)}
    return {
        name: one
        for name, one in made.items()
        if name in names and flatbuffer_utils.opcode_to_name(model, one.opcodeIndex) in _WEIGHTED
    }
