"""The networks that are trained on ELPV: made and trained as their recipes say, and written so that they export."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from export.model import load_model
from export.reference import reference_session
from export.spec import read_spec
from splitboard.cli.main import run
from splitboard.cli.train import train_elpv, train_reference
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import normalise, prepare
from splitboard.zoo import elpv
from splitboard.zoo.mobilenet_v3 import MobileNetV3Small
from splitboard.zoo.multitask import MultiTaskNet
from splitboard.zoo.resnet import ResNet18
from splitboard.zoo.training import Recipe, Stage, train

ZOO = Path(elpv.__file__).parent
FEW = 32


@pytest.mark.parametrize("name", elpv.REFERENCES)
def test_the_spec_is_what_the_network_is_deployed_with(name: str) -> None:
    reference = elpv.REFERENCES[name]
    spec = read_spec(ZOO / reference.spec)
    assert spec.preprocessing == reference.preprocessing
    assert spec.labels == elpv.TASKS
    assert spec.preprocessing.height == reference.recipe.stages[-1].size


@pytest.mark.parametrize(
    ("name", "backbone"), [("mobilenet-v3-small", MobileNetV3Small), ("resnet18", ResNet18)], ids=["v3", "resnet18"]
)
def test_the_first_weights_are_those_of_the_seed(name: str, backbone: type[MobileNetV3Small] | type[ResNet18]) -> None:
    """The order in which random numbers are drawn is part of a recipe: the whole network first, then the heads."""
    torch.manual_seed(0)
    net = backbone()
    expected = MultiTaskNet(net.features, backbone.channels, {"defect": 2, "cell_type": 2}).state_dict()
    torch.manual_seed(0)
    found = elpv.REFERENCES[name].make().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.fixture(scope="module")
def small() -> elpv.Elpv:
    """The first 32 images of each part."""
    data = elpv.load()

    def few(part: elpv.Part) -> elpv.Part:
        labels = {task: values[:FEW] for task, values in part.labels.items()}
        return elpv.Part(part.images[:FEW], labels, part.defect_probability[:FEW], part.hashes[:FEW])

    return elpv.Elpv(few(data.train), few(data.calibration), few(data.test))


def test_what_is_trained_is_written_and_evaluated(small: elpv.Elpv, tmp_path: Path) -> None:
    """MobileNetV3-small for two steps, against the same steps written out here."""
    recipe = Recipe(stages=(Stage(2, 64),), learning_rate=1e-3, threads=1)
    reference = replace(elpv.REFERENCES["mobilenet-v3-small"], recipe=recipe)
    target = tmp_path / "net.safetensors"
    made = train_reference(reference, small, target)

    torch.manual_seed(0)
    expected = elpv.mobilenet_v3_small()
    targets = elpv.soft_targets(small.train)
    train(expected, small.train.images, targets, lambda p: p.expand(-1, 3, -1, -1) * 2 - 1, recipe, lambda *_: None)
    found = load_file(target)
    for key, value in expected.state_dict().items():
        wanted = value.half() if value.is_floating_point() else value
        torch.testing.assert_close(found[key], wanted, rtol=2e-3, atol=2e-5)  # (p - mean) / std rounds otherwise

    model = elpv.mobilenet_v3_small()
    model.load_state_dict(found)
    spec = reference.preprocessing
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(normalise(prepare(small.test.images, spec), spec)))
    for task, result in made.tasks.items():
        right = np.mean(logits[task].argmax(1).numpy() == small.test.labels[task])
        assert result.accuracy == pytest.approx(right)
    assert made.checkpoint_sha256 == hashlib.sha256(target.read_bytes()).hexdigest()


def test_the_command_that_it_names_exports_it(small: elpv.Elpv, tmp_path: Path) -> None:
    reference = replace(elpv.REFERENCES["resnet18"], recipe=Recipe(stages=(Stage(1, 128),), batch=16, threads=1))
    target = tmp_path / "net.safetensors"
    made = train_reference(reference, small, target)
    program, verb, *arguments = shlex.split(made.export)
    assert program == "splitboard"
    assert run([verb, *arguments, "--json"]) == 0
    exported = load_model(tmp_path / "net.model")
    assert exported.info.declared() == reference.preprocessing
    assert {task.name: task.labels for task in exported.info.tasks} == elpv.TASKS

    model = elpv.resnet18()
    model.load_state_dict(load_file(target))
    inputs = normalise(prepare(small.test.images[:1], reference.preprocessing), reference.preprocessing)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(inputs))
    found = reference_session(exported.graph.model).run(list(elpv.TASKS), {exported.graph.inputs[0]: inputs})
    for task, value in zip(elpv.TASKS, found, strict=True):
        np.testing.assert_allclose(value, expected[task].numpy(), atol=1e-4 * float(expected[task].abs().max()))


def test_a_spec_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[preprocessing]\n")
    with pytest.raises(UserError, match=r"mine\.toml"):
        train_elpv("resnet18", tmp_path / "mine.safetensors")


def test_an_unknown_backbone_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match='"resnet50"') as caught:
        train_elpv("resnet50", Path("net.safetensors"))
    assert "--backbone resnet18" in caught.value.tries
