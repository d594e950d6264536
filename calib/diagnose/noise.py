"""The cheap pass: every tensor of the artefact beside the float model's, on the same few images.

Errors add up along the depth, and layers that take a small difference of large values amplify what arrives. So what a
layer itself adds is measured apart: its tensor in the artefact beside what the float layer makes of the artefact's own
tensors in front of it. One graph does that for all layers at once, in which every layer starts from such tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, helper

from calib.diagnose.finding import LayerNoise
from calib.diagnose.tflite import rounded
from calib.diagnose.variants import Real, Variants
from export.graph import Graph
from export.reference import reference_session

MOST_IMAGES = 32
"""Tensors have thousands of values each, so that more images change the ranking little."""

_EXPECTED = "/expected"
"""Behind the name of a tensor that the float layer makes of the artefact's tensors."""


@dataclass
class _Sums:
    """Sums over all values of one tensor, float64.

    Attributes:
        signal: of the float tensor's squares.
        measured: of the artefact's squares.
        both: of the products of the two.
        error: of the squares of their difference.
        added: of the squares of what the layer itself adds.
        steps: of the squares of what rounding the float tensor to its steps changes.
    """

    signal: float = 0.0
    measured: float = 0.0
    both: float = 0.0
    error: float = 0.0
    added: float = 0.0
    steps: float = 0.0

    def add(self, exact: Real, found: Real, expected: Real, in_steps: Real) -> None:
        a, b = exact.astype(np.float64), found.astype(np.float64)
        self.signal += float(a @ a)
        self.measured += float(b @ b)
        self.both += float(a @ b)
        self.error += _power(b - a)
        self.added += _power(b - expected)
        self.steps += _power(in_steps - a)

    def share(self, power: float) -> float:
        """Of the tensor's power; of a tensor of zeros, 1 where there is any."""
        return power / (self.signal or power or 1.0)

    def noise(self, layer: str, depth: int, *, has_steps: bool) -> LayerNoise:
        noise, norms = self.share(self.error), math.sqrt(self.signal * self.measured)
        return LayerNoise(
            layer=layer,
            depth=depth,
            noise=noise,
            added=self.share(self.added),
            steps=self.share(self.steps) if has_steps else None,
            sqnr_db=-10 * math.log10(noise) if noise > 0 else None,
            cosine=self.both / norms if norms else float(self.signal == self.measured),
        )


def layer_noise(
    graph: Graph, variants: Variants, images: Sequence[Real], on_image: Callable[[int], None]
) -> tuple[LayerNoise, ...]:
    """Measures every layer of an edge half.

    Args:
        graph: the float model that the artefact was made from, biases not corrected.
        variants: of the edge half.
        images: normalised, each ``[1, c, h, w]``.
        on_image: called with the number of images done.

    Returns:
        By depth.
    """
    image, names = graph.inputs[0], list(variants.layers)
    whole, apart = reference_session(_with_outputs(graph, names)), reference_session(_apart(graph, names))
    taken = [one.name for one in apart.get_inputs()]
    sums = {name: _Sums() for name in names}
    for done, sample in enumerate(images, 1):
        exact = whole.run(names, {image: sample})
        found = variants.tensors(sample)
        given = {name: found[name].reshape(graph.shapes[name]) for name in taken}
        expected = apart.run([name + _EXPECTED for name in names], given)
        for name, value, made in zip(names, exact, expected, strict=True):
            flat = value.ravel()
            in_steps = rounded(flat, *variants.steps[name]) if name in variants.steps else flat
            sums[name].add(flat, found[name], made.ravel(), in_steps)
        on_image(done)
    return tuple(sums[name].noise(name, depth, has_steps=name in variants.steps) for depth, name in enumerate(names))


def worst(noises: Sequence[LayerNoise], switchable: Collection[str], count: int) -> tuple[LayerNoise, ...]:
    """The layers that add most, those that cannot be switched left out; the largest first."""
    able = [one for one in noises if one.layer in switchable]
    return tuple(sorted(able, key=lambda one: -one.added)[:count])


def _power(error: NDArray[np.float64]) -> float:
    return float(error @ error)


def _apart(graph: Graph, layers: Collection[str]) -> ModelProto:
    """The model in pieces: every layer takes the tensors of the layers before it from outside."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    for node in model.graph.node:
        node.output[:] = [name + _EXPECTED if name in layers else name for name in node.output]
    taken = {name for node in model.graph.node for name in node.input}
    given = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, graph.shapes[name]) for name in layers]
    model.graph.input.extend(one for one in given if one.name in taken)
    del model.graph.value_info[:]
    return _ending(model, [name + _EXPECTED for name in layers])


def _with_outputs(graph: Graph, names: Collection[str]) -> ModelProto:
    model = ModelProto()
    model.CopyFrom(graph.model)
    return _ending(model, names)


def _ending(model: ModelProto, names: Collection[str]) -> ModelProto:
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return model
