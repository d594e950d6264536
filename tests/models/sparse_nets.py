"""Small residual networks with two heads whose layers have predefined sparsity, as factories without arguments."""

from fractions import Fraction

import torch
from torch import Tensor, nn

from splitboard.zoo.resnet import BasicBlock
from splitboard.zoo.sparsity import Grouped, Scattered, Sparsity, sparsify


class Residual(nn.Module):
    """RGB image of 32x32 to {"shape": [n, 2], "colour": [n, 3]}; a head that pools and one that flattens."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            BasicBlock(16, 16, 1),
            BasicBlock(16, 32, 2),
            BasicBlock(32, 32, 2),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.heads = nn.ModuleDict({"shape": _head(32, 2), "colour": _head(32 * 16, 3)})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.backbone(image)
        return {
            "shape": self.heads["shape"](self.pool(features).flatten(1)),
            "colour": self.heads["colour"](features.flatten(1)),
        }


def _head(inputs: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 32), nn.Dropout(0.1), nn.ReLU(), nn.Linear(32, classes))


def _settled(pattern: Grouped | Scattered | None) -> Residual:
    torch.manual_seed(7)
    net = Residual()
    if pattern is not None:
        sparsify(net, Sparsity(Fraction(1, 4), Fraction(1, 4), pattern))
    net.train()
    with torch.no_grad():
        for _ in range(20):  # batch norms that have seen something
            net(0.3 + torch.randn(16, 3, 32, 32))
    return net.eval()


def dense() -> Residual:
    return _settled(None)


def grouped() -> Residual:
    return _settled(Grouped())


def scattered() -> Residual:
    return _settled(Scattered(seed=3))
