"""Weights to train from, scaled by the inputs that exist."""

from __future__ import annotations

from math import prod, sqrt

import torch
from torch import Tensor, nn


def initialise(weight: Tensor, bias: Tensor | None) -> None:
    """Fills the parameters of a sparse layer in place, from torch's generator.

    A kernel gets He's normal weights (arXiv 1502.01852, equation 10), a linear layer torch's own uniform ones; both
    with the fan-in that exists, which keeps the variance of what a layer puts out as it is in the dense layer.

    Args:
        weight: ``[out, in_degree, ...]``.
        bias: ``[out]``.
    """
    fan_in = prod(weight.shape[1:])
    bound = 1 / sqrt(fan_in)
    with torch.no_grad():
        if weight.ndim > 2:
            nn.init.normal_(weight, 0.0, sqrt(2 / fan_in))
        else:
            nn.init.uniform_(weight, -bound, bound)
        if bias is not None:
            nn.init.uniform_(bias, -bound, bound)
