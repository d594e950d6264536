"""Joint training: losses against formulas, steps against plain torch, the same to the bit after an interruption."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import normalise
from splitboard.zoo.data.dataset import DataSet, StoredImages, labelled
from splitboard.zoo.multitask import ExitAt, MultiTaskNet, Output
from splitboard.zoo.training import (
    CELLS,
    PHOTOGRAPHS,
    Checkpoints,
    Device,
    Recipe,
    Stage,
    Sum,
    Uncertainty,
    accuracies,
    fit,
    predict,
)
from splitboard.zoo.training.augmentation import resized, warped
from splitboard.zoo.training.losses import JointLoss
from splitboard.zoo.training.reading import Remembered

RECIPE = Recipe(stages=(Stage(2, 16), Stage(1, 20)), batch=16, learning_rate=0.03, average_decay=0.8, threads=1)
CPU = Device()


def small_net(exits: tuple[ExitAt, ...] = (ExitAt("2"),)) -> MultiTaskNet:
    """Two convolutions with dropout, two tasks, the weights always the same."""
    torch.manual_seed(1)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Conv2d(8, 12, 3, 2, 1),
        nn.ReLU(),
    )
    return MultiTaskNet(backbone, 12, {"bright": 2, "side": 3}, hidden=8, exits=dict.fromkeys(exits, 8))


def small_data(channels: int = 1, n: int = 72) -> DataSet:
    """Bright and dark images with a stripe left, in the middle or right."""
    random = np.random.default_rng(0)
    classes = {"bright": ("no", "yes"), "side": ("left", "middle", "right")}

    def part(count: int) -> StoredImages:
        return StoredImages(random.integers(0, 60, (count, 24, 24, channels)).astype(np.uint8))

    def labels(images: StoredImages) -> dict[str, NDArray[np.int64]]:
        bright, side = (random.integers(0, k, len(images)) for k in (2, 3))
        images.pixels[bright == 1] += 120
        for pixels, where in zip(images.pixels, side, strict=True):
            pixels[:, 8 * where : 8 * where + 8] += 60
        return {"bright": bright, "side": side}

    parts = []
    for name, count in (("train", n), ("validation", 12), ("test", 12)):
        images = part(count)
        parts.append(labelled(images, labels(images), classes, name))
    return DataSet("stripes", classes, channels, *parts)


def trained(
    recipe: Recipe = RECIPE,
    data: DataSet | None = None,
    on_step: Callable[[int, int, float], None] = lambda *_: None,
    keep: Checkpoints | None = None,
    device: Device = CPU,
) -> MultiTaskNet:
    net = small_net()
    fit(net, data or small_data(), recipe, on_step, keep, device=device)
    return net


def equal(one: nn.Module, two: nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Losses


OUTPUTS = (Output("a", "a"), Output("b", "b"), Output("a_exit_x", "a", 0.3), Output("b_exit_x", "b", 0.3))


def scores() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(2)
    logits = {one.name: torch.randn(5, 3, requires_grad=True) for one in OUTPUTS}
    return logits, {task: torch.softmax(torch.randn(5, 3), 1) for task in "ab"}


def entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with soft targets by its definition."""
    log_p = logits - torch.log(torch.exp(logits).sum(1, keepdim=True))
    return -(targets * log_p).sum(1).mean()


def test_the_sum_of_losses_and_its_gradients() -> None:
    logits, targets = scores()
    found, each = JointLoss(OUTPUTS, Sum())(logits, targets)
    found.backward()
    gradients = [logits[one.name].grad for one in OUTPUTS]
    again, _ = scores()
    plain = [entropy(again[one.name], targets[one.task]) for one in OUTPUTS]
    expected = plain[0] + plain[1] + 0.3 * plain[2] + 0.3 * plain[3]
    expected.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(each, torch.stack(plain).detach())
    for gradient, one in zip(gradients, OUTPUTS, strict=True):
        torch.testing.assert_close(gradient, again[one.name].grad)


def test_uncertainty_is_learnt_as_in_its_paper() -> None:
    """1705.07115: loss / sigma squared + log sigma for every task, with s = log sigma squared."""
    logits, targets = scores()
    loss = JointLoss(OUTPUTS, Uncertainty(log_variance=0.4))
    found, _ = loss(logits, targets)
    found.backward()
    plain = {one.name: entropy(logits[one.name], targets[one.task]).item() for one in OUTPUTS}
    tasks = [plain[task] + 0.3 * plain[f"{task}_exit_x"] for task in "ab"]
    sigma = math.exp(0.4 / 2)
    assert found.item() == pytest.approx(sum(task / sigma**2 + math.log(sigma) for task in tasks))
    assert loss.log_variances is not None
    assert loss.log_variances.grad is not None
    slopes = [-math.exp(-0.4) * task + 0.5 for task in tasks]
    assert loss.log_variances.grad.tolist() == pytest.approx(slopes)


def test_every_head_and_the_backbone_get_gradients_from_every_task() -> None:
    net = small_net()
    logits = net(torch.rand(4, 3, 16, 16))
    for task, kept in (("bright", "heads.bright"), ("side", "heads.side")):
        net.zero_grad()
        logits[task].sum().backward(retain_graph=True)
        reached = {name for name, p in net.named_parameters() if p.grad is not None and bool(p.grad.any())}
        assert f"{kept}.0.weight" in reached
        assert "backbone.0.weight" in reached
        assert not any(name.startswith(("heads.", "exits.")) and not name.startswith(kept) for name in reached)


# Steps


def test_three_steps_are_those_of_plain_torch() -> None:
    """AdamW, one cycle, joint loss and averaged weights, written out."""
    data = small_data(n=48)
    recipe = replace(RECIPE, stages=(Stage(1, 24),))
    found = trained(recipe, data)

    # Dropout draws in the order of memory. torch declares memory_format on the tensor overload only.
    net = small_net().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(recipe.seed)
    pixels = torch.from_numpy(normalise(data.train.images.read(np.arange(48)), recipe.preprocessing(1)))
    pixels = pixels.to(memory_format=torch.channels_last)
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=3, pct_start=0.15)
    average = {key: value.clone() for key, value in net.state_dict().items()}
    order = torch.randperm(48, generator=torch.Generator().manual_seed(recipe.seed))
    for step in range(3):
        chosen = order[16 * step : 16 * step + 16]
        logits = net(pixels[chosen])
        loss = torch.zeros(())
        for task, labels in data.train.labels.items():
            truth = torch.from_numpy(labels)[chosen]
            loss = loss + nn.functional.cross_entropy(logits[task], truth)
            loss = loss + 0.3 * nn.functional.cross_entropy(logits[f"{task}_exit_2"], truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        share = 1 - min(0.8, (2 + step) / (11 + step))
        for key, value in net.state_dict().items():
            average[key] = average[key] + share * (value - average[key]) if value.is_floating_point() else value.clone()
    for key, value in found.state_dict().items():
        torch.testing.assert_close(value, average[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighting", [Sum(), Uncertainty()], ids=["sum", "uncertainty"])
@pytest.mark.parametrize(("channels", "warp"), [(1, CELLS), (3, PHOTOGRAPHS)], ids=["grey", "colour"])
def test_training_is_deterministic_and_learns(channels: int, warp: object, weighting: Sum | Uncertainty) -> None:
    recipe = replace(RECIPE, stages=(Stage(8, 16), Stage(2, 20)), weighting=weighting, augmentation=warp)
    data = small_data(channels)
    losses: list[float] = []
    first = trained(recipe, data, lambda _done, _total, loss: losses.append(loss))
    assert equal(first, trained(recipe, data))
    assert not equal(first, trained(replace(recipe, seed=1), data))
    assert len(losses) == 10 * 4
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])


def test_what_is_trained_knows_new_images() -> None:
    data = small_data()
    recipe = replace(RECIPE, stages=(Stage(20, 24),))
    net = trained(recipe, data)
    found = accuracies(net, data.test, recipe.preprocessing(1))
    assert found.keys() == {"bright", "side", "bright_exit_2", "side_exit_2"}
    assert found["bright"] == 1.0
    inputs = torch.from_numpy(normalise(data.test.images.read(np.arange(12)), recipe.preprocessing(1)))
    with torch.no_grad():
        logits = net(inputs)
    for name, right in found.items():
        labels = data.test.labels[name.partition("_")[0]]
        assert right == pytest.approx(np.mean(logits[name].argmax(1).numpy() == labels))
    batched = predict(net, data.test.images, recipe.preprocessing(1), batch=5)
    torch.testing.assert_close(torch.from_numpy(batched["side"]), logits["side"])


def test_a_network_of_one_task_trains_on_data_with_more() -> None:
    torch.manual_seed(0)
    net = MultiTaskNet(nn.Conv2d(3, 4, 3), 4, {"side": 3}, hidden=4)
    fit(net, small_data(), replace(RECIPE, stages=(Stage(1, 16),)), lambda *_: None, device=CPU)
    assert list(net.heads) == ["side"]


# Interruptions


class Cut(Exception):
    """The power is gone."""


@pytest.mark.parametrize("weighting", [Sum(), Uncertainty()], ids=["sum", "uncertainty"])
@pytest.mark.parametrize("at", [3, 4, 7, 11])
def test_a_training_goes_on_to_the_bit(at: int, weighting: Sum | Uncertainty, tmp_path: Path) -> None:
    """Epochs of four steps: cut at the end of one, in the middle of one, in the last one at another size."""
    recipe = replace(RECIPE, weighting=weighting, augmentation=CELLS)
    keep = Checkpoints(tmp_path / "net.checkpoint", every_steps=at)
    whole: list[float] = []
    expected = trained(recipe, on_step=lambda _done, _total, loss: whole.append(loss))

    def cut(done: int, _total: int, _loss: float) -> None:
        if done == at:
            raise Cut

    with pytest.raises(Cut):
        trained(recipe, on_step=cut, keep=keep)
    assert [path.name for path in tmp_path.iterdir()] == ["net.checkpoint"]
    rest: list[float] = []
    found = trained(recipe, on_step=lambda _done, _total, loss: rest.append(loss), keep=keep)
    assert rest == whole[at:]
    assert equal(found, expected)


def test_ctrl_c_after_a_step_keeps_that_step(tmp_path: Path) -> None:
    keep = Checkpoints(tmp_path / "net.checkpoint", every_steps=100)

    def stop(done: int, _total: int, _loss: float) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(on_step=stop, keep=keep)
    seen: list[int] = []
    found = trained(on_step=lambda done, _total, _loss: seen.append(done), keep=keep)
    assert seen[0] == 7
    assert equal(found, trained())


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.checkpoint"
    trained(keep=Checkpoints(path, every_steps=2, about={"the network": "small"}))

    def refused(net: MultiTaskNet, recipe: Recipe, about: str = "small") -> str:
        with pytest.raises(UserError) as caught:
            fit(net, small_data(), recipe, lambda *_: None, Checkpoints(path, 2, {"the network": about}), device=CPU)
        assert "\n" not in caught.value.message
        assert any(str(path) in line for line in caught.value.tries)
        return caught.value.message

    assert "the recipe's batch is 16 there, 8 here" in refused(small_net(), replace(RECIPE, batch=8))
    assert "the network is small there, large here" in refused(small_net(), RECIPE, "large")
    wide = small_net((ExitAt("2", hidden=32),))
    assert "exits.2.bright.0.weight is [64, 8] there, [32, 8] here" in refused(wide, RECIPE)
    assert "the loss weight of bright_exit_2 is 0.3 there, missing here" in refused(small_net(exits=()), RECIPE)
    assert "the loss weight of bright_exit_2 is 0.3 there, 0.5 here" in refused(small_net((ExitAt("2", 0.5),)), RECIPE)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"\x80\x04K\x01."], ids=["empty", "zip", "pickle"])
def test_what_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.checkpoint"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"net\.checkpoint"):
        trained(keep=Checkpoints(path))
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"net\.checkpoint"):
        trained(keep=Checkpoints(path))
    assert path.exists()


class Command:
    """Runs something if it is ever unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "splitboard training 1", "about": {}, "state": Command()}, "net.checkpoint")
    with pytest.raises(UserError, match=r"net\.checkpoint"):
        trained(keep=Checkpoints(tmp_path / "net.checkpoint"))
    assert not Path("ran").exists()


# What cannot be trained


def test_less_than_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match=r'"10" training images .* "16"'):
        trained(data=small_data(n=10))


def test_a_loss_that_explodes_ends_the_training() -> None:
    net = small_net()
    with torch.no_grad():
        net.heads.get_submodule("side.3").get_parameter("weight").fill_(float("inf"))
    with pytest.raises(UserError, match=r'the loss is "nan" after 1 of'):
        fit(net, small_data(), RECIPE, lambda *_: None, device=CPU)


# Precision


def test_the_cpu_can_train_in_bfloat16(tmp_path: Path) -> None:
    """Arithmetic in 16 bits, weights in 32: near the float32 training, not equal to it."""
    recipe = replace(RECIPE, stages=(Stage(8, 16),))
    losses: list[float] = []
    half = trained(recipe, device=Device("cpu", torch.bfloat16), on_step=lambda _d, _t, loss: losses.append(loss))
    assert all(value.dtype == torch.float32 for value in half.parameters())
    assert not equal(half, trained(recipe))
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"])
def test_a_gpu_trains_and_goes_on_to_the_bit(dtype: torch.dtype | None, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    device, losses = Device("cuda", dtype), []
    recipe = replace(RECIPE, stages=(Stage(8, 16),), augmentation=CELLS)
    expected = trained(recipe, device=device, on_step=lambda _d, _t, loss: losses.append(loss))
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])
    assert all(value.device.type == "cpu" for value in expected.parameters())

    def cut(done: int, _total: int, _loss: float) -> None:
        if done == 7:
            raise Cut

    keep = Checkpoints(tmp_path / "net.checkpoint", every_steps=6)
    with pytest.raises(Cut):
        trained(recipe, device=device, on_step=cut, keep=keep)
    assert equal(trained(recipe, device=device, keep=keep), expected)


# Images


def test_augmentation_keeps_shape_and_range() -> None:
    images = torch.rand(8, 3, 60, 60, generator=torch.Generator().manual_seed(0))
    for warp in (CELLS, PHOTOGRAPHS):
        made = warped(images, 48, warp, torch.Generator().manual_seed(1))
        assert made.shape == (8, 3, 48, 48)
        assert float(made.min()) >= 0
        assert float(made.max()) <= 1
        assert torch.equal(made, warped(images, 48, warp, torch.Generator().manual_seed(1)))
        assert not torch.equal(made, warped(images, 48, warp, torch.Generator().manual_seed(2)))


def test_photographs_are_mirrored_and_never_upside_down() -> None:
    """An image that is dark below and on the right."""
    images = torch.zeros(64, 1, 32, 32)
    images[:, :, :16] += 0.5
    images[:, :, :, :16] += 0.5
    made = warped(images, 32, PHOTOGRAPHS, torch.Generator().manual_seed(0))
    below = made[:, 0, :16].mean((1, 2)) - made[:, 0, 16:].mean((1, 2))
    right = made[:, 0, :, :16].mean((1, 2)) - made[:, 0, :, 16:].mean((1, 2))
    assert bool((below > 0).all())
    assert 16 < int((right > 0).sum()) < 48
    cells = warped(images, 32, CELLS, torch.Generator().manual_seed(0))
    assert 16 < int((cells[:, 0, :16].mean((1, 2)) > cells[:, 0, 16:].mean((1, 2))).sum()) < 48


def test_without_augmentation_images_are_as_in_deployment() -> None:
    """Resized with antialiasing, to within the rounding to whole pixels of `contract.preprocess`."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3)).astype(np.uint8)
    spec = RECIPE.preprocessing(3)
    from splitboard.contract.preprocess import resize

    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    assert resized(images, 40) is images
    expected = torch.from_numpy(resize(pixels, 20, 20)).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(resized(images, 20), expected, atol=1 / 255, rtol=0)
    assert (spec.height, spec.width, spec.source_channels) == (20, 20, 3)


def test_what_was_read_is_not_read_again() -> None:
    class Counted:
        def __init__(self) -> None:
            self.asked: list[int] = []

        def __len__(self) -> int:
            return 6

        def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
            self.asked += indices.tolist()
            return np.broadcast_to(indices.astype(np.uint8)[:, None, None, None], (len(indices), 2, 2, 1)).copy()

    counted = Counted()
    images = Remembered(counted, (2, 2, 1))
    for wanted in ([3, 1, 3], [1, 5], [0, 5, 3]):
        assert images.read(np.array(wanted))[:, 0, 0, 0].tolist() == wanted
    assert sorted(counted.asked) == [0, 1, 3, 5]


def test_the_log_has_every_loss_and_the_validation_after_every_epoch() -> None:
    logged: dict[str, list[tuple[int, float]]] = {}
    losses: list[float] = []
    net, data = small_net(), small_data()
    recipe = replace(RECIPE, stages=(Stage(2, 16),))
    fit(
        net,
        data,
        recipe,
        lambda _done, _total, loss: losses.append(loss),
        log=lambda name, value, step: logged.setdefault(name, []).append((step, value)),
        device=CPU,
    )
    assert [value for _, value in logged["loss"]] == losses
    outputs = [one.name for one in net.outputs]
    for step in range(8):
        each = [logged[f"loss/{name}"][step][1] for name in outputs]
        assert losses[step] == pytest.approx(each[0] + each[1] + 0.3 * each[2] + 0.3 * each[3], rel=1e-5)
    for name, value in accuracies(net, data.validation, recipe.preprocessing(1)).items():
        assert [step for step, _ in logged[f"validation/{name}"]] == [4, 8]
        assert logged[f"validation/{name}"][-1][1] == value
    assert equal(net, trained(recipe, data))  # looking changes nothing
