"""The tiny network with two heads of the same size, fitted to pictures whose brightness and stripes are known."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from tiny import Tiny
from torch import nn

CLASSES = 3
SIZE = 32


def pictures(count: int, seed: int) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.int64]]]:
    """Grey images ``[count, 32, 32, 1]`` and their classes: how bright, and which way their stripes go."""
    random = np.random.default_rng(seed)
    bright, stripes = random.integers(0, CLASSES, count), random.integers(0, CLASSES, count)
    wave = 40 * np.sign(np.sin(np.arange(SIZE) * 1.6))
    textures = np.stack([np.zeros((SIZE, SIZE)), np.tile(wave, (SIZE, 1)), np.tile(wave[:, None], (1, SIZE))])
    images = 60 + 65 * bright[:, None, None] + textures[stripes] + random.normal(0, 10, (count, SIZE, SIZE))
    return np.clip(images, 0, 255).astype(np.uint8)[..., None], {"shape": bright, "colour": stripes}


def make() -> Tiny:
    torch.manual_seed(7)
    net = Tiny()
    net.heads = nn.ModuleDict({task: nn.Linear(12, CLASSES) for task in ("shape", "colour")})
    return net


def fitted() -> Tiny:
    """Its heads solve the two tasks by least squares on the features, which stay random."""
    net = make().eval()
    images, labels = pictures(600, seed=1)
    pixels = torch.from_numpy(images[..., 0].astype(np.float32)[:, None] / 255).expand(-1, 3, -1, -1)
    with torch.no_grad():
        features = net.blocks(net.stem((pixels - 0.5) / 0.5)).mean((2, 3)).double()
        inputs = torch.cat([features, torch.ones(len(images), 1, dtype=torch.float64)], dim=1)
        for task, head in net.heads.items():
            wanted = torch.nn.functional.one_hot(torch.from_numpy(labels[task]), CLASSES).double()
            solved = torch.linalg.lstsq(inputs, wanted).solution
            head.weight.copy_(solved[:-1].T)
            head.bias.copy_(solved[-1])
    return net
