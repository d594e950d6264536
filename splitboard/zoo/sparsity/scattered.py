"""Layers with a structured random pattern: the weights that exist are the only parameters.

The dense kernel is made from them in every pass, and autograd takes the gradient back to them alone: nothing is masked
after a step, and an optimiser keeps no moments for what does not exist.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitboard.zoo.sparsity.initial import initialise


def narrow(pattern: Tensor, inputs: int) -> Tensor:
    """A pattern in the smallest integers that hold it."""
    for dtype in (torch.uint8, torch.int16):
        if inputs - 1 <= torch.iinfo(dtype).max:
            return pattern.to(dtype)
    return pattern.to(torch.int32)


def _dense(weight: Tensor, pattern: Tensor, inputs: int) -> Tensor:
    """The kernel with zeros where no weight exists: ``[out, in_degree, ...]`` to ``[out, inputs, ...]``."""
    outputs = weight.shape[0]
    rows = torch.arange(outputs, device=weight.device).unsqueeze(1) * inputs
    zeros = weight.new_zeros((outputs * inputs, *weight.shape[2:]))
    filled = zeros.index_copy(0, (rows + pattern).flatten(), weight.flatten(0, 1))
    return filled.reshape(outputs, inputs, *weight.shape[2:])


class ScatteredLinear(nn.Module):
    """A linear layer with a pattern: ``[n, in_features]`` to ``[n, out_features]``, float32.

    Args:
        pattern: for each output the inputs that it has weights for, ``[out_features, in_degree]``.
        in_features: inputs.
        bias: whether one is added.

    Attributes:
        weight: ``[out_features, in_degree]``.
        pattern: the pattern in the smallest integers that hold it; saved with the weights.
    """

    pattern: Tensor

    def __init__(self, pattern: Tensor, in_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, len(pattern)
        self.register_buffer("pattern", narrow(pattern, in_features))
        self.weight = nn.Parameter(torch.empty(pattern.shape))
        self.bias = nn.Parameter(torch.empty(len(pattern))) if bias else None
        initialise(self.weight, self.bias)

    def dense(self) -> Tensor:
        """The weight of the `torch.nn.Linear` that computes the same, ``[out_features, in_features]``."""
        return _dense(self.weight, self.pattern, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs."""
        return F.linear(x, self.dense(), self.bias)


class ScatteredConv2d(nn.Module):
    """A convolution with a pattern over (input channel, output channel): a whole kernel exists or does not.

    Args:
        pattern: for each output channel the input channels that it has kernels for, ``[out_channels, in_degree]``.
        like: the dense convolution in whose place it comes; not grouped, padded with zeros.

    Attributes:
        weight: ``[out_channels, in_degree, kh, kw]``.
        pattern: the pattern in the smallest integers that hold it; saved with the weights.
    """

    pattern: Tensor

    def __init__(self, pattern: Tensor, like: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = like.in_channels, like.out_channels
        self.stride, self.padding, self.dilation = like.stride, like.padding, like.dilation
        self.register_buffer("pattern", narrow(pattern, like.in_channels))
        self.weight = nn.Parameter(torch.empty(*pattern.shape, *like.kernel_size))
        self.bias = nn.Parameter(torch.empty(like.out_channels)) if like.bias is not None else None
        initialise(self.weight, self.bias)

    def dense(self) -> Tensor:
        """The weight of the `torch.nn.Conv2d` that computes the same, ``[out_channels, in_channels, kh, kw]``."""
        return _dense(self.weight, self.pattern, self.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[n, in_channels, h, w]`` to what the convolution in whose place it came gives."""
        return F.conv2d(x, self.dense(), self.bias, self.stride, self.padding, self.dilation)
