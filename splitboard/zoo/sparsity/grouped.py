"""Layers whose sparsity is a dense kernel of less work: groups of channels, blocks of a linear layer.

A group's outputs have weights for that group's inputs only. Groups that never met would be networks of their own, so
every other layer takes its input through a fixed shuffle that deals each group's channels out to all groups
(arXiv 1707.01083, section 3.1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitboard.zoo.sparsity.initial import initialise


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channel ``b`` of group ``a`` becomes channel ``b * groups + a``: ``[n, c, h, w]`` to the same shape."""
    n, channels, height, width = x.shape
    return x.reshape(n, groups, channels // groups, height, width).transpose(1, 2).reshape(n, channels, height, width)


class GroupedConv2d(nn.Conv2d):
    """A grouped convolution in the place of a dense one; ``1 / groups`` of its weights and of its work.

    Args:
        like: the dense convolution in whose place it comes.
        groups: divides its input and its output channels.
    """

    def __init__(self, like: nn.Conv2d, groups: int) -> None:
        super().__init__(
            like.in_channels,
            like.out_channels,
            like.kernel_size,  # type: ignore[arg-type]  # torch keeps its pairs as tuples of any length
            like.stride,  # type: ignore[arg-type]  # likewise
            like.padding,  # type: ignore[arg-type]  # likewise
            like.dilation,  # type: ignore[arg-type]  # likewise
            groups,
            like.bias is not None,
        )
        initialise(self.weight, self.bias)


class ShuffledConv2d(GroupedConv2d):
    """A grouped convolution of shuffled channels: each of its groups sees channels of many groups before it."""

    def forward(self, x: Tensor) -> Tensor:
        """Shuffles, then convolves."""
        return super().forward(shuffled(x, self.groups))


class BlockLinear(nn.Module):
    """A block-diagonal linear layer: ``[n, in_features]`` to ``[n, out_features]``, float32.

    When it evaluates it is a grouped convolution of one position, which every engine has a fast kernel for. Behind a
    flattened image ``[c, h, w]`` a block holds whole channels, and export makes a grouped ``h x w`` convolution of the
    two. When it trains it is a batched matrix product, which torch is six times as fast at, backwards included.

    Args:
        in_features: inputs.
        out_features: outputs.
        groups: blocks; divides both.
        bias: whether one is added.

    Attributes:
        weight: ``[out_features, in_features / groups]``.
    """

    def __init__(self, in_features: int, out_features: int, groups: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.groups = in_features, out_features, groups
        self.weight = nn.Parameter(torch.empty(out_features, in_features // groups))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        initialise(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the outputs."""
        if not self.training:
            kernel = self.weight.unsqueeze(2).unsqueeze(3)
            return F.conv2d(x.unsqueeze(2).unsqueeze(3), kernel, self.bias, groups=self.groups).flatten(1)
        blocks = self.weight.view(self.groups, -1, self.weight.shape[1])
        inputs = x.reshape(len(x), self.groups, -1)
        y = torch.bmm(inputs.transpose(0, 1), blocks.transpose(1, 2)).transpose(0, 1).reshape(len(x), -1)
        return y if self.bias is None else y + self.bias
