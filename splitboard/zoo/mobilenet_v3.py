"""MobileNetV3-small in plain torch: Howard et al., table 2 (arXiv 1905.02244).

Modules and parameters are named as in torchvision, so its weights load with `load_state_dict`. As the backbone of
MTL-Split (arXiv 2407.05982) it keeps its convolutions:
``MultiTaskNet(MobileNetV3Small().features, MobileNetV3Small.channels, classes)``.

`ConvNormActivation` and `SqueezeExcitation` are also what EfficientNet is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

ModuleMaker = Callable[[], nn.Module]
NormMaker = Callable[[int], nn.Module]

# (kernel, expanded channels, output channels, squeeze-excite, hard-swish in place of ReLU, stride), rows of table 2.
_BLOCKS = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)
_STEM_CHANNELS = 16
_HIDDEN = 1024
# eps of the authors' implementation; momentum as torchvision's training.
_BATCH_NORM = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
_RELU = partial(nn.ReLU, inplace=True)
_HARD_SWISH = partial(nn.Hardswish, inplace=True)


class ConvNormActivation(nn.Sequential):
    """Convolution that keeps the size up to its stride, normalisation and, unless it is linear, an activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        norm: NormMaker,
        activation: ModuleMaker | None,
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        super().__init__(conv, norm(outputs), *([activation()] if activation else []))


class SqueezeExcitation(nn.Module):
    """Weights every channel by a gate that sees the average of all channels (arXiv 1709.01507).

    Args:
        channels: of the input and the output, ``[n, channels, h, w]``.
        squeezed: width of the hidden layer.
        activation: behind the hidden layer.
        gate: behind the output layer, with values from 0 to 1.
    """

    def __init__(self, channels: int, squeezed: int, activation: ModuleMaker, gate: ModuleMaker) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = activation()
        self.scale_activation = gate()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the weighted input."""
        gate: Tensor = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return gate * x


def initialise(model: nn.Module) -> None:
    """Random weights to train from: He's for convolutions, small ones for linear layers, biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _squeezed(expanded: int) -> int:
    """A quarter of the channels, to the nearest multiple of 8 (half up)."""
    return max(8, (expanded // 4 + 4) // 8 * 8)


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze-excite, project, and the input added where shapes allow (figure 4)."""

    def __init__(
        self, inputs: int, kernel: int, expanded: int, outputs: int, squeeze: bool, hard_swish: bool, stride: int
    ) -> None:
        super().__init__()
        activation = _HARD_SWISH if hard_swish else _RELU
        unit = partial(ConvNormActivation, norm=_BATCH_NORM)
        layers: list[nn.Module] = []
        if expanded != inputs:
            layers.append(unit(inputs, expanded, 1, activation=activation))
        layers.append(unit(expanded, expanded, kernel, stride, groups=expanded, activation=activation))
        if squeeze:
            layers.append(SqueezeExcitation(expanded, _squeezed(expanded), nn.ReLU, nn.Hardsigmoid))
        layers.append(unit(expanded, outputs, 1, activation=None))
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[n, inputs, h, w]`` to ``[n, outputs, h / stride, w / stride]``."""
        y: Tensor = self.block(x)
        return x + y if self.residual else y


class MobileNetV3Small(nn.Module):
    """The classifier: ``[n, 3, h, w]`` to logits ``[n, num_classes]``, float32.

    Args:
        num_classes: length of the logits.
    """

    channels = 576
    """Channels of the output of `features`, ``[n, 576, h / 32, w / 32]``, rounded up."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        unit = partial(ConvNormActivation, norm=_BATCH_NORM, activation=_HARD_SWISH)
        layers: list[nn.Module] = [unit(3, _STEM_CHANNELS, 3, 2)]
        inputs = _STEM_CHANNELS
        for kernel, expanded, outputs, squeeze, hard_swish, stride in _BLOCKS:
            layers.append(InvertedResidual(inputs, kernel, expanded, outputs, squeeze, hard_swish, stride))
            inputs = outputs
        layers.append(unit(inputs, self.channels, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Linear(self.channels, _HIDDEN), _HARD_SWISH(), nn.Dropout(0.2), nn.Linear(_HIDDEN, num_classes)
        )
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.classifier(self.flatten(self.avgpool(self.features(image))))
        return logits
