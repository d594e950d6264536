"""EfficientNet-B0 in plain torch: Tan and Le, table 1 (arXiv 1905.11946).

Modules and parameters are named as in torchvision, so its weights load with `load_state_dict`. As the backbone of
MTL-Split (arXiv 2407.05982) it keeps its convolutions:
``MultiTaskNet(EfficientNetB0().features, EfficientNetB0.channels, classes)``.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from splitboard.zoo.mobilenet_v3 import ConvNormActivation, SqueezeExcitation, initialise

# (expansion, kernel, stride of the first block, output channels, repeats), stages 2 to 8 of table 1.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_N_BLOCKS = sum(repeats for *_, repeats in _STAGES)
_STEM_CHANNELS = 32
_LAST_DROP = 0.2
"""Probability (section 5.2: survival 0.8) that training skips the last block; block i's is i / n of it."""
_SILU = partial(nn.SiLU, inplace=True)
# torchvision's weights need torch's batch norm as it is.
_UNIT = partial(ConvNormActivation, norm=nn.BatchNorm2d)


class StochasticDepth(nn.Module):
    """Drops a whole residual branch of some samples in training (arXiv 1603.09382); identity in evaluation."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[n, ...]`` to the same shape and mean."""
        if not self.training or self.drop == 0:
            return x
        survival = 1 - self.drop
        kept = x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(survival)
        return x * kept / survival


class MBConv(nn.Module):
    """Expand, depthwise, squeeze-excite, project, and the input added where shapes allow.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        kernel: of the depthwise convolution.
        stride: of the depthwise convolution.
        expansion: channels in the middle by those of the input.
        drop: probability that training skips the branch beside the input.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, drop: float) -> None:
        super().__init__()
        expanded = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_UNIT(inputs, expanded, 1, activation=_SILU))
        layers += [
            _UNIT(expanded, expanded, kernel, stride, groups=expanded, activation=_SILU),
            # A quarter of the block's input, not of its expanded channels as in MobileNetV3.
            SqueezeExcitation(expanded, inputs // 4, _SILU, nn.Sigmoid),
            _UNIT(expanded, outputs, 1, activation=None),
        ]
        self.block = nn.Sequential(*layers)
        self.stochastic_depth = StochasticDepth(drop)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[n, inputs, h, w]`` to ``[n, outputs, h / stride, w / stride]``."""
        y: Tensor = self.block(x)
        return x + self.stochastic_depth(y) if self.residual else y


def _stages() -> list[nn.Module]:
    """The stages of MBConv blocks."""
    stages: list[nn.Module] = []
    inputs, index = _STEM_CHANNELS, 0
    for expansion, kernel, stride, outputs, repeats in _STAGES:
        blocks: list[nn.Module] = []
        for repeat in range(repeats):
            drop = _LAST_DROP * index / _N_BLOCKS
            blocks.append(MBConv(inputs, outputs, kernel, stride if repeat == 0 else 1, expansion, drop))
            inputs, index = outputs, index + 1
        stages.append(nn.Sequential(*blocks))
    return stages


class EfficientNetB0(nn.Module):
    """The classifier: ``[n, 3, h, w]`` to logits ``[n, num_classes]``, float32.

    Args:
        num_classes: length of the logits.
    """

    channels = 1280
    """Channels of the output of `features`, ``[n, 1280, h / 32, w / 32]``, rounded up."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        stem = _UNIT(3, _STEM_CHANNELS, 3, 2, activation=_SILU)
        head = _UNIT(_STAGES[-1][3], self.channels, 1, activation=_SILU)
        self.features = nn.Sequential(stem, *_stages(), head)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(self.channels, num_classes))
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the logits."""
        logits: Tensor = self.classifier(self.flatten(self.avgpool(self.features(image))))
        return logits
