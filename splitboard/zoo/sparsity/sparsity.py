"""Makes a network sparse before it is trained: layers give way to layers that have fewer weights.

Dense stay: convolutions of the image itself (one to four channels: little work, and every feature is made from them),
depthwise and other grouped convolutions (sparse already), squeeze-excite (its few weights steer all channels), linear
layers inside of a backbone, and the last linear layer of a head (the classes are few, and it is where the blocks of a
head meet).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from functools import reduce
from math import gcd

import numpy as np
import torch
from torch import nn

from splitboard.contract.errors import UserError
from splitboard.zoo.sparsity.grouped import BlockLinear, GroupedConv2d, ShuffledConv2d
from splitboard.zoo.sparsity.patterns import draw, junction, nearest
from splitboard.zoo.sparsity.scattered import ScatteredConv2d, ScatteredLinear

_IMAGE_CHANNELS = 4
_SQUEEZE_EXCITE = frozenset({"SqueezeExcitation", "SqueezeExcite", "SEModule"})
"""Names of the class here and in torchvision, and in timm."""

_Layer = nn.Conv2d | nn.Linear
_Layers = Mapping[str, _Layer]


@dataclass(frozen=True)
class Grouped:
    """Groups of channels with a fixed shuffle, blocks of linear layers: dense kernels of ``density`` times the work."""


@dataclass(frozen=True)
class Scattered:
    """The papers' structured random pattern with fixed in- and out-degrees; stored packed, no faster.

    Attributes:
        seed: what the patterns are drawn from.
    """

    seed: int = 0


@dataclass(frozen=True)
class Sparsity:
    """Which share of a network's weights exist.

    Attributes:
        backbone: density of the convolutions of the backbone.
        heads: density of the hidden layers of the heads, exits included.
        pattern: which weights these are.
        tasks: whose heads are sparse; none named means all.
        modules: densities of modules of the backbone that differ from it, by path. Early layers have few weights and
            suffer most: ``(("layer1", Fraction(1, 4)),)``. Of two paths the longer one counts.

    Raises:
        UserError: a density is not above 0 and at most 1.
    """

    backbone: Fraction = Fraction(1)
    heads: Fraction = Fraction(1)
    pattern: Grouped | Scattered = Grouped()
    tasks: tuple[str, ...] = ()
    modules: tuple[tuple[str, Fraction], ...] = ()

    def __post_init__(self) -> None:
        for part, density in (("backbone", self.backbone), ("heads", self.heads), *self.modules):
            if not 0 < density <= 1:
                raise UserError(
                    f'density "{density}" of the {part} is not above 0 and at most 1', ["density 1/8", "1 is dense"]
                )


def sparsify(net: nn.Module, sparsity: Sparsity) -> None:
    """Puts sparse layers in the place of dense ones, with new weights from torch's generator.

    Args:
        net: a `MultiTaskNet`: what is not in its ``backbone`` belongs to a head. Changed in place.
        sparsity: what is asked.

    Raises:
        UserError: no degrees give a layer its density; the layer and the nearest densities are named. Or a part that
            shall be sparse has no layer that can be.
    """
    in_backbone, in_heads = sparse_layers(net)
    if sparsity.tasks:
        in_heads = {
            name: layer for name, layer in in_heads.items() if not {*sparsity.tasks}.isdisjoint(name.split("."))
        }
    parts = [*_of_backbone(in_backbone, sparsity), ("heads", in_heads, sparsity.heads)]
    for part, layers, density in parts:
        _check(part, layers, density, sparsity.pattern)
    densities = {name: density for _, layers, density in parts for name in layers}
    for layers in (in_backbone, in_heads):
        if isinstance(sparsity.pattern, Grouped):
            made = _grouped(layers, densities)
        else:
            made = _scattered(layers, densities, sparsity.pattern.seed)
        for name, module in made.items():
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, module)


def _of_backbone(layers: _Layers, sparsity: Sparsity) -> list[tuple[str, _Layers, Fraction]]:
    """The backbone's layers by what has one density: modules with one of their own, and the rest."""
    rest, found = dict(layers), []
    for path, density in sorted(sparsity.modules, key=lambda one: -len(one[0])):
        own = {name: rest.pop(name) for name in layers if name in rest and f"{name}.".startswith(f"backbone.{path}.")}
        if not own:
            known = {"backbone", "heads", *(".".join(name.split(".")[1:n]) for name in layers for n in (2, 3))}
            raise UserError(
                f'the backbone has no layer that can be sparse in "{path}"',
                [f"density {one}={density}" for one in get_close_matches(path, known) or sorted(known)],
            )
        found.append((f'module "{path}"', own, density))
    return [("backbone", rest, sparsity.backbone), *found]


def sparse_layers(net: nn.Module) -> tuple[dict[str, _Layer], dict[str, _Layer]]:
    """The layers that can be sparse by name, in the order of their modules: of the backbone, and of the heads."""
    backbone: dict[str, _Layer] = {}
    heads: dict[str, _Layer] = {}
    excite = tuple(f"{name}." for name, module in net.named_modules() if type(module).__name__ in _SQUEEZE_EXCITE)
    last = {name.rpartition(".")[0]: name for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            dense = module.groups > 1 or module.in_channels <= _IMAGE_CHANNELS or name.startswith(excite)
            if not dense:
                (backbone if name.startswith("backbone.") else heads)[name] = module
        elif isinstance(module, nn.Linear) and not name.startswith("backbone.") and name not in last.values():
            heads[name] = module
    return backbone, heads


def _check(part: str, layers: _Layers, density: Fraction, pattern: Grouped | Scattered) -> None:
    """Refuses a density that some layer of a part cannot have."""
    if density == 1:
        return
    if not layers:
        raise UserError(f'the {part} has no layer that could have density "{density}"', [f"leave the {part} dense: 1"])
    common = reduce(gcd, (number for layer in layers.values() for number in _sides(layer)))
    for name, layer in layers.items():
        inputs, outputs = _sides(layer)
        own = gcd(inputs, outputs)
        if isinstance(pattern, Grouped):
            allowed, near = density.numerator == 1 and own % density.denominator == 0, _nearest_groups(density, common)
            form = f"must be 1/g where g divides {own}"
        else:
            allowed, near = (density * own).denominator == 1, nearest(density, common)
            form = f"must be k/{own}"
        if not allowed:
            raise UserError(
                f'density "{density}" of layer "{name}" ({inputs} to {outputs}) is not admissible: it {form}',
                [f"density {text}: all layers of the {part} allow it" for text in near],
            )


def _sides(layer: _Layer) -> tuple[int, int]:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    return layer.in_features, layer.out_features


def _nearest_groups(density: Fraction, common: int) -> list[str]:
    """The densities ``1 / g`` on both sides of one that is not admissible, ``g`` a divisor of ``common``."""
    allowed = [Fraction(1, g) for g in range(1, common + 1) if common % g == 0]
    above = [one for one in allowed if one > density][-1:]
    below = [one for one in allowed if one < density][:1]
    return [str(one) for one in (*above, *below)]


def _grouped(layers: _Layers, densities: Mapping[str, Fraction]) -> dict[str, nn.Module]:
    """Every other convolution shuffles. A 1x1 with a stride projects a shortcut beside the chain: it does not count."""
    made: dict[str, nn.Module] = {}
    shuffles = False
    for name, layer in layers.items():
        groups = densities[name].denominator
        if groups == 1:
            continue
        if isinstance(layer, nn.Linear):
            made[name] = BlockLinear(layer.in_features, layer.out_features, groups, layer.bias is not None)
        elif _projects(layer.kernel_size, layer.stride):
            made[name] = GroupedConv2d(layer, groups)
        else:
            made[name] = ShuffledConv2d(layer, groups) if shuffles else GroupedConv2d(layer, groups)
            shuffles = not shuffles
    return made


def _projects(kernel: Sequence[int], stride: Sequence[int]) -> bool:
    return max(kernel) == 1 and max(stride) > 1


def _scattered(layers: _Layers, densities: Mapping[str, Fraction], seed: int) -> dict[str, nn.Module]:
    """A layer's pattern depends on the seed and the layer's name alone."""
    made: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        density = densities[name]
        if density == 1:
            continue
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        pattern = torch.from_numpy(draw(junction(*_sides(layer), density), generator))
        if isinstance(layer, nn.Linear):
            made[name] = ScatteredLinear(pattern, layer.in_features, layer.bias is not None)
        else:
            made[name] = ScatteredConv2d(pattern, layer)
    return made
