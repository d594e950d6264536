"""``splitboard train``: options, what is written, that it exports and answers the same, and interruptions."""

from __future__ import annotations

import hashlib
import json
import shlex
import signal
import sys
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sklearn.metrics import balanced_accuracy_score, recall_score

from export.model import load_model
from export.reference import reference_session
from export.spec import read_spec
from splitboard.cli.main import run
from splitboard.cli.train import check_target, train_and_write
from splitboard.cli.train_files import spec_text
from splitboard.cli.train_options import Training, TrainRequest, network_name, training
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import Preprocessing, normalise, prepare
from splitboard.zoo import elpv, networks
from splitboard.zoo.data import elpv as elpv_data
from splitboard.zoo.data import shapes
from splitboard.zoo.data.dataset import DataSet, Images, Part, StoredImages
from splitboard.zoo.multitask import ExitAt, Flat, Output
from splitboard.zoo.networks import Network
from splitboard.zoo.sparsity import Scattered, Sparsity
from splitboard.zoo.training import CELLS, Device, Recipe, Stage, Sum, Uncertainty, fit

ZOO = Path(elpv.__file__).parent
QUICK = Recipe(stages=(Stage(2, 32),), batch=16, learning_rate=2e-3, threads=1)


@pytest.fixture(scope="module")
def small() -> DataSet:
    """A few rendered shapes."""
    return shapes.load(size=32, n_train=48, n_validation=16, n_test=24)


def asked(data: DataSet, network: Network | None = None, recipe: Recipe = QUICK) -> Training:
    classes = tuple((task, len(names)) for task, names in data.classes.items())
    return Training(data, data.classes, network or Network("mobilenet-v3-small", classes, 32), recipe, None)


@pytest.fixture(scope="module")
def cells() -> DataSet:
    """Solar cells."""
    return elpv_data.load()


# What is written


def test_what_is_trained_is_written_and_evaluated(
    small: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = asked(small)
    target = tmp_path / "net.safetensors"
    made = train_and_write(wanted, target, tmp_path / "net.checkpoint")
    # 0.99 to the power of 6; and 299 steps of 3 an epoch until less than a twentieth is left
    assert "warning: 6 steps leave 94% of batch normalisation's statistics" in (said := capsys.readouterr().err)
    assert "Try: --epochs 100 or more" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.py", "net.safetensors", "net.toml"]
    assert made.checkpoint_sha256 == hashlib.sha256(target.read_bytes()).hexdigest()

    torch.manual_seed(QUICK.seed)
    expected = networks.make(wanted.network)
    fit(expected, small, QUICK, lambda *_: None, device=Device())
    found = load_file(target)
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(found[key], value.half() if value.is_floating_point() else value, rtol=0, atol=0)

    model = networks.make(wanted.network)
    model.load_state_dict(found)
    spec = QUICK.preprocessing(3)
    pixels = small.test.images.read(np.arange(24))
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(normalise(prepare(pixels, spec), spec)))
    for task, result in made.tasks.items():
        truth, guess = small.test.labels[task], logits[task].argmax(1).numpy()
        present = [one for one in range(len(small.classes[task])) if one in truth]
        recalls = recall_score(truth, guess, labels=present, average=None)
        assert result.accuracy == pytest.approx(np.mean(guess == truth))
        assert list(result.recall) == [small.classes[task][one] for one in present]
        assert list(result.recall.values()) == pytest.approx(recalls)
        assert result.balanced_accuracy == pytest.approx(float(np.mean(recalls)))
        if set(guess) <= set(truth):
            assert result.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, guess))


def test_the_command_that_it_names_exports_it_with_its_exits(small: DataSet, tmp_path: Path) -> None:
    classes = tuple((task, len(names)) for task, names in small.classes.items())
    network = Network(
        "resnet18", classes, 32, Flat(32), (ExitAt("layer1"), ExitAt("layer2.0")), Sparsity(Fraction(1, 4))
    )
    target = tmp_path / "with space" / "net.safetensors"
    made = train_and_write(asked(small, network, replace(QUICK, stages=(Stage(1, 32),))), target, tmp_path / "k")
    program, verb, *arguments = shlex.split(made.export)
    assert program == "splitboard"
    assert run([verb, *arguments, "--json"]) == 0
    exported = load_model(target.with_suffix(".model"))
    assert exported.info.declared() == QUICK.preprocessing(3)
    assert {task.name: task.labels for task in exported.info.tasks} == small.classes
    assert {one.output: (one.task, one.scope) for one in exported.info.exits} == {
        "scale_exit_layer1": ("scale", "backbone.layer1.1"),
        "shape_exit_layer1": ("shape", "backbone.layer1.1"),
        "scale_exit_layer2_0": ("scale", "backbone.layer2.0"),
        "shape_exit_layer2_0": ("shape", "backbone.layer2.0"),
    }
    model = networks.make(network)
    model.load_state_dict(load_file(target))
    spec = QUICK.preprocessing(3)
    inputs = normalise(prepare(small.test.images.read(np.arange(1)), spec), spec)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(inputs))
    session = reference_session(onnx.load(target.with_suffix(".model") / "model.onnx"))
    for name, value in zip(expected, session.run(list(expected), {"image": inputs}), strict=True):
        np.testing.assert_allclose(value, expected[name].numpy(), atol=1e-4 * float(expected[name].abs().max()))


def test_a_number_too_large_for_float16_is_kept(small: DataSet, tmp_path: Path) -> None:
    from splitboard.cli.train import _stored

    values = torch.tensor([1.0, 70_000.0])
    assert torch.equal(_stored(values), values)
    assert _stored(values[:1]).dtype == torch.float16
    assert _stored(torch.tensor([3])).dtype == torch.int64


def test_the_spec_reads_as_what_it_was_written_of(tmp_path: Path) -> None:
    preprocessing = Preprocessing(96, 96, 1, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    classes = {"kind": ('a "quoted" one', "ein Müller", "c:\\d")}
    outputs = (Output("kind", "kind"), Output("kind_exit_layer2", "kind", 0.3))
    path = tmp_path / "net.toml"
    path.write_text(spec_text(preprocessing, classes, outputs), encoding="utf-8")
    spec = read_spec(path)
    assert (spec.preprocessing, spec.labels, spec.exits) == (preprocessing, classes, {"kind_exit_layer2": "kind"})


# ELPV


def test_a_few_steps_on_real_images_through_the_command(
    cells: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three batches of solar cells, with augmentation: the steps are those of `fit` on the packaged data."""
    target = tmp_path / "cells.safetensors"
    options = ["--backbone", "mobilenet-v3-small", "--size", "32", "--epochs", "1", "--batch", "512", "--threads", "1"]
    assert run(["train", "elpv", *options, "--exit", "4=0.2", "-o", str(target), "--json"]) == 0
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert list(made["tasks"]) == ["defect", "cell_type", "defect_exit_4", "cell_type_exit_4"]
    assert sum(made["tasks"]["defect"]["n"].values()) == len(cells.test.images)
    assert made["parts"] == {part: getattr(cells, part).sha256 for part in ("train", "validation", "test")}

    torch.manual_seed(0)
    classes = tuple((task, len(names)) for task, names in elpv.TASKS.items())
    expected = networks.make(Network("mobilenet-v3-small", classes, 32, exits=(ExitAt("4", 0.2),)))
    recipe = replace(elpv.RECIPES["mobilenet-v3-small"], stages=(Stage(1, 32),), batch=512)
    steps: list[int] = []
    fit(expected, cells, recipe, lambda done, *_: steps.append(done), device=Device())
    assert steps == [1, 2, 3]
    found = load_file(target)
    assert all(torch.equal(found[key].float(), value.half().float()) for key, value in expected.state_dict().items())


def test_the_recipe_of_the_shipped_weights_is_what_it_was(cells: DataSet) -> None:
    """Everything that the model card names; the parts are those of the card too (`test_elpv`)."""
    made = training(TrainRequest("elpv"))
    assert made.network == Network("efficientnet-lite0", (("defect", 2), ("cell_type", 2)), 224)
    assert made.recipe == Recipe(
        stages=(Stage(12, 160), Stage(14, 224)), batch=32, learning_rate=1.5e-3, weight_decay=0.05,
        average_decay=0.995, seed=0, threads=2, augmentation=CELLS, weighting=Sum(), warm_up=0.15,
    )  # fmt: skip
    assert made.recipe.preprocessing(1) == elpv.PREPROCESSING == read_spec(ZOO / "elpv.toml").preprocessing
    assert made.data.train.sha256 == cells.train.sha256


# Options


def test_options_become_a_network_and_a_recipe() -> None:
    made = training(
        TrainRequest(
            "shapes",
            backbone="vgg16",
            size=48,
            tasks="shape, floor_hue",
            head="flat",
            hidden=64,
            exits=("9=0.2", "16"),
            density="backbone=1/8,heads=1/16",
            pattern="scattered",
            weighting="uncertainty",
            epochs=3,
            batch=24,
            learning_rate=1e-4,
            seed=7,
            threads=1,
        )
    )
    assert made.network == Network(
        "vgg16",
        (("shape", 4), ("floor_hue", 10)),
        48,
        Flat(64),
        (ExitAt("9", 0.2), ExitAt("16")),
        Sparsity(Fraction(1, 8), Fraction(1, 16), Scattered()),
    )
    assert (made.recipe.stages, made.recipe.batch, made.recipe.learning_rate) == ((Stage(3, 48),), 24, 1e-4)
    assert (made.recipe.seed, made.recipe.threads, made.recipe.weighting) == (7, 1, Uncertainty())
    assert made.recipe.augmentation is None  # orientation and hue would not survive one
    assert made.data.train.images.read(np.arange(1)).shape == (1, 48, 48, 3)


def test_flattened_heads_are_trained_at_one_size() -> None:
    """The recipe of ELPV grows the images, but a flattened map has as many values as the last ones give."""
    asked = training(TrainRequest("elpv", head="flat"))
    assert [stage.size for stage in asked.recipe.stages] == [224]
    pooled = training(TrainRequest("elpv")).recipe
    assert sum(one.epochs for one in asked.recipe.stages) == sum(one.epochs for one in pooled.stages)


def test_published_weights_are_begun_with(small: DataSet, tmp_path: Path) -> None:
    """After one step of nearly nothing the backbone is still what was published."""
    torch.manual_seed(5)
    published = networks.make(asked(small).network).backbone.state_dict()
    save_file({f"features.{key}": value.contiguous() for key, value in published.items()}, tmp_path / "w.safetensors")
    recipe = replace(QUICK, learning_rate=1e-9, stages=(Stage(1, 32),))
    wanted = replace(asked(small, recipe=recipe), weights=tmp_path / "w.safetensors")
    train_and_write(wanted, tmp_path / "net.safetensors", tmp_path / "k")
    found = load_file(tmp_path / "net.safetensors")
    for key, value in published.items():
        if value.ndim > 1:
            torch.testing.assert_close(found[f"backbone.{key}"], value.half(), rtol=1e-3, atol=1e-6)
    assert training(TrainRequest("shapes", weights=Path("w"))).recipe.mean == (0.485, 0.456, 0.406)


REFUSED = {
    "data set": (TrainRequest("cifar"), '"cifar"', "splitboard train shapes"),
    "data of a package": (TrainRequest("elpv", data=Path("x")), '--data "x"', "leave --data out"),
    "no data": (TrainRequest("faces"), '"faces"', "--data"),
    "weighting": (TrainRequest("shapes", weighting="equal"), '"equal"', "--weighting sum"),
    "head": (TrainRequest("shapes", head="big"), '"big"', "--head flat"),
    "exit": (TrainRequest("shapes", exits=("layer2=heavy",)), '"layer2=heavy"', "--exit layer2=0.3"),
    "weight of an exit": (TrainRequest("shapes", exits=("layer2=2",)), '"layer2=2"', "--exit layer2=0.3"),
    "density": (TrainRequest("shapes", density="backbone=thin"), '"thin"', "backbone=1/8"),
    "density of nothing": (TrainRequest("shapes", density="1/8"), '"1/8"', "backbone=1/8,heads=1/16"),
    "density by zero": (TrainRequest("shapes", density="heads=1/0"), '"1/0"', "heads=1/8"),
    "density above one": (TrainRequest("shapes", density="heads=2"), '"2"', "1/8"),
    "pattern": (TrainRequest("shapes", density="heads=1/2", pattern="odd"), '"odd"', "--pattern grouped"),
    "pattern of nothing": (TrainRequest("shapes", pattern="grouped"), '"grouped"', "--density"),
    "task": (TrainRequest("shapes", tasks="shap"), '"shap"', "shape"),
    "learning rate": (TrainRequest("shapes", learning_rate=-1.0), '"-1.0"', "1e-3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_option_is_refused(name: str) -> None:
    request, said, tried = REFUSED[name]
    with pytest.raises(UserError) as caught:
        training(request)
    assert said in caught.value.message
    assert any(tried in line for line in caught.value.tries)


# Files that are in the way


@pytest.mark.parametrize("suffix", [".toml", ".py"])
def test_a_file_of_somebody_else_is_not_overwritten(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"mine{suffix}").write_text("height = 3\n")
    with pytest.raises(UserError, match=rf"mine\{suffix}"):
        check_target(tmp_path / "mine.safetensors")


@pytest.mark.parametrize("name", ["two-words", "v1.2", "numpy", "json", "torchgen"])
def test_a_name_that_python_cannot_import_beside_the_others_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f'"{name}"'):
        check_target(tmp_path / f"{name}.safetensors")


def test_names_by_default_can_be_imported() -> None:
    for backbone in ("", "efficientnet-lite0", "timm:mobilenetv3_small_050.lamb_in1k"):
        assert network_name(TrainRequest("shapes", backbone=backbone)).isidentifier()


# Interruptions


@dataclass(frozen=True)
class Interrupting:
    """Images; Ctrl-C is pressed while the second batch is read."""

    images: Images
    reads: list[int]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        self.reads.append(len(indices))
        if self.reads.count(QUICK.batch) == 2:
            signal.raise_signal(signal.SIGINT)
        return self.images.read(indices)


def test_ctrl_c_keeps_what_was_trained(small: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The step is finished and kept, the user is told, and the same command with --resume makes the same weights."""
    stored = replace(small.train, images=StoredImages(small.train.images.read(np.arange(48))))
    interrupting = replace(small.train, images=Interrupting(small.train.images, []))
    handler = signal.getsignal(signal.SIGINT)

    def train(part: Part, folder: str) -> dict[str, torch.Tensor]:
        target = tmp_path / folder / "net.safetensors"
        train_and_write(asked(replace(small, train=part)), target, target.with_suffix(".checkpoint"))
        return load_file(target)

    with pytest.raises(KeyboardInterrupt):
        train(interrupting, "one")
    assert "Stopped after 2 of 6 steps" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["net.checkpoint"]
    assert signal.getsignal(signal.SIGINT) is handler
    found, expected = train(stored, "one"), train(stored, "two")
    assert not (tmp_path / "one" / "net.checkpoint").exists()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_resume_needs_a_checkpoint_and_a_new_training_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "net.safetensors"
    assert run(["train", "elpv", "--resume", "-o", str(target)]) == 3
    assert f'there is no checkpoint "{target.with_suffix(".checkpoint")}"' in capsys.readouterr().err
    target.with_suffix(".checkpoint").write_bytes(b"of yesterday")
    assert run(["train", "elpv", "-o", str(target)]) == 3
    assert "Try: --resume" in capsys.readouterr().err
    assert target.with_suffix(".checkpoint").read_bytes() == b"of yesterday"


# TensorBoard


def test_tensorboard_reads_what_was_logged(small: DataSet, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_and_write(asked(small), tmp_path / "net.safetensors", tmp_path / "k", tmp_path / "log")
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    assert [one.step for one in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [one.step for one in events.Scalars("validation/shape")] == [3, 6]


def test_without_tensorboard_a_log_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert run(["train", "elpv", "--log", str(tmp_path / "log"), "-o", str(tmp_path / "net.safetensors")]) == 3
    assert not (tmp_path / "log").exists()
