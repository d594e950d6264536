"""A user's own `export.py`, `boards/` or `numpy.py` never meets ours: their code runs in the export's child alone."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path

import pytest

from splitboard.cli.main import run

REPOSITORY = Path(__file__).parents[2]
SPLITBOARD = str(Path(sysconfig.get_path("scripts")) / "splitboard")

_TELLS = """
import os
import sys
from pathlib import Path

with open(Path(__file__).with_name("imported.log"), "a") as log:
    log.write(f"{os.getpid()} {__name__}\\n")
"""
"""A module that notes which process imported it."""

_NET = """
import json
import sys
from pathlib import Path

import boards
import calib
import export
import runtime_edge
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, export.CLASSES)

    def forward(self, image):
        return {"kind": self.head(image.mean((2, 3)))}


def make():
    found = {name: str(getattr(module, "__file__", None)) for name, module in list(sys.modules.items())}
    Path(__file__).with_name("modules.json").write_text(json.dumps(found))
    return Net()
"""

_SPEC = """labels = {}
[preprocessing]
height = 8
width = 8
source_channels = 3
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A user's project whose modules have our names."""
    for name in ("export", "calib", "boards", "runtime_edge", "runtime_server", "splitboard"):
        (tmp_path / f"{name}.py").write_text(_TELLS + "CLASSES = 5\n")
    (tmp_path / "net.py").write_text(_NET)
    (tmp_path / "spec.toml").write_text(_SPEC)
    return tmp_path


def splitboard(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The installed command, started in a user's project."""
    return subprocess.Popen(
        [SPLITBOARD, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_their_modules_are_imported_in_the_child_and_ours_are_not(theirs: Path) -> None:
    import torch

    torch.save({"head.weight": torch.ones(5, 3), "head.bias": torch.arange(5.0)}, theirs / "net.pt")
    options = ["--model", "net:make", "--spec", "spec.toml", "--input", "1x3x8x8", "-o", "model", "--json"]
    with splitboard(theirs, "export", "net.pt", *options) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["tasks"] == {"kind": ["0", "1", "2", "3", "4"]}

    imports = [line.split() for line in (theirs / "imported.log").read_text().splitlines()]
    assert sorted(name for _, name in imports) == ["boards", "calib", "export", "runtime_edge"]
    assert {pid for pid, _ in imports}.isdisjoint({str(process.pid)})
    assert len({pid for pid, _ in imports}) == 1

    modules = json.loads((theirs / "modules.json").read_text())
    assert modules["export"] == str(theirs / "export.py")
    ours = {REPOSITORY / name for name in ("splitboard", "boards", "calib", "export", "runtime_edge", "runtime_server")}
    child = REPOSITORY / "export" / "child.py"
    assert [name for name, file in modules.items() if ours & set(Path(file).parents) and Path(file) != child] == []


def test_a_bench_in_their_folder_imports_nothing_of_theirs(theirs: Path, tiny_bundle: Path, tiny_samples: Path) -> None:
    """Neither the command nor the server nor the edge runtime that it starts looks into the working directory."""
    options = ["--data", str(tiny_samples), "--limit", "5", "--warmup", "0", "-o", "runs.jsonl"]
    with splitboard(theirs, "bench", str(tiny_bundle), *options) as process:
        _, err = process.communicate(timeout=120)
    assert not (theirs / "imported.log").exists(), (theirs / "imported.log").read_text()
    assert process.returncode == 0, err


def test_only_path_is_on_the_import_path(
    theirs: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (theirs / "elsewhere").mkdir()
    monkeypatch.chdir(theirs)
    options = ["--spec", "spec.toml", "--input", "1x3x8x8", "-o", "model", "--path", "elsewhere"]
    assert run(["export", str(tiny_checkpoint), "--model", "net:make", *options]) == 3
    assert "No module named 'net'" in capfd.readouterr().err
    assert not (theirs / "imported.log").exists()
