"""Wrong command lines of `splitboard train`: exit code 3, one line with the value, advice, nothing left behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

from splitboard.cli.main import run


@dataclass(frozen=True)
class Wrong:
    """One wrong command line.

    Attributes:
        arguments: behind ``train``.
        value: stands in quotes in the first line.
        advice: stands in a ``Try:`` line.
    """

    arguments: Sequence[str]
    value: str
    advice: str = ""


WRONG = {
    "data set": Wrong(["cifar"], "cifar", "splitboard train shapes"),
    "backbone": Wrong(["shapes", "--backbone", "resnet50"], "resnet50", "resnet18"),
    "image smaller than the backbone": Wrong(["shapes", "--backbone", "vgg16", "--size", "16"], "16x16", "larger"),
    "place of an exit": Wrong(["shapes", "--exit", "layr2"], "layr2", "layer2"),
    "weight of an exit": Wrong(["shapes", "--exit", "layer2=x"], "layer2=x"),
    "density that no degree allows": Wrong(["shapes", "--density", "backbone=1/3"], "1/3", "1/2"),
    "density between groups": Wrong(["shapes", "--density", "backbone=3/8"], "3/8", "1/2"),
    "density of one part twice": Wrong(
        ["shapes", "--density", "heads=1/8,heads=1/4"], "heads=1/8,heads=1/4", "heads=1/4"
    ),
    "misspelt part of a density": Wrong(["shapes", "--density", "hads=1/8"], "hads", "density heads=1/8"),
    "second of two epochs": Wrong(["shapes", "--epochs", "1", "--epochs", "-1"], "-1", "--help"),
    "density above one": Wrong(["shapes", "--density", "heads=9/8"], "9/8", "1/8"),
    "density of nothing": Wrong(["shapes", "--density", "1/8"], "1/8", "backbone="),
    "pattern of nothing": Wrong(["shapes", "--pattern", "grouped"], "grouped", "--density"),
    "head": Wrong(["shapes", "--head", "big"], "big", "flat"),
    "weighting": Wrong(["shapes", "--weighting", "equal"], "equal", "uncertainty"),
    "factor": Wrong(["shapes", "--tasks", "shap"], "shap", "shape"),
    "learning rate": Wrong(["shapes", "--learning-rate", "0"], "0.0"),
    "batch larger than the data": Wrong(["shapes", "--batch", "9000", "--epochs", "1"], "9000", "smaller batch"),
    "weights that are none": Wrong(["shapes", "--weights", "garbage.bin"], "garbage.bin"),
    "log into a file": Wrong(["shapes", "--log", "garbage.bin"], "garbage.bin"),
    "log where nothing can be": Wrong(["shapes", "--log", "/proc/nolog"], "/proc/nolog", "leave --log out"),
    "weights where nothing can be": Wrong(["shapes", "-o", "/proc/x.safetensors"], "/proc/x", "-o"),
    "name of another module": Wrong(["shapes", "-o", "out/json.safetensors"], "json", "my_net"),
    "files for a set without": Wrong(["elpv", "--data", "x"], "x"),
    "no files for a set of files": Wrong(["faces"], "faces", "--data"),
    "no such folder": Wrong(["faces", "--data", "nowhere"], "nowhere"),
    "folder in another layout": Wrong(["medic", "--data", "folder"], "folder"),
    "no face in the folder": Wrong(["faces", "--data", "folder"], "folder"),
    "h5 of another shape": Wrong(["shapes3d", "--data", "other.h5"], "other.h5"),
    "resume of nothing": Wrong(["shapes", "--resume"], "shapes_resnet18.checkpoint", "--resume"),
    "beside an interrupted training": Wrong(["shapes", "-o", "n.safetensors"], "n.checkpoint", "--resume"),
}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files that are not what they are taken for."""
    (tmp_path / "garbage.bin").write_bytes(b"garbage")
    (tmp_path / "n.checkpoint").write_bytes(b"garbage")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("nothing\n")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = np.zeros((3, 32, 32, 3), np.uint8)
        file["labels"] = np.zeros((3, 6))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", WRONG)
def test_one_line_advice_and_nothing_left(name: str, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in desk.rglob("*") if path.is_file()}
    row = WRONG[name]
    assert run(["train", *row.arguments]) == 3
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ")
    assert f'"{row.value}' in first or f'{row.value}"' in first
    assert rest
    assert all(line.startswith("Try: ") for line in rest)
    assert row.advice in "\n".join(rest)
    assert {path: path.read_bytes() for path in desk.rglob("*") if path.is_file()} == before


def test_a_label_that_the_publisher_does_not_know(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "faces").mkdir()
    (desk / "faces" / "004_q_m_a_a.jpg").write_bytes(b"")
    assert run(["train", "faces", "--data", "faces"]) == 3
    first = capsys.readouterr().err.splitlines()[0]
    assert "004_q_m_a_a.jpg" in first
