"""What a float model's tensors look like on the calibration images: one pass, streaming, for all range methods.

Kept per tensor are its smallest and largest value, exactly, and a histogram whose bins are the upper 16 bits of a
float32 (sign, exponent, seven bits of mantissa): 128 bins per power of two, so every value is known to 0.8 %, no range
has to be known beforehand, and memory does not depend on the number of images. Large tensors put an evenly spaced
sample of their values into the histogram (`HISTOGRAM_VALUES` per image); the limits always see every value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from export.graph import Graph
from export.shuffles import inside_shuffles, shuffles
from splitboard.contract.errors import UserError

HISTOGRAM_VALUES = 4096
"""Values per tensor and image that enter the histogram; 500 images give 2 million, 20 beyond a share of 99.999 %."""

_BUFFERED_IMAGES = 128
"""Counting costs about the same for one image as for many, so values wait: 1 MB per tensor."""

MEAN_IMAGES = 64
"""Images over which channel means are taken; a mean needs fewer than a tail does."""

BINS = 1 << 16

Value = NDArray[np.float32]


@dataclass(frozen=True)
class Observed:
    """One tensor over the calibration set.

    Attributes:
        min: smallest value.
        max: largest value.
        counts: ``[65536]``, int64; how many of the looked-at values have these upper 16 bits.
        channel_mean: ``[channels]``, float64, over images and positions; of one value for a tensor without channels.
    """

    min: float
    max: float
    counts: NDArray[np.int64]
    channel_mean: NDArray[np.float64]


@dataclass(frozen=True)
class Observations:
    """The whole pass.

    Attributes:
        n_samples: images seen.
        tensors: by name.
    """

    n_samples: int
    tensors: dict[str, Observed]


def bin_values() -> NDArray[np.float32]:
    """The middle of every bin, ``[65536]``; bins of infinities and NaN have none, and no count."""
    patterns = (np.arange(BINS, dtype=np.uint32) << 16) | 0x8000
    values: NDArray[np.float32] = patterns.view(np.float32)
    return np.where(np.isfinite(values), values, np.float32(0))


def quantisable(graph: Graph, crossing: Iterable[str]) -> list[str]:
    """Names of the tensors that an edge artefact can hold in INT8.

    A layer's output that only an activation takes is none: the two are one operator there, unless it crosses. Nor is
    what stands between the operators of a channel shuffle.
    """
    kept, inside = set(crossing), inside_shuffles(graph)
    made = [name for node in graph.nodes for name in node.output if name and name not in inside]
    return [
        name for name in (*graph.inputs, *made) if graph.is_float(name) and (name in kept or not graph.is_fused(name))
    ]


class _Statistics:
    """Running statistics of one tensor."""

    def __init__(self, shape: Sequence[int]) -> None:
        self._channels = shape[1] if len(shape) > 1 else 1
        self._step = _coprime_step(math.prod(shape) // HISTOGRAM_VALUES, shape[-1] if shape else 1)
        self._lowest: list[np.float32] = []
        self._highest: list[np.float32] = []
        self._counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self._waiting: list[NDArray[np.uint16]] = []
        self._sums: NDArray[np.float64] = np.zeros(self._channels)

    def take(self, value: Value, sample: int) -> None:
        """Called for every tensor of every image, so it does as little as possible; `_count` does the rest."""
        flat = value.reshape(-1)
        self._lowest.append(np.minimum.reduce(flat))
        self._highest.append(np.maximum.reduce(flat))
        # The upper halves of the float32 words, little endian.
        self._waiting.append(flat.view(np.uint16)[2 * (sample % self._step) + 1 :: 2 * self._step].copy())
        if len(self._waiting) == _BUFFERED_IMAGES:
            self._count()
        if sample < MEAN_IMAGES:
            self._sums += value.reshape(self._channels, -1).mean(axis=1, dtype=np.float64)

    def _count(self) -> None:
        self._counts += np.bincount(np.concatenate(self._waiting), minlength=BINS)
        # numpy's reductions keep a NaN, to be refused at the end.
        self._lowest, self._highest = [np.min(self._lowest)], [np.max(self._highest)]
        self._waiting = []

    def result(self, name: str, n_samples: int) -> Observed:
        if self._waiting:
            self._count()
        low, high = float(self._lowest[0]), float(self._highest[0])
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError(f'tensor "{name}" is not finite on the calibration images', ["check the weights for NaN"])
        return Observed(low, high, self._counts, self._sums / min(n_samples, MEAN_IMAGES))


def _coprime_step(least: int, row: int) -> int:
    """A step that shares no factor with the row length, so that all columns are looked at."""
    step = max(1, least)
    while math.gcd(step, row) != 1:
        step += 1
    return step


def observe(
    graph: Graph, tensors: Sequence[str], inputs: Iterable[Value], on_sample: Callable[[int], None]
) -> Observations:
    """Runs the float model over the calibration images.

    Args:
        graph: the whole float model, one input.
        tensors: names to observe, from `quantisable`.
        inputs: normalised images, each ``[1, c, h, w]``; taken one by one.
        on_sample: called with the number of images done.

    Raises:
        UserError: no image, or a tensor that is not finite.
    """
    image = graph.inputs[0]
    made = [name for name in tensors if name != image]
    session = _session(graph, made)
    statistics = {name: _Statistics(graph.shapes[name]) for name in (image, *made)}
    count = 0
    for count, sample in enumerate(inputs, 1):
        values = [sample, *session.run(made, {image: sample})]
        for one, value in zip(statistics.values(), values, strict=True):
            one.take(value, count - 1)
        on_sample(count)
    if count == 0:
        raise UserError('the calibration set holds "0" images', ["give real images with --calib"])
    found = {name: one.result(name, count) for name, one in statistics.items()}
    for dealt in shuffles(graph):
        if dealt.source in found and dealt.result in found:
            # The same values in another order; the histogram saw others of them, and any range must be the same.
            found[dealt.result] = replace(found[dealt.result], counts=found[dealt.source].counts)
    return Observations(count, found)


def _session(graph: Graph, names: Sequence[str]) -> ort.InferenceSession:
    """The model with these tensors as its outputs; a tensor that is an output is never fused away."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
