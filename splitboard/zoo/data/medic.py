"""``medic``: MEDIC, 71,198 photographs from social media after disasters, with up to four labels each.

F. Alam et al., "MEDIC: a multi-task learning dataset for disaster image classification", Neural Computing and
Applications 35 (2023); crisisnlp.qcri.org/medic; CC BY-NC-SA 4.0. The publishers divided it: train, dev and test.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitboard.contract.errors import UserError
from splitboard.zoo.data.dataset import DataSet, Part, identity, labelled
from splitboard.zoo.data.photographs import Photographs, file_facts

NATURAL_DISASTERS = ("earthquake", "fire", "flood", "hurricane", "landslide")
"""Those that MTL-Split learns."""

ALL_TYPES = (*NATURAL_DISASTERS, "not_disaster", "other_disaster")

LABELS = {
    "damage_severity": ("little_or_none", "mild", "severe"),
    "disaster_types": ALL_TYPES,
    "humanitarian": (
        "affected_injured_or_dead_people",
        "infrastructure_and_utility_damage",
        "not_humanitarian",
        "rescue_volunteering_or_donation_effort",
    ),
    "informative": ("informative", "not_informative"),
}
"""All labels of the publishers by task, which is a column of their tables."""

TASKS = ("damage_severity", "disaster_types")
"""The two that MTL-Split learns."""

_FILES = {"train": "MEDIC_train.tsv", "validation": "MEDIC_dev.tsv", "test": "MEDIC_test.tsv"}


@dataclass(frozen=True)
class _Row:
    """A row of a table.

    Attributes:
        path: of the image, relative to the folder.
        labels: by task.
    """

    path: str
    labels: dict[str, str]


def load(
    folder: Path, size: int = 224, tasks: tuple[str, ...] = TASKS, disaster_types: tuple[str, ...] = NATURAL_DISASTERS
) -> DataSet:
    """The publishers' partition; their dev part is the validation part.

    Args:
        folder: holds ``MEDIC_train.tsv``, ``MEDIC_dev.tsv``, ``MEDIC_test.tsv`` and the images under ``data/``.
        size: rows and columns of the images; see `Photographs`.
        tasks: columns of the tables.
        disaster_types: images of other types are left out, whatever the tasks; `ALL_TYPES` keeps every image.

    Raises:
        UserError: a file or column is missing, a label is unknown, an image is missing or in two parts, or a task or
            type is asked for that there is not.
    """
    classes = _classes(tasks, disaster_types)
    tables = {name: _table(folder, file) for name, file in _FILES.items()}
    _check_disjoint(tables)

    def part(name: str) -> Part:
        rows = [row for row in tables[name] if row.labels["disaster_types"] in disaster_types]
        if not rows:
            raise UserError(
                f'"{folder / _FILES[name]}" has no image of the types "{", ".join(disaster_types)}"',
                ["use the publishers' files as they are"],
            )
        labels = {
            task: np.array([names.index(row.labels[task]) for row in rows], np.int64) for task, names in classes.items()
        }
        paths = tuple(row.path for row in rows)
        pieces = [
            b"medic",
            str(size).encode(),
            file_facts(folder, paths),
            *(labels[task].tobytes() for task in classes),
        ]
        return labelled(Photographs(folder, paths, size), labels, classes, identity(pieces))

    return DataSet("medic", classes, 3, part("train"), part("validation"), part("test"))


def _classes(tasks: tuple[str, ...], disaster_types: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    for asked, known, what in ((tasks, tuple(LABELS), "task"), (disaster_types, ALL_TYPES, "type of disaster")):
        unknown = [name for name in asked if name not in known]
        if unknown or not asked or len(set(asked)) < len(asked):
            wrong = unknown[0] if unknown else ",".join(asked)
            raise UserError(
                f'"{wrong}" is not a choice of MEDIC\'s: {what}', [f"choose from {', '.join(known)}, each once"]
            )
    return {task: disaster_types if task == "disaster_types" else LABELS[task] for task in tasks}


def _table(folder: Path, name: str) -> list[_Row]:
    """The rows of one of the publishers' tables, all of them checked."""
    path = folder / name
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(_rows(csv.DictReader(file, delimiter="\t"), folder, path))
    except FileNotFoundError as error:
        raise UserError(
            f'there is no "{path}"',
            ["name the unpacked folder of MEDIC.tar.gz", f"it holds {', '.join(_FILES.values())}"],
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'cannot read "{path}": {error}', ["unpack MEDIC.tar.gz again"]) from error


def _rows(reader: csv.DictReader[str], folder: Path, path: Path) -> Iterator[_Row]:
    columns = ("image_path", *LABELS)
    for column in columns:
        if column not in (reader.fieldnames or ()):
            raise UserError(
                f'"{path}" has no column "{column}"',
                [f"the publishers' tables have {', '.join(columns)}, divided by tabs"],
            )
    for fields in reader:
        where = f'row {reader.line_num} of "{path}"'
        if None in fields.values():
            present = sum(value is not None for value in fields.values())
            raise UserError(f'{where} has "{present}" of {len(fields)} columns', ["unpack MEDIC.tar.gz again"])
        for task, names in LABELS.items():
            if fields[task] not in names:
                raise UserError(f'{where} has {task} "{fields[task]}"', [f"MEDIC's labels: {', '.join(names)}"])
        if not fields["image_path"] or not (folder / fields["image_path"]).is_file():
            raise UserError(
                f'{where} names "{fields["image_path"]}", which is not there', ["unpack MEDIC.tar.gz again"]
            )
        yield _Row(fields["image_path"], {task: fields[task] for task in LABELS})


def _check_disjoint(tables: dict[str, list[_Row]]) -> None:
    seen: dict[str, str] = {}
    for name, rows in tables.items():
        for row in rows:
            if seen.setdefault(row.path, name) != name:
                raise UserError(
                    f'"{row.path}" is in "{_FILES[seen[row.path]]}" and in "{_FILES[name]}"',
                    ["use the publishers' tables, whose parts are disjoint"],
                )
