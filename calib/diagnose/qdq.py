"""Switches layers of an edge half in explicit Q/DQ.

What a layer takes is rounded in front of it, and its result is a real number: so its tensor, before anybody else's
rounding, shows what the layer itself loses, and leaving the layer in float takes exactly that away.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from calib.diagnose.rebuild import Rebuilt, require_same
from calib.diagnose.variants import Real, Runner, layers_of
from calib.keep_float import operators_of
from calib.qdq.emit import emit
from calib.qdq.half import FP16
from calib.qdq.plan import Plan, plan
from export.graph import Graph
from export.reference import reference_session


class QdqVariants:
    """The edge half of one split; see `calib.diagnose.variants.Variants`.

    Args:
        folder: the bundle.
        edge: path of the split's edge file in it.
        rebuilt: what it was made from.

    Raises:
        UserError: what is rebuilt is not what the bundle has.
    """

    def __init__(self, folder: Path, edge: str, rebuilt: Rebuilt) -> None:
        self._rebuilt = rebuilt
        self._image = rebuilt.graph.inputs[0]
        model = onnx.load(folder / edge)
        graph = rebuilt.balanced
        planned = self._plan(rebuilt.corrected(), rebuilt.keep_float)
        self._quantised = frozenset({*planned.weights, *(one.consumer for one in planned.edges)})
        made = {name for node in model.graph.node for name in node.output}
        every = layers_of(graph, rebuilt.outputs, rebuilt.crossing)
        # A wire has its own name after the rounding for the server, and another before; so has what is in fp16.
        forms = {name: (f"{name}{FP16}", f"{name}/real", name) for name in every}
        shown = {name: next((one for one in forms[name] if one in made), name) for name in every}
        self.layers = tuple(name for name in every if shown[name] in made)
        self.switchable = frozenset(name for name in self.layers if self._operators({name}) & self._quantised)
        self.steps: Mapping[str, tuple[float, int]] = {}
        self._shown = [shown[name] for name in self.layers]
        self._artefact = reference_session(_with_outputs(model, self._shown))
        self.deviation = self._proved(folder, model, planned)

    def tensors(self, image: Real) -> dict[str, Real]:
        """See `calib.diagnose.variants.Variants.tensors`."""
        values = self._artefact.run(self._shown, {self._image: image})
        real = (np.asarray(value, np.float32).ravel() for value in values)
        return {self._image: image.ravel(), **dict(zip(self.layers, real, strict=True))}

    def left_float(self, layers: Collection[str]) -> Runner:
        """See `calib.diagnose.variants.Variants.left_float`."""
        graph = self._rebuilt.corrected(layers)
        planned = self._plan(graph, {*self._rebuilt.keep_float, *layers})
        return self._runner(emit(graph, planned), planned)

    def int8(self, layer: str) -> Runner:
        """See `calib.diagnose.variants.Variants.int8`."""
        alone = self._operators({layer})
        graph = self._rebuilt.corrected(set(self.layers) - {layer})
        whole = plan(graph, self._rebuilt.outputs, self._rebuilt.table, self._quantised - alone)
        wires = tuple(name for name in whole.wires if name == layer)
        used = {*wires, *(edge.tensor for edge in whole.edges)}
        scales = {name: scale for name, scale in whole.scales.items() if name in used}
        planned = replace(whole, wires=wires, scales=scales, fp16=frozenset())
        return self._runner(emit(graph, planned), planned)

    def _operators(self, layers: Collection[str]) -> frozenset[str]:
        return operators_of(self._rebuilt.balanced, layers, self._rebuilt.crossing)

    def _plan(self, graph: Graph, keep_float: Collection[str]) -> Plan:
        return plan(graph, self._rebuilt.outputs, self._rebuilt.table, self._operators(keep_float))

    def _runner(self, model: ModelProto, planned: Plan) -> Runner:
        session, outputs = reference_session(model), self._rebuilt.outputs

        def run(image: Real) -> dict[str, Real]:
            values = dict(zip(outputs, session.run(outputs, {self._image: image}), strict=True))
            return {name: _real(value, planned.scales.get(name)) for name, value in values.items()}

        return run

    def _proved(self, folder: Path, model: ModelProto, planned: Plan) -> float:
        rebuilt = self._rebuilt
        exact = reference_session(_with_outputs(rebuilt.balanced.model, rebuilt.outputs))
        runs = (
            self._runner(model, planned),
            self.left_float(()),
            lambda image: dict(zip(rebuilt.outputs, exact.run(rebuilt.outputs, {self._image: image}), strict=True)),
        )
        found = [
            [np.concatenate([run(image[None])[name] for image in rebuilt.images]) for name in rebuilt.outputs]
            for run in runs
        ]
        return require_same(folder, found[0], found[1], found[2])


def _real(value: NDArray[np.generic], scale: float | None) -> Real:
    """A wire's real numbers; anything else is real already."""
    if value.dtype != np.int8 or scale is None:
        return np.asarray(value, np.float32)
    return np.asarray(value.astype(np.float32) * np.float32(scale))


def _with_outputs(model: ModelProto, names: Collection[str]) -> ModelProto:
    made = ModelProto()
    made.CopyFrom(model)
    del made.graph.output[:]
    made.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names))
    return made
