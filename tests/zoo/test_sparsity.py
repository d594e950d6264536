"""Predefined sparsity: patterns by counting, layers against torch's dense ones, reach by the Jacobian."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from splitboard.contract.errors import UserError
from splitboard.zoo.mobilenet_v3 import MobileNetV3Small
from splitboard.zoo.multitask import MultiTaskNet
from splitboard.zoo.resnet import BasicBlock, ResNet18
from splitboard.zoo.sparsity import Grouped, Scattered, Sparsity, sparsify, stored
from splitboard.zoo.sparsity.grouped import BlockLinear, GroupedConv2d, ShuffledConv2d, shuffled
from splitboard.zoo.sparsity.patterns import Junction, draw, junction
from splitboard.zoo.sparsity.scattered import ScatteredConv2d, ScatteredLinear
from splitboard.zoo.sparsity.sparsity import sparse_layers
from splitboard.zoo.sparsity.stored import macs

EIGHTH = Fraction(1, 8)


def resnet18() -> MultiTaskNet:
    return MultiTaskNet(ResNet18().features, ResNet18.channels, {"shape": 4, "hue": 10})


@pytest.mark.parametrize(
    ("inputs", "outputs", "density"),
    [
        (800, 100, "1/2"),
        (25088, 256, "1/16"),
        (64, 128, "63/64"),
        (6, 4, "1/2"),
        (4, 6, "1/2"),
        (12, 18, "5/6"),
        (5, 5, "1"),
    ],
)
def test_every_degree_is_as_wanted(inputs: int, outputs: int, density: str) -> None:
    wanted = junction(inputs, outputs, Fraction(density))
    pattern = draw(wanted, np.random.default_rng(0))
    assert pattern.shape == (outputs, wanted.in_degree)
    assert (np.diff(pattern, axis=1) > 0).all()  # ascending, so none twice
    assert (np.bincount(pattern.ravel(), minlength=inputs) == wanted.out_degree).all()
    assert (
        wanted.weights
        == inputs * wanted.out_degree
        == outputs * wanted.in_degree
        == inputs * outputs * Fraction(density)
    )


def test_all_regular_patterns_are_equally_likely() -> None:
    """Of 4 to 4 with degree 2 there are 90, counted by trying all."""
    rows = list(itertools.combinations(range(4), 2))
    every = [
        chosen
        for chosen in itertools.product(rows, repeat=4)
        if set(Counter(itertools.chain.from_iterable(chosen)).values()) == {2} and len(set(sum(chosen, ()))) == 4
    ]
    assert len(every) == 90
    generator = np.random.default_rng(1)
    drawn = Counter(tuple(tuple(row) for row in draw(Junction(4, 4, 2), generator).tolist()) for _ in range(90 * 40))
    assert stats.chisquare([drawn[one] for one in every]).pvalue > 1e-3


def test_every_pair_of_a_long_junction_is_equally_likely() -> None:
    """More inputs than outputs, so that the outputs' sets are dealt in long trades."""
    generator = np.random.default_rng(2)
    n = 400
    counts = np.zeros((6, 24))
    for _ in range(n):
        np.add.at(counts, (np.arange(6)[:, None], draw(Junction(24, 6, 2), generator)), 1)
    deviation = (counts - n / 3) / np.sqrt(n * (1 / 3) * (2 / 3))
    assert np.abs(deviation).max() < 4.5  # of 144 normal deviates, one in a thousand runs


def test_a_seed_gives_one_pattern() -> None:
    first, again, other = (draw(Junction(64, 64, 8), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(
    ("inputs", "outputs", "density", "near"),
    [
        (64, 128, Fraction(1, 3), ("density 21/64", "density 11/32")),
        (800, 10, Fraction(1, 100), ("density 1/10",)),
        (9, 6, Fraction(5, 6), ("density 2/3", "density 1")),
    ],
)
def test_an_inadmissible_density_names_its_neighbours(
    inputs: int, outputs: int, density: Fraction, near: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match=rf'density "{density}" of a junction of {inputs} to {outputs}') as raised:
        junction(inputs, outputs, density)
    assert raised.value.tries == near
    for text in near:  # what is advised is admissible
        junction(inputs, outputs, Fraction(text.removeprefix("density ")))


@pytest.mark.parametrize("degree", [0, 1, 4, 7])
def test_an_inadmissible_out_degree_is_refused(degree: int) -> None:
    with pytest.raises(UserError, match=f'out-degree "{degree}"'):
        Junction(4, 6, degree)


def test_a_scattered_linear_layer_is_its_dense_one() -> None:
    torch.manual_seed(0)
    pattern = torch.from_numpy(draw(Junction(24, 16, 4), np.random.default_rng(0)))
    layer, twin = ScatteredLinear(pattern, 24), nn.Linear(24, 16)
    with torch.no_grad():
        twin.weight.zero_()
        for row, inputs in enumerate(pattern.tolist()):
            for place, i in enumerate(inputs):
                twin.weight[row, i] = layer.weight[row, place]
        twin.bias.copy_(layer.bias)
    x = torch.randn(5, 24)
    torch.testing.assert_close(layer(x), twin(x))
    layer(x).square().sum().backward()
    twin(x).square().sum().backward()
    assert twin.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, twin.weight.grad.gather(1, pattern))


def test_a_scattered_convolution_is_its_dense_one() -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(6, 9, 3, stride=2, padding=1)
    pattern = torch.from_numpy(draw(Junction(6, 9, 3), np.random.default_rng(0)))
    layer = ScatteredConv2d(pattern, dense)
    weight = torch.zeros(9, 6, 3, 3)
    for row, inputs in enumerate(pattern.tolist()):
        for place, i in enumerate(inputs):
            weight[row, i] = layer.weight[row, place].detach()
    x = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(layer(x), F.conv2d(x, weight, layer.bias, 2, 1))


def test_nothing_is_kept_for_weights_that_do_not_exist() -> None:
    """Neither a parameter, nor a gradient, nor an optimiser's moments."""
    pattern = torch.from_numpy(draw(Junction(24, 16, 4), np.random.default_rng(0)))
    layer = ScatteredLinear(pattern, 24)
    optimiser = torch.optim.AdamW(layer.parameters())
    layer(torch.randn(3, 24)).square().sum().backward()
    optimiser.step()
    kept = [value for state in optimiser.state.values() for value in state.values()]
    largest = max(value.numel() for value in (*kept, *layer.parameters()))
    assert largest == 24 * 4
    assert layer.pattern.dtype == torch.uint8
    assert sorted(layer.state_dict()) == ["bias", "pattern", "weight"]


@pytest.mark.parametrize(("inputs", "dtype"), [(256, torch.uint8), (257, torch.int16), (40000, torch.int32)])
def test_the_pattern_is_in_the_smallest_integers(inputs: int, dtype: torch.dtype) -> None:
    layer = ScatteredLinear(torch.tensor([[0, inputs - 1]]), inputs)
    assert layer.pattern.dtype == dtype
    assert layer.pattern.tolist() == [[0, inputs - 1]]


def test_the_shuffle_is_torchs() -> None:
    x = torch.randn(2, 12, 3, 5)
    torch.testing.assert_close(shuffled(x, 4), F.channel_shuffle(x, 4))


def test_a_block_layer_is_a_linear_layer_with_blocks() -> None:
    torch.manual_seed(0)
    layer = BlockLinear(24, 8, 4)
    x = torch.randn(3, 24)
    expected = F.linear(x, torch.block_diag(*layer.weight.split(2)), layer.bias)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.eval()(x), expected)


def test_initial_weights_have_the_variance_of_the_inputs_that_exist() -> None:
    torch.manual_seed(0)
    like = nn.Conv2d(64, 256, 3, bias=False)
    for layer in (GroupedConv2d(like, 8), ScatteredConv2d(torch.arange(8).repeat(256, 1), like)):
        assert layer.weight.var().item() == pytest.approx(2 / (8 * 9), rel=0.05)


def _blocks(channels: int, density: Fraction) -> nn.Sequential:
    net = nn.Module()
    net.backbone = nn.Sequential(BasicBlock(channels, channels, 1), BasicBlock(channels, channels, 1))
    sparsify(net, Sparsity(density))
    assert isinstance(net.backbone, nn.Sequential)
    return net.backbone.eval()


@pytest.mark.parametrize("groups", [2, 4, 8, 16])
def test_after_two_blocks_every_channel_depends_on_every_channel(groups: int) -> None:
    """Smooth in place of rectified, so that no derivative is zero by chance."""
    torch.manual_seed(0)
    blocks = _blocks(64, Fraction(1, groups)).double()
    for block in blocks:
        block.relu = nn.Softplus()
    x = torch.randn(1, 64, 4, 4, dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(lambda given: blocks(given).mean((0, 2, 3)), x)
    assert (slopes.abs().amax((1, 3, 4)) > 0).all()


def test_without_a_shuffle_groups_never_meet() -> None:
    """What the test above would say of plain grouped convolutions: the shuffles are what it sees."""
    torch.manual_seed(0)
    blocks = _blocks(64, EIGHTH).double()
    for block in blocks:
        block.relu = nn.Softplus()
        block.conv2.forward = super(ShuffledConv2d, block.conv2).forward
    x = torch.randn(1, 64, 4, 4, dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(lambda given: blocks(given).mean((0, 2, 3)), x).abs().amax((1, 3, 4))
    assert (slopes > 0).sum() == 64 * 8


def test_every_other_layer_of_resnet18_is_shuffled() -> None:
    net = resnet18()
    sparsify(net, Sparsity(EIGHTH, EIGHTH))
    kinds = {name: type(module) for name, module in net.named_modules()}
    for layer, block in itertools.product((1, 2, 3, 4), (0, 1)):
        path = f"backbone.layer{layer}.{block}"
        assert kinds[f"{path}.conv1"] is GroupedConv2d
        assert kinds[f"{path}.conv2"] is ShuffledConv2d
        assert kinds.get(f"{path}.downsample.0", GroupedConv2d) is GroupedConv2d
    assert kinds["backbone.conv1"] is nn.Conv2d
    assert [kinds[f"heads.hue.{i}"] for i in (0, 3)] == [BlockLinear, nn.Linear]


def test_depthwise_stem_and_squeeze_excite_stay_dense() -> None:
    net = MultiTaskNet(MobileNetV3Small().features, MobileNetV3Small.channels, {"shape": 4})
    backbone, heads = sparse_layers(net)
    modules = dict(net.named_modules())
    chosen = {modules[name].in_channels for name in backbone if isinstance(modules[name], nn.Conv2d)}
    assert 3 not in chosen
    assert all(modules[name].groups == 1 for name in backbone if isinstance(modules[name], nn.Conv2d))
    assert not any(".fc1" in name or ".fc2" in name for name in backbone)
    assert list(heads) == ["heads.shape.0"]
    pointwise = [m for m in modules.values() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    excite = [name for name in modules if name.endswith((".fc1", ".fc2"))]
    assert len(backbone) == len(pointwise) - len(excite)


@pytest.mark.parametrize("pattern", [Grouped(), Scattered()])
def test_resnet18_keeps_an_eighth(pattern: Grouped | Scattered) -> None:
    dense, net = resnet18(), resnet18()
    sparsify(net, Sparsity(EIGHTH, EIGHTH, pattern))
    kept = stored(net)
    whole = sum(m.weight.numel() for m in dense.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    stem, last = 64 * 3 * 49, 128 * 14
    assert kept.dense_weights == whole
    assert kept.weights == (whole - stem - last) // 8 + stem + last
    every = sum(p.numel() for p in dense.parameters()) + sum(
        2 * m.num_features for m in dense.modules() if isinstance(m, nn.BatchNorm2d)
    )
    assert kept.weights + kept.other == every - whole + kept.weights
    entries = sum(m.pattern.numel() for m in net.modules() if isinstance(m, (ScatteredConv2d, ScatteredLinear)))
    assert kept.index_entries == entries
    assert (entries > 0) == isinstance(pattern, Scattered)
    assert kept.float32_bytes == 4 * (kept.weights + kept.other) + kept.index_bytes


@pytest.mark.parametrize("pattern", [Grouped(), Scattered()])
def test_macs_are_torchs_counters(pattern: Grouped | Scattered) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.zeros(1, 3, 32, 32)
    nets = {"dense": resnet18(), "sparse": resnet18()}
    sparsify(nets["sparse"], Sparsity(EIGHTH, EIGHTH, pattern))
    flops = {}
    for name, net in nets.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net.eval()(image)
        flops[name] = counter.get_total_flops()
    found = macs(nets["sparse"], image)
    assert 2 * found.dense == flops["dense"]
    assert 2 * found.run == flops["sparse"]
    assert found.existing < found.dense / 5
    assert (found.existing == found.run) == isinstance(pattern, Grouped)


def test_patterns_of_a_network_depend_on_its_seed_alone() -> None:
    nets = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(nets))
        net = resnet18()
        sparsify(net, Sparsity(heads=EIGHTH, pattern=Scattered(seed)))
        nets.append(net.heads["hue"][0].pattern)
    assert torch.equal(nets[0], nets[1])
    assert not torch.equal(nets[0], nets[2])


@pytest.mark.parametrize(
    ("sparsity", "message", "tries"),
    [
        (
            Sparsity(Fraction(1, 24)),
            'density "1/24" of layer "backbone.layer1.0.conv1" (64 to 64) is not admissible: it must be 1/g where g '
            "divides 64",
            ("density 1/16: all layers of the backbone allow it", "density 1/32: all layers of the backbone allow it"),
        ),
        (
            Sparsity(Fraction(3, 8)),
            'density "3/8" of layer "backbone.layer1.0.conv1" (64 to 64) is not admissible: it must be 1/g where g '
            "divides 64",
            ("density 1/2: all layers of the backbone allow it", "density 1/4: all layers of the backbone allow it"),
        ),
        (
            Sparsity(heads=Fraction(1, 3), pattern=Scattered()),
            'density "1/3" of layer "heads.shape.0" (512 to 128) is not admissible: it must be k/128',
            ("density 21/64: all layers of the heads allow it", "density 43/128: all layers of the heads allow it"),
        ),
    ],
)
def test_densities_that_no_degree_allows(sparsity: Sparsity, message: str, tries: tuple[str, ...]) -> None:
    net = resnet18()
    before = {name: type(module) for name, module in net.named_modules()}
    with pytest.raises(UserError) as raised:
        sparsify(net, sparsity)
    assert raised.value.message == message
    assert raised.value.tries == tries
    assert {name: type(module) for name, module in net.named_modules()} == before  # whole or not at all
    for text in tries:
        density = Fraction(text.removeprefix("density ").partition(":")[0])
        parts = {"backbone": density} if sparsity.heads == 1 else {"heads": density}
        sparsify(resnet18(), Sparsity(**parts, pattern=sparsity.pattern))


@pytest.mark.parametrize("density", [Fraction(0), Fraction(-1, 8), Fraction(9, 8)])
def test_a_density_is_a_share(density: Fraction) -> None:
    with pytest.raises(UserError, match=f'density "{density}" of the heads'):
        Sparsity(heads=density)


def test_a_part_without_layers_is_refused() -> None:
    net = nn.Module()
    net.backbone = nn.Sequential(nn.Conv2d(3, 8, 3))
    with pytest.raises(UserError, match='the backbone has no layer that could have density "1/2"'):
        sparsify(net, Sparsity(Fraction(1, 2)))


def test_modules_have_densities_of_their_own() -> None:
    quarter, half = Fraction(1, 4), Fraction(1, 2)
    net = resnet18()
    sparsify(net, Sparsity(EIGHTH, modules=(("layer1", quarter), ("layer1.1", half), ("layer2.0", Fraction(1)))))
    groups = {name: m.groups for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and "conv" in name}
    found = {name.removeprefix("backbone."): groups[name] for name in groups}
    assert {found[f"layer1.0.conv{i}"] for i in (1, 2)} == {4}
    assert {found[f"layer1.1.conv{i}"] for i in (1, 2)} == {2}
    assert {found[f"layer2.0.conv{i}"] for i in (1, 2)} == {1}
    assert {n for name, n in found.items() if name.startswith(("layer2.1", "layer3", "layer4"))} == {8}
    shuffled_ones = {name for name, m in net.named_modules() if isinstance(m, ShuffledConv2d)}
    assert {f"backbone.layer{i}.conv2" for i in ("1.0", "1.1", "2.1", "3.0", "4.1")} <= shuffled_ones
    image = torch.randn(2, 3, 32, 32)
    assert torch.isfinite(net.eval()(image)["hue"]).all()


def test_a_module_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UserError, match='no layer that can be sparse in "layr1"') as raised:
        sparsify(resnet18(), Sparsity(modules=(("layr1", EIGHTH),)))
    assert "density layer1=1/8" in raised.value.tries


def test_a_specification_is_its_own_expression() -> None:
    asked = Sparsity(EIGHTH, Fraction(1, 2), Scattered(5), modules=(("layer1", Fraction(1, 4)),))
    names = {"Sparsity": Sparsity, "Scattered": Scattered, "Fraction": Fraction}
    assert eval(repr(asked), names) == asked
