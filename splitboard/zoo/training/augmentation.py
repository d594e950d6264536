"""Random changes of training images, and their size."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from splitboard.zoo.training.recipe import Warp


def resized(images: Tensor, size: int) -> Tensor:
    """Images ``[n, c, h, w]`` as they are, ``[n, c, size, size]``; bilinear, with antialiasing as in deployment."""
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True).clamp(0, 1)


def warped(images: Tensor, size: int, warp: Warp, generator: torch.Generator) -> Tensor:
    """Randomly turned, flipped, scaled, shifted and lit images, in one resampling.

    Args:
        images: ``[n, c, h, w]``, float32 in 0..1.
        size: rows and columns wanted.
        warp: how much.
        generator: source of all randomness, of the CPU: the same changes wherever the images are.

    Returns:
        ``[n, c, size, size]``, float32 in 0..1.
    """
    n, channels = images.shape[:2]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    def sign(free: bool) -> Tensor:
        drawn = torch.sign(uniform(-1, 1))
        return drawn if free else torch.ones(n)

    angle = uniform(-warp.degrees, warp.degrees) * math.pi / 180
    scale = uniform(1 - warp.scale, 1 + warp.scale)
    flip_x, flip_y = sign(warp.flip_columns), sign(warp.flip_rows)
    along_x = [scale * angle.cos() * flip_x, -scale * angle.sin() * flip_y, uniform(-warp.shift, warp.shift)]
    along_y = [scale * angle.sin() * flip_x, scale * angle.cos() * flip_y, uniform(-warp.shift, warp.shift)]
    theta = torch.stack([torch.stack(along_x, 1), torch.stack(along_y, 1)], 1).to(images.device)
    grid = F.affine_grid(theta, [n, channels, size, size], align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    contrast = uniform(1 - warp.contrast, 1 + warp.contrast).to(images.device)[:, None, None, None]
    brightness = uniform(-warp.brightness, warp.brightness).to(images.device)
    mean = moved.mean(dim=(1, 2, 3))
    return ((moved - mean[:, None, None, None]) * contrast + (mean + brightness)[:, None, None, None]).clamp(0, 1)
