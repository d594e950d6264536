"""What a network stores and computes, against its dense twin; indices are counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from splitboard.zoo.sparsity.grouped import BlockLinear, GroupedConv2d
from splitboard.zoo.sparsity.scattered import ScatteredConv2d, ScatteredLinear

_FLOAT32_BYTES = 4
_Layer = nn.Conv2d | nn.Linear | BlockLinear | ScatteredConv2d | ScatteredLinear


@dataclass(frozen=True)
class Stored:
    """Numbers that a network keeps.

    Attributes:
        weights: of its convolutions and linear layers, those that exist.
        other: biases, and the parameters and statistics of normalisations.
        index_entries: numbers that say where scattered weights belong; groups need none.
        index_bytes: what these take in a bundle (`export.packed`): the smallest integers that number the shorter side.
        dense_weights: weights of the dense twin.
    """

    weights: int
    other: int
    index_entries: int
    index_bytes: int
    dense_weights: int

    @property
    def float32_bytes(self) -> int:
        """Everything, indices included, weights in float32."""
        return (self.weights + self.other) * _FLOAT32_BYTES + self.index_bytes

    @property
    def int8_bytes(self) -> int:
        """The same with one byte for a weight; the others, which become INT32 biases, at four."""
        return self.weights + self.other * _FLOAT32_BYTES + self.index_bytes

    @property
    def dense_float32_bytes(self) -> int:
        """The dense twin's `float32_bytes`."""
        return (self.dense_weights + self.other) * _FLOAT32_BYTES

    @property
    def dense_int8_bytes(self) -> int:
        """The dense twin's `int8_bytes`."""
        return self.dense_weights + self.other * _FLOAT32_BYTES


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one image.

    Attributes:
        existing: with weights that exist.
        run: that an engine runs: a scattered layer runs as its dense twin.
        dense: of the dense twin.
    """

    existing: int
    run: int
    dense: int


def stored(net: nn.Module) -> Stored:
    """Counts what a network keeps."""
    layers = list(_layers(net))
    weights = sum(layer.weight.numel() for layer in layers)
    scattered = [layer for layer in layers if isinstance(layer, (ScatteredConv2d, ScatteredLinear))]
    statistics = sum(b.numel() for name, b in net.named_buffers() if name.endswith(("running_mean", "running_var")))
    return Stored(
        weights=weights,
        other=sum(parameter.numel() for parameter in net.parameters()) - weights + statistics,
        index_entries=sum(layer.pattern.numel() for layer in scattered),
        index_bytes=sum(layer.pattern.numel() * _index_bytes(layer) for layer in scattered),
        dense_weights=sum(prod(_dense_shape(layer)) for layer in layers),
    )


def macs(net: nn.Module, image: Tensor) -> Macs:
    """Counts the work of a network's convolutions and linear layers.

    Args:
        net: in evaluation mode.
        image: one input, ``[1, c, h, w]``.
    """
    counts = [0, 0, 0]

    def count(layer: nn.Module, _: object, result: Tensor) -> None:
        assert isinstance(layer, _Layer)
        kernels = result.numel() // len(layer.weight)  # positions: each output channel's kernel runs once in each
        existing, dense = kernels * layer.weight.numel(), kernels * prod(_dense_shape(layer))
        run = dense if isinstance(layer, (ScatteredConv2d, ScatteredLinear)) else existing
        for i, number in enumerate((existing, run, dense)):
            counts[i] += number

    hooks = [layer.register_forward_hook(count) for layer in _layers(net)]
    try:
        with torch.no_grad():
            net(image)
    finally:
        for hook in hooks:
            hook.remove()
    return Macs(*counts)


def _layers(net: nn.Module) -> Iterator[_Layer]:
    return (module for module in net.modules() if isinstance(module, _Layer))


def _index_bytes(layer: ScatteredConv2d | ScatteredLinear) -> int:
    return np.min_scalar_type(min(_dense_shape(layer)[:2]) - 1).itemsize


def _dense_shape(layer: _Layer) -> tuple[int, ...]:
    """The shape that the weight has in the dense twin; a convolution that was made in groups stays so there."""
    if isinstance(layer, (ScatteredConv2d, GroupedConv2d)):
        return layer.out_channels, layer.in_channels, *layer.weight.shape[2:]
    if isinstance(layer, (BlockLinear, ScatteredLinear)):
        return layer.out_features, layer.in_features
    return tuple(layer.weight.shape)
