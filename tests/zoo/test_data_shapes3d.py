"""`3dshapes.h5` in the publisher's layout, against direct reading with h5py."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from splitboard.contract.errors import UserError
from splitboard.zoo.data import shapes3d

HUES = np.arange(10) / 10
VALUES = [HUES, HUES, HUES, np.linspace(0.75, 1.25, 8), np.arange(4.0), np.linspace(-30, 30, 15)]


def write(path: Path, count: int = 240, **storage: Any) -> Path:
    """A selection of the grid with images that are noise."""
    random = np.random.default_rng(5)
    rows = random.permutation(
        np.array(list(itertools.product(range(10), range(10), [2, 9], [0, 3, 7], range(4), [0, 14])))
    )
    with h5py.File(path, "w") as file:
        file["labels"] = np.stack([VALUES[i][rows[:count, i]] for i in range(6)], axis=1)
        pixels = random.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
        file.create_dataset("images", data=pixels, **storage)
    return path


@pytest.mark.parametrize(
    "storage", [{"chunks": (7, 16, 64, 3), "compression": "gzip"}, {}], ids=["chunks", "contiguous"]
)
def test_images_and_labels_are_those_of_the_file(tmp_path: Path, storage: dict[str, Any]) -> None:
    path = write(tmp_path / "3dshapes.h5", **storage)
    names = ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")
    data = shapes3d.load(path, tasks=names)
    with h5py.File(path) as file:
        images, labels = file["images"][:], file["labels"][:]
    seen: set[int] = set()
    for name in ("train", "validation", "test"):
        part = getattr(data, name)
        order = np.random.default_rng(1).integers(0, len(part.images), 40)
        np.testing.assert_array_equal(part.images.read(order), images[part.images.rows[order]])
        for row, place in zip(part.images.rows, range(len(part.images)), strict=True):
            assert (labels[row, 0] > 0.45 and labels[row, 1] > 0.45) == (name == "test")
            assert [VALUES[i][part.labels[task][place]] for i, task in enumerate(names)] == pytest.approx(
                list(labels[row])
            )
        assert not seen & set(part.images.rows)
        seen |= set(part.images.rows)
    assert seen == set(range(240))
    assert len(data.validation.images) == round(0.1 * (240 - len(data.test.images)))


def test_a_few_images_take_little_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "3dshapes.h5", count=2000)
    images = shapes3d.load(path).train.images
    tracemalloc.start()
    images.read(np.array([900, 3, 500]))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < path.stat().st_size / 10


def test_numbers_of_images_and_identity(tmp_path: Path) -> None:
    path = write(tmp_path / "3dshapes.h5")
    data = shapes3d.load(path, n_train=50, n_validation=20, n_test=10)
    assert [len(part.images) for part in (data.train, data.validation, data.test)] == [50, 20, 10]
    assert list(data.classes) == ["scale", "shape"]
    assert shapes3d.load(path, 50, 20, 10).train.sha256 == data.train.sha256
    assert shapes3d.load(path, 50, 20, 10, seed=2).train.sha256 != data.train.sha256
    with h5py.File(path, "r+") as file:
        file["images"][0, 0, 0, 0] += 1
    assert shapes3d.load(path, 50, 20, 10).train.sha256 != data.train.sha256


def no_hdf5(path: Path) -> None:
    path.write_bytes(b"\x89PNG")


def missing(path: Path) -> None:
    path.unlink()


def changed(name: str, make: Callable[[Any], Any]) -> Callable[[Path], None]:
    """The file with another dataset in the place of one."""

    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            old = file[name][:]
            del file[name]
            new = make(old)
            if new is not None:
                file[name] = new

    return change


def group(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["labels"]
        file.create_group("labels")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def labelled(column: int, value: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file["labels"][17, column] = value

    return change


def no_test(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["labels"][:, 0] = 0.1


@pytest.mark.parametrize(
    ("change", "said", "tried"),
    [
        (missing, "there is no file", "google-deepmind/3d-shapes"),
        (folder, "is a folder", "google-deepmind/3d-shapes"),
        (no_hdf5, "as HDF5", "download"),
        (changed("images", lambda old: None), 'no dataset "images"', "images and labels"),
        (changed("labels", lambda old: None), 'no dataset "labels"', "images and labels"),
        (group, 'no dataset "labels"', "images and labels"),
        (changed("images", lambda old: old[:, ::2, ::2]), '"240x32x32x3 uint8"', "Nx64x64x3 uint8"),
        (changed("images", lambda old: old.astype(np.float32)), '"240x64x64x3 float32"', "Nx64x64x3 uint8"),
        (changed("images", lambda old: old[:-1]), 'has "239" images and "240" rows of labels', "one row of labels"),
        (changed("labels", lambda old: old[:, :5]), '"240x5 float64"', "Nx6 float64"),
        (changed("labels", lambda old: old.astype(np.int64)), '"240x6 int64"', "Nx6 float64"),
        (changed("labels", lambda old: 3.0), '"one value float64"', "Nx6 float64"),
        (labelled(3, 0.8), 'row 17 of "labels"', "0.75, 0.821429"),
        (labelled(4, 4.0), 'has shape "4"', "0, 1, 2, 3"),
        (labelled(0, float("nan")), 'has floor_hue "nan"', "0.9"),
        (no_test, '"240" images to train and validate on and "0" to test on', "publisher's file"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, change: Callable[[Path], None], said: str, tried: str) -> None:
    path = write(tmp_path / "3dshapes.h5")
    change(path)
    with pytest.raises(UserError) as refused:
        shapes3d.load(path)
    assert said in refused.value.message
    assert str(path) in refused.value.message
    assert any(tried in line for line in refused.value.tries)


def test_more_images_than_there_are_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "3dshapes.h5")
    with pytest.raises(UserError, match='"1000" training images cannot be drawn'):
        shapes3d.load(path, n_train=1000)
