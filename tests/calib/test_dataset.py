"""Calibration sets: every source, no image twice, a fair share of every label, nothing of the user's imported here."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import synthetic_images
from PIL import Image

from calib.dataset import CalibrationSet, calibration_set, hold_out
from splitboard.contract.errors import UserError
from splitboard.contract.preprocess import Preprocessing, normalise, prepare
from splitboard.contract.samples import save_samples


def opened(source: Path | str, folder: Path, *, channels: int = 1, most: int = 500) -> CalibrationSet:
    with calibration_set(str(source), channels, most, folder) as data:
        images = [data.read(i).copy() for i in range(len(data))]
        return CalibrationSet(data.hashes, data.labels, data.n_duplicates, lambda i: images[i])


def test_an_archive_is_read_once_per_image(tmp_path: Path) -> None:
    images = synthetic_images(10)
    save_samples(tmp_path / "a.npz", np.concatenate([images, images[:4]]), {})
    data = opened(tmp_path / "a.npz", tmp_path)
    assert len(data) == 10
    assert data.n_duplicates == 4
    assert set(data.hashes) == {hashlib.sha256(image.tobytes()).hexdigest() for image in images}
    for i, sha256 in enumerate(data.hashes):
        assert hashlib.sha256(data.read(i).tobytes()).hexdigest() == sha256
    assert data.strata == {"": 10}


def test_folders_may_hold_images_of_several_sizes_and_are_labelled_by_subfolder(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, size in (("cat/a.png", (30, 40)), ("cat/b.png", (64, 20)), ("dog/c.png", (32, 32))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / name)
    data = opened(tmp_path, tmp_path, channels=3)
    assert data.strata == {"cat": 2, "dog": 1}
    spec = Preprocessing(height=16, width=16, source_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    inputs = list(data.inputs(spec))
    assert [one.shape for one in inputs] == [(1, 3, 16, 16)] * 3
    for i, found in enumerate(inputs):
        np.testing.assert_array_equal(found, normalise(prepare(data.read(i)[None], spec), spec))


def test_a_limit_takes_of_every_label_its_share(tmp_path: Path) -> None:
    images = synthetic_images(100)
    labels = np.repeat([0, 1], [80, 20])
    save_samples(tmp_path / "a.npz", images, {"task": labels})
    data = opened(tmp_path / "a.npz", tmp_path, most=20)
    assert data.strata == {"0": 16, "1": 4}
    shuffled = np.random.default_rng(1).permutation(100)
    save_samples(tmp_path / "b.npz", images[shuffled], {"task": labels[shuffled]})
    assert opened(tmp_path / "b.npz", tmp_path, most=20).hashes == data.hashes


def test_held_out_images_are_apart_and_fair(tmp_path: Path) -> None:
    save_samples(tmp_path / "a.npz", synthetic_images(100), {"task": np.repeat([0, 1], [70, 30])})
    making, judging = hold_out(opened(tmp_path / "a.npz", tmp_path))
    assert (len(making), len(judging)) == (80, 20)
    assert not set(making.hashes) & set(judging.hashes)
    assert judging.strata == {"0": 14, "1": 6}


def test_too_few_to_hold_some_out(tmp_path: Path) -> None:
    save_samples(tmp_path / "a.npz", synthetic_images(4), {})
    with pytest.raises(UserError, match='"4" calibration images are too few'):
        hold_out(opened(tmp_path / "a.npz", tmp_path))


THEIRS = """
import numpy
RANDOM = numpy.random.default_rng(0)
IMAGES = [RANDOM.integers(0, 256, (20, 20), dtype=numpy.uint8) for _ in range(5)]
def labelled():
    for i, image in enumerate(IMAGES):
        yield image, i % 2
def endless():
    while True:
        yield RANDOM.integers(0, 256, (20, 20), dtype=numpy.uint8)
def broken():
    yield IMAGES[0]
    raise KeyError("gone")
REAL = [image / 255 for image in IMAGES]
COLOUR = [numpy.zeros((4, 4, 3), numpy.uint8)]
EMPTY = []
NUMBER = 3
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A module of the user's, called as one of ours."""
    (tmp_path / "export.py").write_text(THEIRS, encoding="utf-8")
    return tmp_path


def test_an_iterable_of_the_users_runs_elsewhere(theirs: Path) -> None:
    before = set(sys.modules)
    data = opened("export:labelled", theirs)
    assert data.strata == {"0": 3, "1": 2}
    assert len(opened("export:IMAGES", theirs)) == 5
    assert len(opened("export:endless", theirs, most=7)) == 7
    assert not {name for name in set(sys.modules) - before if name == "export"}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("export:nothing", "cannot be imported"),
        ("elsewhere:IMAGES", "cannot be imported"),
        ("export:broken", "KeyError in \"export.py:13\": 'gone'"),
        ("export:REAL", "float64"),
        ("export:COLOUR", "uint8 \\[4, 4, 3\\]"),
        ("export:EMPTY", '"0" images'),
        ("export:NUMBER", '"int", not an iterable'),
    ],
)
def test_a_wrong_iterable_is_refused_in_one_line(theirs: Path, source: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        opened(source, theirs)
    assert "\n" not in error.value.message
    assert error.value.tries


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        opened(tmp_path / "empty", tmp_path)
    with pytest.raises(UserError, match="no images at"):
        opened(tmp_path / "none.npz", tmp_path)
