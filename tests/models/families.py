"""Small networks of the shapes that users bring, as factories without arguments: ``families:unet`` and so on.

Nobody trained them, so only their arithmetic counts. Each is seeded, its batch norms have weights and statistics that
are not a fresh layer's, and `INPUTS` names its inputs, in the order of ``forward``, with their shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from splitboard.zoo.efficientnet import EfficientNetB0
from splitboard.zoo.efficientnet_lite import EfficientNetLite0
from splitboard.zoo.mobilenet_v3 import MobileNetV3Small
from splitboard.zoo.multitask import MultiTaskNet
from splitboard.zoo.resnet import ResNet18
from splitboard.zoo.vgg import VGG16, vgg16_features

Shape = tuple[int, ...]

_SMALL: dict[str, Shape] = {"image": (1, 3, 32, 32)}
_MEDIUM: dict[str, Shape] = {"image": (1, 3, 64, 64)}
INPUTS: dict[str, dict[str, Shape]] = {
    "unet": _SMALL,
    "vit": _SMALL,
    "two_inputs": {**_SMALL, "meta": (1, 6)},
    "depths": _SMALL,
    "nested": _SMALL,
    "as_dataclass": _SMALL,
    "shared": _SMALL,
    "two_scales": _MEDIUM,
    "reduced_mean": _SMALL,
    "vgg16_two_heads": _MEDIUM,
    "resnet18_two_heads": _MEDIUM,
    "mobilenet_v3_small_two_heads": _MEDIUM,
    "efficientnet_b0_two_heads": _MEDIUM,
    "efficientnet_lite0_two_heads": _MEDIUM,
}
"""Inputs and their shapes by factory."""


@contextmanager
def unhurried() -> Iterator[None]:
    """For a few small images: no oneDNN, which compiles a kernel per shape, and no threads, which wait for one another.

    Both cost more than they save here, threads most of all where other processes run.
    """
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # torch's own `flags` warns on leaving
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.mkldnn.enabled = onednn


def _settled(model: nn.Module, inputs: Mapping[str, Shape]) -> nn.Module:
    """Gives the layers weights that let the image through to the outputs, and batch norms statistics of random images.

    Returns the model, to infer.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.2)
        norm.momentum = None  # the plain mean over the batches, whatever the layer's own pace
    with torch.no_grad(), unhurried():
        for _ in range(2 if norms else 0):
            model.train()(*(0.3 + torch.randn(2, *shape[1:]) for shape in inputs.values()))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


class ConvUnit(nn.Sequential):
    """3x3 convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )


class Residual(nn.Module):
    """A unit, a linear 1x1 convolution, and the input added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.unit = ConvUnit(channels, channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.project(self.unit(x))
        return y


class PooledLinear(nn.Sequential):
    """Global average pool and one linear layer."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


class UNet(nn.Module):
    """Three skip connections and two dense heads: {"depth": [n, 1, h, w], "seg": [n, 4, h, w]}."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([ConvUnit(3, 8), ConvUnit(8, 12, 2), ConvUnit(12, 16, 2)])
        self.bottom = nn.Sequential(ConvUnit(16, 24, 2), ConvUnit(24, 24))
        self.up = nn.ModuleList(
            [
                nn.ConvTranspose2d(24, 16, 2, 2),
                nn.ConvTranspose2d(16, 12, 4, 2, padding=1),
                nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(12, 8, 3, padding=1)),
            ]
        )
        self.decoder = nn.ModuleList([ConvUnit(32, 16), ConvUnit(24, 12), ConvUnit(16, 8)])
        self.heads = nn.ModuleDict({"depth": nn.Conv2d(8, 1, 1), "seg": nn.Conv2d(8, 4, 1)})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        skips = []
        x = image
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        x = self.bottom(x)
        for up, stage, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            x = stage(torch.cat([up(x), skip], 1))
        return {task: head(x) for task, head in self.heads.items()}


class EncoderBlock(nn.Module):
    """A block of a vision transformer, norm first (arXiv 2010.11929, figure 1)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n_heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def attention(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(n, tokens, width))
        return y

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class ViT(nn.Module):
    """Vision transformer on 8x8 patches of 32x32; a tuple of two [n, 5], from the class token and from the patches."""

    def __init__(self) -> None:
        super().__init__()
        width, n_patches = 16, 16
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.5)
        self.positions = nn.Parameter(torch.randn(1, 1 + n_patches, width) * 0.5)
        self.blocks = nn.ModuleList([EncoderBlock(width, heads=4) for _ in range(3)])
        self.norm = nn.LayerNorm(width)
        self.token_head = nn.Linear(width, 5)
        self.patch_head = nn.Linear(width, 5)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(image), -1, -1), patches], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.token_head(x[:, 0]), self.patch_head(x[:, 1:].mean(1))


class TwoInputs(nn.Module):
    """An image and six numbers beside it: {"kind": [n, 4], "state": [n, 4]}."""

    def __init__(self) -> None:
        super().__init__()
        self.image_branch = nn.Sequential(
            ConvUnit(3, 8, 2), ConvUnit(8, 12, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)
        )
        self.meta_branch = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU())
        self.trunk = nn.Sequential(nn.Linear(18, 16), nn.ReLU())
        self.heads = nn.ModuleDict({"kind": nn.Linear(16, 4), "state": nn.Linear(16, 4)})

    def forward(self, image: Tensor, meta: Tensor) -> dict[str, Tensor]:
        x = self.trunk(torch.cat([self.image_branch(image), self.meta_branch(meta)], 1))
        return {task: head(x) for task, head in self.heads.items()}


class Depths(nn.Module):
    """Heads that leave the backbone at ``blocks.1``, ``blocks.3`` and ``blocks.2``, in this order; all [n, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvUnit(3, 8, 2)
        self.blocks = nn.Sequential(*(Residual(8) for _ in range(4)))
        self.heads = nn.ModuleDict({task: PooledLinear(8, 3) for task in ("coarse", "fine", "middle")})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        after = []
        for block in self.blocks:
            x = block(x)
            after.append(x)
        leaves = {"coarse": after[1], "fine": after[3], "middle": after[2]}
        return {task: self.heads[task](features) for task, features in leaves.items()}


class Nested(nn.Module):
    """{"det": {"box": [n, 4], "score": [n, 2]}, "aux": ([n, 2], [n, 8, 8, 8])}."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvUnit(3, 8, 2)
        self.body = nn.Sequential(Residual(8), ConvUnit(8, 8, 2))
        self.box = PooledLinear(8, 4)
        self.score = PooledLinear(8, 2)
        self.other_score = PooledLinear(8, 2)
        self.map = nn.Conv2d(8, 8, 1)

    def forward(self, image: Tensor) -> dict[str, dict[str, Tensor] | tuple[Tensor, Tensor]]:
        early = self.stem(image)
        x = self.body(early)
        return {
            "det": {"box": self.box(x), "score": self.score(x)},
            "aux": (self.other_score(early), self.map(x)),
        }


@dataclass
class Estimate:
    """What `AsDataclass` returns: two of [n, 3]."""

    mean: Tensor
    spread: Tensor


torch.export.register_dataclass(Estimate)  # torch.export refuses a dataclass that it was not told of


class AsDataclass(nn.Module):
    """Its outputs are the fields of a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvUnit(3, 8, 2), Residual(8))
        self.mean = PooledLinear(8, 3)
        self.spread = PooledLinear(8, 3)

    def forward(self, image: Tensor) -> Estimate:
        x = self.body(image)
        return Estimate(mean=self.mean(x), spread=self.spread(x))


class Shared(nn.Module):
    """One convolution applied twice in a row at two places, two linear layers of one weight; a tuple of two [n, 3].

    safetensors refuses a state dict with a tensor under two names; `torch.save` takes it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvUnit(3, 8, 2)
        self.mix = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.down = ConvUnit(8, 8, 2)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.left = nn.Linear(8, 3)
        self.right = nn.Linear(8, 3)
        self.right.weight = self.left.weight

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.mix(self.mix(self.stem(image)))
        x = self.pool(self.mix(self.mix(self.down(x))))
        return self.left(x), self.right(self.hidden(x))


class TwoScales(nn.Module):
    """A feature pyramid (arXiv 1612.03144), a head per level: list of [n, 2, 16, 16], [n, 2, 8, 8], [n, 2, 4, 4]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (8, 12, 16)
        self.stem = ConvUnit(3, widths[0], 2)
        self.stages = nn.ModuleList(
            [ConvUnit(widths[0], widths[0], 2), ConvUnit(widths[0], widths[1], 2), ConvUnit(widths[1], widths[2], 2)]
        )
        self.laterals = nn.ModuleList([nn.Conv2d(width, 8, 1) for width in widths])
        self.heads = nn.ModuleList([nn.Conv2d(8, 2, 3, padding=1) for _ in widths])

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image)
        levels = []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        for fine in (1, 0):  # from the coarsest level down
            levels[fine] = levels[fine] + F.interpolate(levels[fine + 1], scale_factor=2.0, mode="nearest")
        return [head(level) for head, level in zip(self.heads, levels, strict=True)]


class ReducedMean(nn.Module):
    """The mean over height and width, written in two ways: {"flat": [n, 3], "kept": [n, 3]}."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvUnit(3, 8, 2), Residual(8))
        self.flat = nn.Linear(8, 3)
        self.kept = nn.Conv2d(8, 3, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.body(image)
        return {"flat": self.flat(x.mean((2, 3))), "kept": self.kept(x.mean((-1, -2), keepdim=True)).flatten(1)}


def unet() -> nn.Module:
    torch.manual_seed(11)
    return _settled(UNet(), INPUTS["unet"])


def vit() -> nn.Module:
    torch.manual_seed(12)
    return _settled(ViT(), INPUTS["vit"])


def two_inputs() -> nn.Module:
    torch.manual_seed(13)
    return _settled(TwoInputs(), INPUTS["two_inputs"])


def depths() -> nn.Module:
    torch.manual_seed(14)
    return _settled(Depths(), INPUTS["depths"])


def nested() -> nn.Module:
    torch.manual_seed(15)
    return _settled(Nested(), INPUTS["nested"])


def as_dataclass() -> nn.Module:
    torch.manual_seed(16)
    return _settled(AsDataclass(), INPUTS["as_dataclass"])


def shared() -> nn.Module:
    torch.manual_seed(17)
    return _settled(Shared(), INPUTS["shared"])


def two_scales() -> nn.Module:
    torch.manual_seed(18)
    return _settled(TwoScales(), INPUTS["two_scales"])


def reduced_mean() -> nn.Module:
    torch.manual_seed(19)
    return _settled(ReducedMean(), INPUTS["reduced_mean"])


def _two_heads(backbone: nn.Module, channels: int) -> nn.Module:
    """Two heads of one shape, so that only numbers tell them apart: {"left": [n, 3], "right": [n, 3]}."""
    return _settled(MultiTaskNet(backbone, channels, {"left": 3, "right": 3}, hidden=16), _MEDIUM)


def vgg16_two_heads() -> nn.Module:
    torch.manual_seed(21)
    return _two_heads(vgg16_features(), VGG16.channels)


def resnet18_two_heads() -> nn.Module:
    torch.manual_seed(22)
    return _two_heads(ResNet18().features, ResNet18.channels)


def mobilenet_v3_small_two_heads() -> nn.Module:
    torch.manual_seed(23)
    return _two_heads(MobileNetV3Small().features, MobileNetV3Small.channels)


def efficientnet_b0_two_heads() -> nn.Module:
    torch.manual_seed(24)
    return _two_heads(EfficientNetB0().features, EfficientNetB0.channels)


def efficientnet_lite0_two_heads() -> nn.Module:
    torch.manual_seed(25)
    return _two_heads(EfficientNetLite0(), EfficientNetLite0.channels)
