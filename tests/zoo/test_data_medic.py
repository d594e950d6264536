"""MEDIC as its publishers ship it: three tables and images, against the csv module and brute force."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from splitboard.contract.errors import UserError
from splitboard.zoo.data import medic
from splitboard.zoo.data.photographs import Photographs

COLUMNS = ["image_id", "event_name", "image_path", "damage_severity", "informative", "humanitarian", "disaster_types"]
TYPES = ["earthquake", "fire", "flood", "hurricane", "landslide", "not_disaster", "other_disaster"]
HUMANITARIAN = [
    "affected_injured_or_dead_people",
    "infrastructure_and_utility_damage",
    "not_humanitarian",
    "rescue_volunteering_or_donation_effort",
]
FILES = {"train": "MEDIC_train.tsv", "validation": "MEDIC_dev.tsv", "test": "MEDIC_test.tsv"}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def write(path: Path, rows: list[dict[str, str]], columns: list[str] = COLUMNS) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """42, 14 and 21 images; no severe damage in the dev part."""
    cases = itertools.product(("little_or_none", "mild", "severe"), ("informative", "not_informative"), TYPES)
    labels = list(itertools.islice(itertools.cycle(cases), 77))
    places = {"train": range(42), "validation": range(42, 56), "test": range(56, 77)}
    for name, file in FILES.items():
        rows = []
        for number in places[name]:
            path = f"data/aidr_disaster_types/an event/{name}_{number}.{'png' if number % 4 == 0 else 'jpg'}"
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 24), (number, 2 * number, 3 * number)).save(tmp_path / path)
            damage, informative, kind = labels[number]
            values = [str(number), "an event", path, damage, informative, HUMANITARIAN[number % 4], kind]
            rows.append(dict(zip(COLUMNS, values, strict=True)))
        write(tmp_path / file, rows)
    return tmp_path


def test_rows_become_labels(published: Path) -> None:
    data = medic.load(published, size=16)
    assert data.classes == {
        "damage_severity": ("little_or_none", "mild", "severe"),
        "disaster_types": ("earthquake", "fire", "flood", "hurricane", "landslide"),
    }
    for name, file in FILES.items():
        part = getattr(data, name)
        kept = [row for row in rows_of(published / file) if row["disaster_types"] in TYPES[:5]]
        assert 0 < len(kept) < len(rows_of(published / file))
        assert isinstance(part.images, Photographs)
        assert list(part.images.paths) == [row["image_path"] for row in kept]
        for task, names in data.classes.items():
            assert [names[label] for label in part.labels[task]] == [row[task] for row in kept]
        for place in (0, len(kept) - 1):
            with Image.open(published / kept[place]["image_path"]) as image:
                colour = np.asarray(image)[12, 10]
            np.testing.assert_allclose(part.images.read(np.array([place]))[0, 8, 8], colour, atol=2)


def test_labels_are_fixed_whichever_occur(published: Path) -> None:
    assert "severe" not in {row["damage_severity"] for row in rows_of(published / FILES["validation"])}
    data = medic.load(published, size=16)
    assert data.validation.targets["damage_severity"].shape[1] == 3


def test_other_tasks_and_all_types(published: Path) -> None:
    data = medic.load(published, 16, tuple(medic.LABELS), medic.ALL_TYPES)
    assert [len(part.images) for part in (data.train, data.validation, data.test)] == [42, 14, 21]
    assert sorted(data.classes["disaster_types"]) == TYPES
    rows = rows_of(published / FILES["test"])
    for task in ("humanitarian", "informative", "disaster_types"):
        assert [data.classes[task][label] for label in data.test.labels[task]] == [row[task] for row in rows]
    some = medic.load(published, 16, disaster_types=("flood", "fire"))
    assert some.classes["disaster_types"] == ("flood", "fire")
    identities = {found.train.sha256 for found in (some, data, medic.load(published, 16))}
    assert len(identities) == 3


def relabelled(column: str, value: str) -> Callable[[Path], None]:
    """The third row of the train table with another value: row 4 of the file."""

    def change(folder: Path) -> None:
        rows = rows_of(folder / FILES["train"])
        rows[2][column] = value
        write(folder / FILES["train"], rows)

    return change


def without(column: str) -> Callable[[Path], None]:
    return lambda folder: write(
        folder / FILES["test"], rows_of(folder / FILES["test"]), [name for name in COLUMNS if name != column]
    )


def cut_short(folder: Path) -> None:
    path = folder / FILES["test"]
    path.write_text(path.read_text().rsplit("\t", 2)[0] + "\n")


def twice(folder: Path) -> None:
    write(folder / FILES["test"], rows_of(folder / FILES["test"]) + rows_of(folder / FILES["train"])[:1])


def binary(folder: Path) -> None:
    (folder / FILES["validation"]).write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    ("change", "said", "tried"),
    [
        (lambda folder: (folder / "MEDIC_dev.tsv").unlink(), "MEDIC_dev.tsv", "MEDIC.tar.gz"),
        (binary, "MEDIC_dev.tsv", "unpack"),
        (without("damage_severity"), 'no column "damage_severity"', "image_path"),
        (without("image_path"), 'no column "image_path"', "divided by tabs"),
        (relabelled("disaster_types", "volcano"), 'MEDIC_train.tsv" has disaster_types "volcano"', "landslide"),
        (relabelled("damage_severity", ""), 'has damage_severity ""', "mild"),
        (relabelled("informative", "yes"), 'has informative "yes"', "not_informative"),
        (relabelled("image_path", "data/none.jpg"), 'names "data/none.jpg"', "unpack"),
        (relabelled("image_path", ""), 'names ""', "unpack"),
        (cut_short, "row 22 of", "unpack"),
        (twice, 'is in "MEDIC_train.tsv" and in "MEDIC_test.tsv"', "disjoint"),
    ],
)
def test_another_layout_is_refused(published: Path, change: Callable[[Path], Any], said: str, tried: str) -> None:
    change(published)
    with pytest.raises(UserError) as refused:
        medic.load(published, size=16)
    assert said in refused.value.message
    assert any(tried in line for line in refused.value.tries)


def test_a_row_that_is_cut_short_is_counted(published: Path) -> None:
    cut_short(published)
    with pytest.raises(UserError, match='has "5" of 7 columns'):
        medic.load(published, size=16)


def test_the_row_is_counted_as_an_editor_does(published: Path) -> None:
    relabelled("disaster_types", "volcano")(published)
    with pytest.raises(UserError, match="row 4 of"):
        medic.load(published, size=16)
    assert "volcano" in (published / FILES["train"]).read_text().splitlines()[3]


@pytest.mark.parametrize(
    ("tasks", "types", "said"),
    [(("severity",), TYPES, '"severity"'), ((), TYPES, "task"), (medic.TASKS, ("volcano",), '"volcano"')],
)
def test_tasks_and_types_that_there_are_not(
    published: Path, tasks: tuple[str, ...], types: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        medic.load(published, 16, tasks, tuple(types))


def test_a_part_without_images_of_the_types_is_refused(published: Path) -> None:
    rows = [row for row in rows_of(published / FILES["test"]) if row["disaster_types"] != "flood"]
    write(published / FILES["test"], rows)
    with pytest.raises(UserError, match='no image of the types "flood"'):
        medic.load(published, 16, disaster_types=("flood",))
