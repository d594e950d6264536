"""Networks made from data: heads, early exits, the order of random numbers, and what is refused."""

from __future__ import annotations

import ast
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from splitboard.contract.errors import UserError
from splitboard.zoo import elpv, networks
from splitboard.zoo.efficientnet_lite import EfficientNetLite0
from splitboard.zoo.mobilenet_v3 import MobileNetV3Small
from splitboard.zoo.multitask import ExitAt, Flat, MultiTaskNet, Output, Pooled
from splitboard.zoo.networks import Network
from splitboard.zoo.resnet import ResNet18
from splitboard.zoo.sparsity import Grouped, Scattered, Sparsity

CLASSES = (("age", 9), ("gender", 2))
RESNET = Network("resnet18", CLASSES, 64)


def head(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Both layers of a head, written out; dropout is nothing in evaluation."""
    hidden = F.relu(F.linear(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"]))
    return F.linear(hidden, state[f"{name}.3.weight"], state[f"{name}.3.bias"])


@pytest.mark.parametrize("kind", [Pooled(24), Flat(24)], ids=["pooled", "flat"])
def test_heads_and_exits_are_what_the_papers_say(kind: Pooled | Flat) -> None:
    exits = (ExitAt("layer2", hidden=16), ExitAt("layer3.0", weight=0.1, hidden=16))
    net = networks.make(replace(RESNET, head=kind, exits=exits)).eval()
    state, image = net.state_dict(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found = net(image)
        layer = {"": image}
        for name, module in net.backbone.named_children():
            layer[name] = module(layer[list(layer)[-1]]).clone()
        maps = {"layer2": layer["layer2"], "layer3_0": net.backbone.get_submodule("layer3.0")(layer["layer2"].clone())}
        last = layer["layer4"].flatten(1) if isinstance(kind, Flat) else layer["layer4"].mean((2, 3))
        expected = {task: head(state, f"heads.{task}", last) for task, _ in CLASSES}
        for place, taken in maps.items():
            for task, _ in CLASSES:
                expected[f"{task}_exit_{place}"] = head(state, f"exits.{place}.{task}", taken.mean((2, 3)))
    assert list(found) == list(expected) == [one.name for one in net.outputs]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    assert {one.weight for one in net.outputs} == {1.0, 0.3, 0.1}
    assert net.outputs[4] == Output("age_exit_layer3_0", "age", 0.1)


def test_exits_and_sparse_heads_of_some_tasks() -> None:
    exits = (ExitAt("layer2", tasks=("gender",)),)
    sparse = Sparsity(heads=Fraction(1, 8), tasks=("age",))
    net = networks.make(replace(RESNET, exits=exits, sparsity=sparse)).eval()
    with torch.no_grad():
        found = net(torch.rand(1, 3, 64, 64))
    assert {name: value.shape[1] for name, value in found.items()} == {"age": 9, "gender": 2, "gender_exit_layer2": 2}
    state = net.state_dict()
    assert state["heads.age.0.weight"].numel() * 8 == state["heads.gender.0.weight"].numel()
    assert state["exits.layer2.gender.0.weight"].shape == (64, 128)


def test_the_repr_is_an_expression_of_the_same_network() -> None:
    network = Network(
        "vgg16", CLASSES, 96, Flat(64), (ExitAt("9", 0.2),), Sparsity(Fraction(1, 8), Fraction(1, 16), Scattered(3))
    )
    names = {one.__name__: one for one in (Network, Flat, Pooled, ExitAt, Sparsity, Fraction, Grouped, Scattered)}
    assert ast.parse(repr(network), mode="eval")
    assert eval(repr(network), names) == network


@pytest.mark.parametrize(
    ("name", "backbone"), [("mobilenet-v3-small", MobileNetV3Small), ("resnet18", ResNet18)], ids=["v3", "resnet18"]
)
def test_the_first_weights_are_those_of_the_seed(name: str, backbone: type[MobileNetV3Small] | type[ResNet18]) -> None:
    """The order in which random numbers are drawn is part of a recipe: the whole backbone first, then the heads."""
    torch.manual_seed(0)
    net = backbone()
    expected = MultiTaskNet(net.features, backbone.channels, dict(CLASSES)).state_dict()
    torch.manual_seed(0)
    found = networks.make(Network(name, CLASSES, 64)).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_the_shipped_weights_fit() -> None:
    """Those of the demo, in the demo's network and in the same one made by name."""
    state = load_file(Path(elpv.__file__).with_name("elpv_lite0.safetensors"))
    named = networks.make(Network("efficientnet-lite0", tuple((t, len(n)) for t, n in elpv.TASKS.items()), 64)).eval()
    demo = elpv.lite0().eval()
    image = torch.rand(1, 3, 64, 64)
    for net in (named, demo):
        net.load_state_dict(state)
    with torch.no_grad():
        one, two = named(image), demo(image)
    assert all(torch.equal(one[task], two[task]) for task in elpv.TASKS)
    assert isinstance(demo.backbone, EfficientNetLite0)


def test_a_sparse_network_has_fewer_weights_in_both_parts() -> None:
    dense = networks.make(RESNET)
    sparse = networks.make(replace(RESNET, sparsity=Sparsity(Fraction(1, 4), Fraction(1, 8))))

    def count(net: MultiTaskNet, path: str) -> int:
        return sum(p.numel() for p in net.get_submodule(path).parameters() if p.ndim > 1)

    assert count(sparse, "backbone.layer4") * 4 == count(dense, "backbone.layer4")
    assert count(sparse, "heads.age.0") * 8 == count(dense, "heads.age.0")
    assert sparse(torch.rand(2, 3, 64, 64))["age"].shape == (2, 9)


@pytest.mark.parametrize(
    ("network", "said", "tried"),
    [
        (Network("resnet50", CLASSES, 64), '"resnet50"', "resnet18"),
        (Network("keras:x", CLASSES, 64), '"keras:x"', "timm:NAME"),
        (Network("vgg16", CLASSES, 16), '"16x16"', "larger"),
        (replace(RESNET, exits=(ExitAt("layer2", tasks=("size",)),)), '"size"', "age, gender"),
        (replace(RESNET, sparsity=Sparsity(heads=Fraction(1, 8), tasks=("size",))), '"size"', "age, gender"),
        (replace(RESNET, exits=(ExitAt("layr2"),)), '"layr2"', "layer2"),
        (replace(RESNET, exits=(ExitAt("layer2"), ExitAt("layer2"))), '"layer2"', "one exit"),
        (replace(RESNET, sparsity=Sparsity(Fraction(1, 3))), '"1/3"', "1/4"),
    ],
    ids=["backbone", "package", "size", "task of an exit", "task of a head", "place", "twice", "density"],
)
def test_what_cannot_be_made_is_refused(network: Network, said: str, tried: str) -> None:
    with pytest.raises(UserError) as caught:
        networks.make(network)
    assert said in caught.value.message
    assert any(tried in line for line in caught.value.tries)
