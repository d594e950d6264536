"""The same commands against a board on the desk: ``SPLITBOARD_STATION=user@host pytest -m hardware``.

The station may also be a name in the stations file (``SPLITBOARD_STATIONS``). It needs an interpreter for the tiny
network, or a way to its wheels.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from splitboard.cli.main import run
from splitboard.contract.bundle import load_bundle, write_manifest
from splitboard.contract.record import FLOAT_REFERENCE, read_records
from splitboard.contract.samples import load_samples

STATION = os.environ.get("SPLITBOARD_STATION", "")
pytestmark = [
    pytest.mark.hardware,
    pytest.mark.skipif(not STATION, reason="needs a board: SPLITBOARD_STATION=user@host"),
]


@pytest.fixture(scope="module")
def kind() -> str:
    """Of the board."""
    from boards.detect import detect
    from boards.open_board import open_board

    with open_board(STATION) as (_, shell):
        return detect(shell).kind


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path, kind: str) -> Path:
    """For the board's kind."""
    target = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, target)
    write_manifest(target, dataclasses.replace(load_bundle(target), board=kind))
    return target


def test_doctor_finds_nothing_in_the_way(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["doctor", STATION, "--bundle", str(bundle), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == 0, said


def test_deploy_bench_check_and_rollback(
    bundle: Path, tiny_samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["deploy", str(bundle), STATION]) == 0
    out = tmp_path / "runs.jsonl"
    assert run(
        ["bench", str(bundle), "--data", str(tiny_samples), "--board", STATION, "--limit", "20", "-o", str(out)]
    ) in (0, 2)
    records = [record for record in read_records(out) if record.split != FLOAT_REFERENCE]
    assert {record.split for record in records} >= {split.id for split in load_bundle(bundle).splits}
    assert not any(record.emulated for record in records)

    found = load_samples(tiny_samples, 1)
    evaluation = tmp_path / "test.npz"
    images = np.ascontiguousarray(found.images[:, ::-1])  # other images than calibrated the bundle
    np.savez(evaluation, images=images, **{f"labels.{task}": values for task, values in found.labels.items()})
    capsys.readouterr()
    code = run(["check", str(bundle), "--data", str(evaluation), "--board", STATION, "--json"])
    verdicts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code in (0, 1, 2)
    assert verdicts[-1]["n"] == len(found)

    second = tmp_path / "second"
    shutil.copytree(bundle, second)
    write_manifest(second, dataclasses.replace(load_bundle(second), name="second"))
    assert run(["deploy", str(second), STATION]) == 0
    assert run(["deploy", "--rollback", STATION]) == 0
