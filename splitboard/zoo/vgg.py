"""VGG16 in plain torch, with and without batch norm: Simonyan and Zisserman, configuration D (arXiv 1409.1556).

Modules and parameters are named as in torchvision, so its weights load with `load_state_dict`. As the backbone of
MTL-Split (arXiv 2407.05982) it keeps its convolutions: ``MultiTaskNet(VGG16().features, VGG16.channels, classes)``, or
`vgg16_features` where the 124 million parameters of the classifier are not wanted even for a moment.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

# Output channels of the 3x3 convolutions between two max pools.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_POOLED_SIZE = 7
_HIDDEN = 4096


def _without_norm(channels: int) -> list[nn.Module]:  # noqa: ARG001 - as `_with_norm`
    return []


def _with_norm(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels)]


def vgg16_features() -> nn.Sequential:
    """The convolutions alone: ``[n, 3, h, w]`` (h, w at least 32) to ``[n, 512, h // 32, w // 32]``, float32."""
    return _features(_without_norm)


def vgg16_bn_features() -> nn.Sequential:
    """As `vgg16_features`, with a batch norm behind every convolution."""
    return _features(_with_norm)


def _features(norm: Callable[[int], list[nn.Module]]) -> nn.Sequential:
    """The convolutions, with what comes between each one and its activation."""
    layers: list[nn.Module] = []
    inputs = 3
    for stage in _STAGES:
        for outputs in stage:
            conv = nn.Conv2d(inputs, outputs, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # a convolution made with a bias has one
            layers += [conv, *norm(outputs), nn.ReLU(inplace=True)]
            inputs = outputs
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


class VGG16(nn.Module):
    """The classifier: ``[n, 3, h, w]`` (h, w at least 32) to logits ``[n, num_classes]``, float32.

    Args:
        num_classes: length of the logits.
    """

    channels = 512
    """Channels of the output of `features`."""

    make_features = staticmethod(vgg16_features)

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.features = self.make_features()
        # The paper's 7x7 map at 224x224; other sizes are pooled to it.
        self.avgpool = nn.AdaptiveAvgPool2d(_POOLED_SIZE)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Linear(self.channels * _POOLED_SIZE**2, _HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(_HIDDEN, num_classes),
        )
        for layer in self.classifier:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0.0, 0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.classifier(self.flatten(self.avgpool(self.features(image))))
        return logits


class VGG16BN(VGG16):
    """The same classifier with a batch norm behind every convolution."""

    make_features = staticmethod(vgg16_bn_features)
