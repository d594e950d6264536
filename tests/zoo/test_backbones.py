"""The reference backbones against torchvision, and the small test models against what they promise.

``torchvision_parameters.json`` was written from torchvision 0.28.0 (BSD 3-Clause; names, shapes and results, no code):
for each of its models the shape of every entry of the state dict, and eight logits, every 125th, of the image and the
weights that `uniform` and `filled` make below, in evaluation mode.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree  # torch's own walk through nested outputs; there is no public one

from splitboard.contract.errors import UserError
from splitboard.zoo import backbones
from splitboard.zoo.efficientnet import EfficientNetB0, StochasticDepth
from splitboard.zoo.mobilenet_v3 import MobileNetV3Small
from splitboard.zoo.multitask import MultiTaskNet
from splitboard.zoo.resnet import ResNet18
from splitboard.zoo.vgg import VGG16, VGG16BN

Backbone = type[VGG16] | type[ResNet18] | type[MobileNetV3Small] | type[EfficientNetB0]

BACKBONES: dict[str, Backbone] = {
    "vgg16": VGG16,
    "vgg16_bn": VGG16BN,
    "resnet18": ResNet18,
    "mobilenet_v3_small": MobileNetV3Small,
    "efficientnet_b0": EfficientNetB0,
}
OWN_NAMES = {name: name.replace("_", "-") for name in BACKBONES}
"""What `splitboard.zoo.backbones` calls them."""

TORCHVISION = json.loads((Path(__file__).parent / "torchvision_parameters.json").read_text())
PERIOD = 65_537
"""A prime, so that no two rows of a weight begin at the same value."""


@pytest.fixture(autouse=True, scope="module")
def unhurried() -> Iterator[None]:
    with families.unhurried():
        yield


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers from -1 to 1, float32: the first `PERIOD` of numpy's frozen generator, seeded by the name, and again."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    values = random.uniform(-1, 1, min(PERIOD, math.prod(shape))).astype(np.float32)
    return torch.from_numpy(np.resize(values, shape))


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weight of this name: deterministic, and such that activations neither vanish nor explode."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.tensor(0)
    numbers = uniform(name, shape)
    if leaf in ("bias", "running_mean"):
        return 0.5 * numbers
    if len(shape) == 1:  # a batch norm's weight and its variance, which is positive
        return 1 + 0.5 * numbers
    return numbers * math.sqrt(6 / math.prod(shape[1:]))  # He's bound


def reference_model(name: str) -> nn.Module:
    """Our network with the deterministic weights, without the time for random ones."""
    with torch.device("meta"):
        model = BACKBONES[name]()
    weights = {key: filled(key, tuple(shape)) for key, shape in TORCHVISION[name]["shapes"].items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


@pytest.mark.parametrize("name", BACKBONES)
def test_names_and_shapes_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        state = BACKBONES[name]().state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == TORCHVISION[name]["shapes"]


@pytest.mark.parametrize("name", BACKBONES)
def test_results_are_torchvisions(name: str) -> None:
    with torch.no_grad():
        logits = reference_model(name)(uniform("image", (1, 3, 64, 64)))
    expected = torch.tensor(TORCHVISION[name]["logits"])
    assert logits.shape == (1, 1000)
    torch.testing.assert_close(logits[0, ::125], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", BACKBONES)
def test_the_classifier_has_the_asked_length(name: str) -> None:
    with torch.device("meta"):
        last = list(BACKBONES[name](num_classes=7).state_dict().values())[-1]
    assert last.shape == (7,)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_takes_heads_and_keeps_its_names(name: str) -> None:
    """As in MTL-Split: all that comes before the classifier, whose published weights fit by name."""
    with torch.device("meta"):
        whole = BACKBONES[name]()
        net = MultiTaskNet(whole.features, BACKBONES[name].channels, {"age": 9, "gender": 2})
        found = net(torch.empty(2, 3, 96, 64))
    assert {task: value.shape for task, value in found.items()} == {"age": (2, 9), "gender": (2, 2)}
    prefix = "" if name == "resnet18" else "features."
    assert {prefix + key for key in net.backbone.state_dict()} == {
        key for key in TORCHVISION[name]["shapes"] if not key.startswith(("classifier.", "fc."))
    }


@pytest.mark.parametrize("name", BACKBONES)
def test_weights_of_a_classifier_its_features_or_a_network_of_ours_fill_a_backbone(name: str) -> None:
    published = {key: filled(key, tuple(shape)) for key, shape in TORCHVISION[name]["shapes"].items()}
    inner = "" if name == "resnet18" else "features."
    features = {key.removeprefix(inner): value for key, value in published.items() if key.startswith(inner)}
    with torch.device("meta"):
        backbone = backbones.make(OWN_NAMES[name])
    for given in (published, features, {f"backbone.{key}": value for key, value in features.items()}):
        backbone.to_empty(device="cpu")
        backbones.load_weights(backbone, {**given, "heads.age.0.weight": torch.zeros(3, 3)}, "weights")
        state = backbone.state_dict()
        assert state.keys() == {key for key in features if not key.startswith(("fc.", "classifier."))}
        assert all(torch.equal(value, features[key]) for key, value in state.items())


def test_weights_of_another_architecture_are_refused() -> None:
    with torch.device("meta"):
        vgg, other = VGG16().state_dict(), backbones.make("resnet18")
    with pytest.raises(UserError, match=r'"vgg\.safetensors" has no weight "conv1\.weight"'):
        backbones.load_weights(other, vgg, "vgg.safetensors")
    wide = {**other.state_dict(), "layer4.0.conv1.weight": torch.zeros(512, 128, 3, 3)}
    with pytest.raises(UserError, match=r'"layer4\.0\.conv1\.weight" .* \[512, 128, 3, 3\], .* \[512, 256, 3, 3\]'):
        backbones.load_weights(other, wide, "wide.safetensors")


FOREIGN = {"timm:resnet18": "resnet18", "torchvision:resnet18": "resnet18", "torchvision:vgg16_bn": "vgg16_bn"}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_network_of_another_package_is_what_its_twin_here_is(name: str) -> None:
    package = name.partition(":")[0]
    try:
        importlib.import_module(package)
    except (ImportError, RuntimeError) as error:  # torchvision's operators want the very build of torch
        pytest.skip(f"{package} cannot be imported: {error}")
    twin = FOREIGN[name]
    theirs = backbones.make(name).eval()
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    inner = "" if twin == "resnet18" else "features."
    weights = {key: filled(inner + key, shape) for key, shape in shapes.items()}
    theirs.load_state_dict(weights)
    ours = backbones.make(OWN_NAMES[twin]).eval()
    ours.load_state_dict(weights)
    image = uniform("image", (1, 3, 64, 64))
    with torch.no_grad():
        torch.testing.assert_close(theirs(image), ours(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_a_package_that_is_not_installed_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = name.partition(":")[0]
    monkeypatch.setitem(sys.modules, package, None)  # as Python itself marks what cannot be imported
    monkeypatch.delitem(sys.modules, f"{package}.models", raising=False)
    with pytest.raises(UserError, match=f'"{name}" needs the package {package}') as caught:
        backbones.make(name)
    assert f"pip install {package}" in caught.value.tries


def test_stochastic_depth_drops_whole_branches_and_keeps_the_mean() -> None:
    layer = StochasticDepth(0.25)
    x = torch.ones(4000, 2, 3)
    torch.manual_seed(0)
    branches = layer(x).flatten(1)
    assert torch.equal(branches, branches[:, :1].expand_as(branches))
    assert branches.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(branches.mean()) == pytest.approx(1, abs=0.05)
    assert layer.eval()(x) is x


# The small models

STRUCTURES: dict[str, Any] = {
    "unet": {"depth": (1, 1, 32, 32), "seg": (1, 4, 32, 32)},
    "vit": ((1, 5), (1, 5)),
    "two_inputs": {"kind": (1, 4), "state": (1, 4)},
    "depths": {"coarse": (1, 3), "fine": (1, 3), "middle": (1, 3)},
    "nested": {"det": {"box": (1, 4), "score": (1, 2)}, "aux": ((1, 2), (1, 8, 8, 8))},
    "as_dataclass": families.Estimate(mean=(1, 3), spread=(1, 3)),  # type: ignore[arg-type]
    "shared": ((1, 3), (1, 3)),
    "two_scales": [(1, 2, 16, 16), (1, 2, 8, 8), (1, 2, 4, 4)],
    "reduced_mean": {"flat": (1, 3), "kept": (1, 3)},
    "vgg16_two_heads": {"left": (1, 3), "right": (1, 3)},
    "resnet18_two_heads": {"left": (1, 3), "right": (1, 3)},
    "mobilenet_v3_small_two_heads": {"left": (1, 3), "right": (1, 3)},
    "efficientnet_b0_two_heads": {"left": (1, 3), "right": (1, 3)},
    "efficientnet_lite0_two_heads": {"left": (1, 3), "right": (1, 3)},
}


@pytest.fixture(scope="module", params=STRUCTURES)
def family(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, getattr(families, request.param)()


def sample(name: str, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.rand(shape, generator=generator) * 2 - 1 for key, shape in families.INPUTS[name].items()}


def test_a_family_has_the_structure_that_it_promises(family: tuple[str, nn.Module]) -> None:
    name, model = family
    with torch.no_grad():
        outputs = model(**sample(name, 1))
    found = pytree.tree_map(lambda value: tuple(value.shape), outputs)
    assert repr(found) == repr(STRUCTURES[name])  # with the order of a dict's keys


def test_every_output_of_a_family_tells_images_and_heads_apart(family: tuple[str, nn.Module]) -> None:
    """So that a wrong weight or two swapped outputs show in the numbers."""
    name, model = family
    with torch.no_grad():
        first = pytree.tree_leaves(model(**sample(name, 1)))
        for key in families.INPUTS[name]:
            other = pytree.tree_leaves(model(**{**sample(name, 1), key: sample(name, 2)[key]}))
            for one, two in zip(first, other, strict=True):
                assert float((one - two).abs().max()) > 1e-2 * float(one.abs().max()), key
    for one, two in itertools.combinations(first, 2):
        assert one.shape != two.shape or float((one - two).abs().max()) > 1e-1 * float(one.abs().max())


def test_a_family_is_the_same_network_every_time(family: tuple[str, nn.Module]) -> None:
    name, model = family
    again = getattr(families, name)()
    state, other = model.state_dict(), again.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)
    assert not model.training


def test_no_batch_norm_of_a_family_is_a_fresh_one(family: tuple[str, nn.Module]) -> None:
    """Folding such a layer away would be no test of folding."""
    for norm in family[1].modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values, fresh in ((norm.running_mean, 0), (norm.running_var, 1), (norm.weight, 1), (norm.bias, 0)):
                assert values is not None
                assert float((values - fresh).abs().max().detach()) > 1e-2


def test_the_families_are_all_there() -> None:
    """As the ones that the tests loop over, and what is shared in `shared` is one object."""
    assert families.INPUTS.keys() == STRUCTURES.keys()
    model = families.shared()
    assert model.get_parameter("left.weight") is model.get_parameter("right.weight")
