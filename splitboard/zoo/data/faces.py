"""``faces``: FACES of the Max Planck Institute for Human Development, 171 people with six expressions, twice each.

N. C. Ebner, M. Riediger and U. Lindenberger, "FACES: a database of facial expressions in young, middle-aged, and older
women and men", Behavior Research Methods 42 (2010). The publisher hands it out to researchers one by one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitboard.contract.errors import UserError
from splitboard.zoo.data.dataset import DataSet, Part, identity, labelled
from splitboard.zoo.data.photographs import Photographs, file_facts

_CODES = {
    "age": {"y": "young", "m": "middle-aged", "o": "old"},
    "gender": {"f": "female", "m": "male"},
    "expression": {"a": "anger", "d": "disgust", "f": "fear", "h": "happiness", "n": "neutrality", "s": "sadness"},
}
"""Of the file names, in their order there: ``004_o_m_a_a.jpg`` is person, age, gender, expression, set."""

CLASSES = {task: tuple(codes.values()) for task, codes in _CODES.items()}
"""Class names by task."""

_SETS = ("a", "b")

_TEST_SHARE = 0.20
_VALIDATION_SHARE = 0.10


@dataclass(frozen=True)
class _Picture:
    """One file.

    Attributes:
        path: relative to the folder.
        person: their number, as text.
        codes: of age, gender and expression.
    """

    path: str
    person: str
    codes: tuple[str, str, str]

    @property
    def stratum(self) -> tuple[str, str]:
        """Age and gender."""
        return self.codes[0], self.codes[1]


def load(folder: Path, size: int = 224) -> DataSet:
    """The pictures of a folder and of the folders in it, divided by person.

    Nobody is in two parts. Of the people of each age and gender a fifth are tested on and a tenth validate, chosen by
    the sha256 of their number: the same people on every machine, however the files are arranged.

    Args:
        folder: holds ``ID_AGE_GENDER_EXPRESSION_SET.jpg``.
        size: rows and columns of the images; see `Photographs`.

    Raises:
        UserError: no such folder, no pictures, a file of another name or with a label that FACES does not have, a file
            twice, a person of two ages or genders, or too few people for three parts.
    """
    pictures = _pictures(folder)
    side = _sides(pictures)

    def part(name: str) -> Part:
        chosen = [picture for picture in pictures if side[picture.person] == name]
        if not chosen:
            raise UserError(
                f'"{folder}" has pictures of "{len(side)}" people, too few for a {name} part',
                ["use the whole data set: 171 people", "six people of each age and gender are enough"],
            )
        paths = tuple(picture.path for picture in chosen)
        labels = {
            task: np.array([list(_CODES[task]).index(picture.codes[column]) for picture in chosen], np.int64)
            for column, task in enumerate(_CODES)
        }
        sha256 = identity([b"faces", str(size).encode(), file_facts(folder, paths)])
        return labelled(Photographs(folder, paths, size), labels, CLASSES, sha256)

    return DataSet("faces", CLASSES, 3, part("train"), part("validation"), part("test"))


def _pictures(folder: Path) -> list[_Picture]:
    """All pictures, in the order of their file names."""
    if not folder.is_dir():
        raise UserError(f'there is no folder "{folder}"', ["name the folder that holds the pictures of FACES"])
    files = [path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg") and path.name[0] != "."]
    if not files:
        raise UserError(
            f'"{folder}" holds no pictures of FACES', ["name the folder with files such as 004_o_m_a_a.jpg"]
        )
    found: dict[str, _Picture] = {}
    for path in sorted(files, key=lambda path: (path.name, str(path))):
        if path.stem in found:
            raise UserError(f'"{path.name}" is in "{folder}" twice', ["keep one of the two"])
        found[path.stem] = _picture(path, path.relative_to(folder).as_posix())
    return list(found.values())


def _picture(path: Path, relative: str) -> _Picture:
    fields = path.stem.split("_")
    if len(fields) != 5 or not fields[0].isdecimal():
        raise UserError(
            f'"{path.name}" is not named as FACES names its pictures',
            ["ID_AGE_GENDER_EXPRESSION_SET.jpg, e.g. 004_o_m_a_a.jpg", "move other pictures out of the folder"],
        )
    known = {**{task: tuple(codes) for task, codes in _CODES.items()}, "set": _SETS}
    for (what, codes), code in zip(known.items(), fields[1:], strict=True):
        if code not in codes:
            raise UserError(
                f'"{path.name}" has {what} "{code}", which FACES does not have', [f"{what}: {', '.join(codes)}"]
            )
    return _Picture(relative, fields[0], (fields[1], fields[2], fields[3]))


def _sides(pictures: list[_Picture]) -> dict[str, str]:
    """Which part each person belongs to."""
    strata: dict[str, tuple[str, str]] = {}
    for picture in pictures:
        if strata.setdefault(picture.person, picture.stratum) != picture.stratum:
            raise UserError(
                f'person "{picture.person}" is "{"_".join(strata[picture.person])}" and "{"_".join(picture.stratum)}"',
                ["a person of FACES has one age and one gender: restore the publisher's file names"],
            )
    side = {}
    for stratum in sorted(set(strata.values())):
        people = sorted((p for p in strata if strata[p] == stratum), key=lambda p: hashlib.sha256(p.encode()).digest())
        test = round(len(people) * _TEST_SHARE)
        validation = test + round(len(people) * _VALIDATION_SHARE)
        for place, person in enumerate(people):
            side[person] = "test" if place < test else "validation" if place < validation else "train"
    return side
