"""The rendered data set: grid and partition by brute force, noise against the distributions it is named after."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from splitboard.contract.errors import UserError
from splitboard.zoo.data import shapes
from splitboard.zoo.data.dataset import DataSet, Part, StoredImages, identity, labelled, one_hot
from splitboard.zoo.data.factors import FACTORS, GRID, factors_at, is_test
from splitboard.zoo.data.noise import Noise, SaltAndPepper, SaltAndPepperByNormal

SIZES = {"n_train": 300, "n_validation": 120, "n_test": 150}


def load(**changed: Any) -> DataSet:
    return shapes.load(**{"size": 16, **SIZES, **changed})


def grid_of(part: Part) -> NDArray[np.int64]:
    assert isinstance(part.images, shapes.RenderedImages)
    return part.images.grid


def test_the_grid_is_the_publishers() -> None:
    """Floor, wall, object hue, scale, shape, orientation: the last one fastest."""
    every = np.array(list(itertools.product(range(10), range(10), range(10), range(8), range(4), range(15))))
    np.testing.assert_array_equal(factors_at(np.arange(GRID)), every)
    assert len(every) == 480_000
    assert int(is_test(every).sum()) == 120_000
    spans = [(0, 0.9, 10)] * 3 + [(0.75, 1.25, 8), (0, 3, 4), (-30, 30, 15)]
    for factor, span in zip(FACTORS, spans, strict=True):
        np.testing.assert_allclose(factor.values, np.linspace(*span), atol=1e-12)
        assert len(set(factor.classes)) == len(factor.values)


def test_the_partition_is_compositional_and_disjoint() -> None:
    data = load()
    parts = {name: grid_of(getattr(data, name)) for name in ("train", "validation", "test")}
    assert {name: len(grid) for name, grid in parts.items()} == {"train": 300, "validation": 120, "test": 150}
    assert len(set().union(*(map(int, grid) for grid in parts.values()))) == 570
    for name, grid in parts.items():
        for index in grid:
            floor, wall = index // 48_000, index // 4_800 % 10
            assert (floor >= 5 and wall >= 5) == (name == "test")
    # Single hues of the test part all occur in training, only their pairings do not.
    assert set(parts["train"] // 48_000) == set(range(10))


def test_a_larger_part_holds_the_smaller_one() -> None:
    small, large = load(), load(n_train=500, n_test=200)
    np.testing.assert_array_equal(grid_of(large.train)[:300], grid_of(small.train))
    np.testing.assert_array_equal(grid_of(large.test)[:150], grid_of(small.test))
    np.testing.assert_array_equal(grid_of(large.validation), grid_of(small.validation))
    assert not np.array_equal(grid_of(load(seed=1).train), grid_of(small.train))


def test_labels_are_the_digits_of_the_index() -> None:
    tasks = ("orientation", "shape", "scale", "object_hue", "wall_hue", "floor_hue")
    data = load(tasks=tasks)
    for part in (data.train, data.validation, data.test):
        rest = grid_of(part)
        for task, count in zip(tasks, (15, 4, 8, 10, 10, 10), strict=True):
            np.testing.assert_array_equal(part.labels[task], rest % count)
            np.testing.assert_array_equal(part.targets[task].argmax(1), rest % count)
            assert part.targets[task].shape == (len(rest), len(data.classes[task])) == (len(rest), count)
            rest = rest // count
    assert list(load().classes) == ["scale", "shape"]
    assert data.classes["shape"] == ("cube", "cylinder", "sphere", "capsule")


@pytest.mark.parametrize("noise", [None, SaltAndPepper(0.2), SaltAndPepperByNormal()])
def test_an_image_is_the_same_whenever_it_is_read(noise: Noise | None) -> None:
    images = load(noise=noise).train.images
    together = images.read(np.array([7, 3, 7, 299]))
    assert together.shape == (4, 16, 16, 3)
    assert together.dtype == np.uint8
    alone = [images.read(np.array([index]))[0] for index in (299, 3, 7)]
    np.testing.assert_array_equal(together, np.stack([alone[2], alone[1], alone[2], alone[0]]))
    np.testing.assert_array_equal(load(noise=noise, n_train=400).train.images.read(np.array([3])), together[1:2])


def test_salt_and_pepper_has_its_probability() -> None:
    clean = load().train.images.read(np.arange(300)).astype(int)
    noisy = load(noise=SaltAndPepper(0.3)).train.images.read(np.arange(300)).astype(int)
    decided = (clean != 5) & (clean != 250)
    changed = (clean != noisy) & decided
    assert set(np.unique(noisy[changed])) == {5, 250}
    for value in (5, 250):
        count = int(np.sum(changed & (noisy == value)))
        assert stats.binomtest(count, int(decided.sum()), 0.15).pvalue > 1e-4
    first, second = changed[0], changed[1]
    assert not np.array_equal(first, second)
    other = load(noise=SaltAndPepper(0.3), seed=1)
    assert other.train.sha256 != load(noise=SaltAndPepper(0.3)).train.sha256


def test_the_published_noise_is_that_of_normal_numbers() -> None:
    """Against the rule itself, on normal numbers: low where z >= 0.92, high where z <= 0.08."""
    low, high = SaltAndPepperByNormal(0.08).shares()
    assert low == pytest.approx(stats.norm.sf(0.92))
    assert high == pytest.approx(stats.norm.cdf(0.08))
    clean = load().train.images.read(np.arange(300)).astype(int)
    noisy = load(noise=SaltAndPepperByNormal()).train.images.read(np.arange(300)).astype(int)
    decided = (clean != 5) & (clean != 250)
    z = np.random.default_rng(0).standard_normal(clean.shape)
    replaced = np.where(z >= 0.92, 5, np.where(z <= 0.08, 250, clean))
    for value in (5, 250):
        assert np.mean(noisy[decided] == value) == pytest.approx(np.mean(replaced[decided] == value), abs=0.005)
    assert np.mean((noisy != clean)[decided]) == pytest.approx(0.711, abs=0.005)


def test_the_identity_is_of_everything_that_determines_a_part() -> None:
    base = load()
    assert load().train.sha256 == base.train.sha256
    variants = [
        base,
        load(size=20),
        load(seed=3),
        load(n_train=301),
        load(noise=SaltAndPepper(0.1)),
        load(noise=SaltAndPepper(0.2)),
        load(noise=SaltAndPepperByNormal()),
        load(tasks=("shape",)),
    ]
    assert len({data.train.sha256 for data in variants}) == len(variants)
    assert len({base.train.sha256, base.validation.sha256, base.test.sha256}) == 3
    assert identity([b"ab", b"c"]) != identity([b"a", b"bc"])


@pytest.mark.parametrize(
    ("changed", "said", "tried"),
    [
        ({"size": 4}, '"4"', "8 to 1024"),
        ({"n_train": 359_881}, '"359881" training', "1 to 359880"),
        ({"n_validation": 0}, '"0" validation', "1 to"),
        ({"n_test": 120_001}, '"120001" test', "1 to 120000"),
        ({"tasks": ("shape", "colour")}, '"colour"', "floor_hue"),
        ({"tasks": ("shape", "shape")}, '"shape,shape"', "each once"),
        ({"seed": -1}, '"-1"', "0 or more"),
    ],
)
def test_what_cannot_be_had_is_refused(changed: dict[str, Any], said: str, tried: str) -> None:
    with pytest.raises(UserError) as refused:
        load(**changed)
    assert said in refused.value.message
    assert any(tried in line for line in refused.value.tries)


def test_noise_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r'"1\.5" is not a probability'):
        SaltAndPepper(1.5)
    with pytest.raises(UserError, match=r'"0\.5" is not a threshold'):
        SaltAndPepperByNormal(0.5)


def test_a_part_has_labels_for_every_image() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 1)
    part = labelled(StoredImages(pixels), {"t": np.array([1, 0])}, {"t": ("a", "b", "c")}, "x")
    assert part.targets["t"].tolist() == [[0, 1, 0], [1, 0, 0]]
    np.testing.assert_array_equal(part.images.read(np.array([1, 1, 0])), pixels[[1, 1, 0]])
    with pytest.raises(ValueError, match="differ"):
        Part(StoredImages(pixels), {"t": np.array([1])}, {"t": one_hot(np.array([1]), 3)}, "x")
