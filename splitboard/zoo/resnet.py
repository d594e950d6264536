"""ResNet18 in plain torch: He, Zhang, Ren and Sun, the 18-layer column of table 1 (arXiv 1512.03385).

Modules and parameters are named as in torchvision, so its weights load with `load_state_dict`. As the backbone of
MTL-Split (arXiv 2407.05982) it ends after ``layer4``:
``MultiTaskNet(ResNet18().features, ResNet18.channels, classes)``.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

_BLOCKS_PER_LAYER = 2


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    """A convolution that keeps the size up to its stride; the batch norm behind it has the bias."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 2); where shapes change the shortcut projects (option B)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(outputs, outputs, 3, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[n, inputs, h, w]`` to ``[n, outputs, h / stride, w / stride]``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(y + shortcut)
        return out


def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    blocks = [BasicBlock(inputs, outputs, stride)]
    blocks += [BasicBlock(outputs, outputs, 1) for _ in range(_BLOCKS_PER_LAYER - 1)]
    return nn.Sequential(*blocks)


class ResNet18(nn.Module):
    """The classifier: ``[n, 3, h, w]`` to logits ``[n, num_classes]``, float32.

    Args:
        num_classes: length of the logits.
    """

    channels = 512
    """Channels of the output of `features`."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _layer(64, 64, 1)
        self.layer2 = _layer(64, 128, 2)
        self.layer3 = _layer(128, 256, 2)
        self.layer4 = _layer(256, self.channels, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(self.channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def features(self) -> nn.Sequential:
        """These layers up to ``layer4``, under the same names: ``[n, 512, h / 32, w / 32]``, rounded up."""
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        return nn.Sequential(OrderedDict((name, self.get_submodule(name)) for name in names))

    def forward(self, image: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.fc(self.flatten(self.avgpool(self.features(image))))
        return logits
