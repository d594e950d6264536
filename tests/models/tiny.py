"""A two-task network small enough that building it takes seconds; trained by nobody, so only its arithmetic counts."""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU6())
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.conv(x))


class Tiny(nn.Module):
    """Grey or RGB image of 32x32 to {"shape": [n, 2], "colour": [n, 3]}."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6())
        self.blocks = nn.Sequential(Block(16), nn.Sequential(nn.Conv2d(16, 12, 3, 2, 1), nn.ReLU6()), Block(12))
        self.heads = nn.ModuleDict({"shape": nn.Linear(12, 2), "colour": nn.Linear(12, 3)})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.blocks(self.stem(image)).mean((2, 3))
        return {task: head(features) for task, head in self.heads.items()}


def make() -> Tiny:
    torch.manual_seed(7)
    return Tiny()
