"""FACES in the publisher's names: labels from the names, people on one side only, pixels as Pillow reads them."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splitboard.contract.errors import UserError
from splitboard.zoo.data import faces
from splitboard.zoo.data.dataset import DataSet
from splitboard.zoo.data.photographs import Photographs

PEOPLE = {f"{number:03d}": ("ymo"[number % 3], "fm"[number // 3 % 2]) for number in range(4, 64)}
"""Ten of each age and gender."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    for (person, (age, gender)), expression, take in itertools.product(PEOPLE.items(), "adfhns", "ab"):
        colour = (4 * int(person), 40 * "adfhns".index(expression), 200 * "ab".index(take))
        Image.new("RGB", (16, 20), colour).save(folder / f"{person}_{age}_{gender}_{expression}_{take}.jpg", quality=95)
    return folder


def names(data: DataSet, part: str) -> list[str]:
    images = getattr(data, part).images
    assert isinstance(images, Photographs)
    return [Path(path).name for path in images.paths]


def test_nobody_is_on_two_sides(published: Path) -> None:
    data = faces.load(published, size=16)
    people = {part: {name[:3] for name in names(data, part)} for part in ("train", "validation", "test")}
    assert len(set.union(*people.values())) == sum(map(len, people.values())) == len(PEOPLE)
    for stratum in itertools.product("ymo", "fm"):
        counts = {part: sum(PEOPLE[person] == stratum for person in found) for part, found in people.items()}
        assert counts == {"train": 7, "validation": 1, "test": 2}
    assert sum(len(names(data, part)) for part in people) == 60 * 12


def test_labels_are_those_of_the_names(published: Path) -> None:
    data = faces.load(published, size=16)
    words = {
        "age": {"y": "young", "m": "middle-aged", "o": "old"},
        "gender": {"f": "female", "m": "male"},
        "expression": {
            "a": "anger", "d": "disgust", "f": "fear", "h": "happiness", "n": "neutrality", "s": "sadness"
        },
    }  # fmt: skip
    for part in ("train", "validation", "test"):
        for place, name in enumerate(names(data, part)):
            for task, code in zip(words, name.split("_")[1:4], strict=True):
                assert data.classes[task][getattr(data, part).labels[task][place]] == words[task][code]


def test_the_arrangement_in_folders_does_not_matter(published: Path, tmp_path: Path) -> None:
    """MTL-Split's own copy has the folders train and val."""
    for number, path in enumerate(sorted(published.iterdir())):
        target = tmp_path / ("train" if number % 5 else "val") / path.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    (tmp_path / "._004_y_m_a_a.jpg").write_bytes(b"of a Mac")
    (tmp_path / "readme.txt").write_text("not a picture")
    one, other = faces.load(published, size=16), faces.load(tmp_path, size=16)
    for part in ("train", "validation", "test"):
        assert names(one, part) == names(other, part)


def test_pixels_are_those_of_the_middle(tmp_path: Path) -> None:
    """A wide image and a tall one: what is beyond the middle square is cut off; a file of that size is unchanged."""
    random = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(random).save(tmp_path / "exact.jpg")
    bands = np.zeros((40, 80, 3), np.uint8)
    bands[:, :20], bands[:, 20:60], bands[:, 60:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(bands).save(tmp_path / "wide.png")
    Image.fromarray(bands.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    Image.fromarray(bands[..., 1]).save(tmp_path / "grey.png")
    images = Photographs(tmp_path, ("exact.jpg", "wide.png", "tall.png", "grey.png"), 32)
    exact, wide, tall, grey = images.read(np.arange(4))
    np.testing.assert_array_equal(exact, np.asarray(Image.open(tmp_path / "exact.jpg")))
    for image, colour in ((wide, (0, 255, 0)), (tall, (0, 255, 0)), (grey, (255, 255, 255))):
        assert np.all(image[1:-1, 1:-1] == colour)
        assert np.all(image[..., 1] > 200)  # the filter reaches over the edge by less than a pixel
    np.testing.assert_array_equal(images.read(np.array([2, 0, 2])), np.stack([tall, exact, tall]))


def test_a_large_photograph_is_its_average(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 1600)
    Image.fromarray(np.repeat(np.repeat(ramp[None, :, None], 1200, 0), 3, 2).astype(np.uint8)).save(tmp_path / "a.jpg")
    (image,) = Photographs(tmp_path, ("a.jpg",), 24).read(np.array([0]))
    expected = ramp[200:1400].reshape(24, -1).mean(axis=1)
    np.testing.assert_allclose(image.mean(axis=(0, 2)), expected, atol=2)


def test_identity_follows_the_files(published: Path) -> None:
    data, larger = faces.load(published, size=16), faces.load(published, size=20)
    assert faces.load(published, size=16).train.sha256 == data.train.sha256
    assert len({data.train.sha256, data.validation.sha256, data.test.sha256, larger.train.sha256}) == 4


@pytest.mark.parametrize(
    ("name", "said", "tried"),
    [
        ("portrait.jpg", '"portrait.jpg" is not named', "004_o_m_a_a.jpg"),
        ("004_o_m_a.jpg", '"004_o_m_a.jpg" is not named', "ID_AGE_GENDER_EXPRESSION_SET"),
        ("0x4_o_m_a_a.jpg", '"0x4_o_m_a_a.jpg" is not named', "004_o_m_a_a.jpg"),
        ("004_c_m_a_a.jpg", 'age "c"', "age: y, m, o"),
        ("004_y_x_a_a.jpg", 'gender "x"', "gender: f, m"),
        ("004_y_m_q_a.jpg", 'expression "q"', "a, d, f, h, n, s"),
        ("004_y_m_a_c.jpg", 'set "c"', "set: a, b"),
        ("005_o_m_a_a.jpg", 'person "005" is "m_f" and "o_m"', "one age and one gender"),
        ("again/005_m_f_a_a.jpg", '"005_m_f_a_a.jpg" is in', "keep one"),
    ],
)
def test_odd_files_are_refused(tmp_path: Path, name: str, said: str, tried: str) -> None:
    for path in ("005_m_f_a_a.jpg", "005_m_f_a_b.jpg", name):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / path)
    with pytest.raises(UserError) as refused:
        faces.load(tmp_path)
    assert said in refused.value.message
    assert any(tried in line for line in refused.value.tries)


def test_folders_without_enough_are_refused(tmp_path: Path, published: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        faces.load(tmp_path / "none")
    with pytest.raises(UserError, match="holds no pictures of FACES"):
        faces.load(tmp_path)
    with pytest.raises(UserError, match='"4" is not a size'):
        faces.load(published, size=4)
    for person in ("004", "005", "006"):
        for path in published.glob(f"{person}_*"):
            shutil.copy(path, tmp_path)
    with pytest.raises(UserError, match='pictures of "3" people, too few for a validation part'):
        faces.load(tmp_path)


def test_a_damaged_picture_is_named_when_it_is_read(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path / "copy")
    data = faces.load(tmp_path / "copy", size=16)
    first = names(data, "train")[0]
    whole = (tmp_path / "copy" / first).read_bytes()
    for damaged in (b"no picture", b"", whole[: len(whole) // 2]):
        (tmp_path / "copy" / first).write_bytes(damaged)
        with pytest.raises(UserError, match=f'cannot read the image ".*{first}"'):
            data.train.images.read(np.array([0]))
