"""Feature extractors by name: those written here, and those of timm and torchvision where they are installed."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from splitboard.contract.errors import UserError
from splitboard.zoo.efficientnet import EfficientNetB0
from splitboard.zoo.efficientnet_lite import EfficientNetLite0
from splitboard.zoo.mobilenet_v3 import MobileNetV3Small
from splitboard.zoo.resnet import ResNet18
from splitboard.zoo.vgg import vgg16_bn_features, vgg16_features

_OWN: dict[str, Callable[[], nn.Module]] = {
    "vgg16": vgg16_features,
    "vgg16-bn": vgg16_bn_features,
    "resnet18": lambda: ResNet18().features,
    "mobilenet-v3-small": lambda: MobileNetV3Small().features,
    "efficientnet-b0": lambda: EfficientNetB0().features,
    "efficientnet-lite0": EfficientNetLite0,
}
OWN = tuple(_OWN)
"""Names of the backbones that are written here."""


def make(name: str) -> nn.Module:
    """A feature extractor with random weights from torch's generator: ``[n, 3, h, w]`` to ``[n, c, h', w']``.

    Args:
        name: one of `OWN`, ``timm:NAME`` or ``torchvision:NAME``.

    Raises:
        UserError: there is no such network, it has no feature map, or the package is not installed.
    """
    package, separator, theirs = name.partition(":")
    if name in _OWN:
        return _OWN[name]()
    if separator and package == "timm":
        return _timm(theirs)
    if separator and package == "torchvision":
        return _torchvision(theirs)
    raise UserError(
        f'unknown backbone "{name}"', [", ".join(OWN), "timm:NAME or torchvision:NAME, where that package is installed"]
    )


def load_weights(backbone: nn.Module, published: Mapping[str, Tensor], source: str) -> None:
    """Fills a backbone from a state dict of a whole classifier, of its features, or of a network of ours.

    Args:
        backbone: from `make`, in place. It must be dense: published weights have no sparse counterpart.
        published: weights by name; those of a classifier or of task heads are left out.
        source: what an error calls them.

    Raises:
        UserError: a weight is missing or has another shape.
    """
    wanted = backbone.state_dict()
    prefix = next((one for one in ("backbone.", "features.", "") if _begins(one, wanted, published)), "")
    found = {key: published[prefix + key] for key in wanted if prefix + key in published}
    for key, value in wanted.items():
        if key not in found:
            raise UserError(f'"{source}" has no weight "{prefix}{key}", which the backbone needs', _WEIGHT_TRIES)
        if found[key].shape != value.shape:
            raise UserError(
                f'"{prefix}{key}" of "{source}" is {list(found[key].shape)}, in the backbone {list(value.shape)}',
                _WEIGHT_TRIES,
            )
    backbone.load_state_dict(found)


_WEIGHT_TRIES = [
    "give weights of the same architecture, with torchvision's names",
    "leave the backbone dense: published weights do not fit a sparse one",
]


def _begins(prefix: str, wanted: Mapping[str, Tensor], published: Mapping[str, Tensor]) -> bool:
    return prefix + next(iter(wanted)) in published


def _timm(name: str) -> nn.Module:
    """A network of timm, which returns its last feature map where it is asked for no classes and no pool."""
    timm = _package("timm", f"timm:{name}")
    try:
        made: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, global_pool="")
    except (RuntimeError, TypeError) as error:
        raise _unknown("timm", name, timm.list_models(), error) from error
    if getattr(made, "output_fmt", "NCHW") != "NCHW":
        raise _no_map("timm", name)
    return made


def _torchvision(name: str) -> nn.Module:
    """A classifier of torchvision without its classifier."""
    models = _package("torchvision.models", f"torchvision:{name}")
    try:
        made: nn.Module = models.get_model(name, weights=None)
    except (ValueError, TypeError) as error:
        raise _unknown("torchvision", name, models.list_models(module=models), error) from error
    parts = dict(made.named_children())
    if "features" in parts and "permute" not in parts:  # what permutes has its channels last
        return parts["features"]
    if "layer4" in parts and "fc" in parts:
        return nn.Sequential(OrderedDict((key, part) for key, part in parts.items() if key not in ("avgpool", "fc")))
    raise _no_map("torchvision", name)


def _package(module: str, backbone: str) -> Any:
    name = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f'the backbone "{backbone}" needs the package {name}', [f"pip install {name}"]) from error


def _unknown(package: str, name: str, known: Sequence[str], error: Exception) -> UserError:
    near = get_close_matches(name, known, n=3)
    if name in known:
        return UserError(f'{package} cannot make "{name}": {error}', [f"another network of {package}"])
    return UserError(
        f'{package} has no network "{name}"',
        [f"{package}:{one}" for one in near] or [f"the names that {package} lists: {package}.list_models()"],
    )


def _no_map(package: str, name: str) -> UserError:
    return UserError(
        f'"{package}:{name}" has no feature map [n, c, h, w] that heads could take',
        ["a convolutional network", ", ".join(OWN)],
    )
