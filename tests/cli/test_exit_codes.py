"""Every exit code, provoked: 0 pass, 1 a gate failed, 2 inconclusive, 3 wrong input, 70 a bug of ours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import boards.kinds
import splitboard.cli.demo
from splitboard.cli.demo import DemoRun
from splitboard.cli.main import run
from splitboard.contract.bundle import load_bundle
from splitboard.contract.record import FLOAT_REFERENCE, RunRecord, read_records
from splitboard.report.results import check_accuracy, summarise

MARGIN_POINTS = 1.0


@pytest.fixture(scope="module")
def records(tiny_bundle: Path, tiny_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> list[RunRecord]:
    """A real run whose splits all answer as the float model does, so that every drop below is one that a test made."""
    path = tmp_path_factory.mktemp("runs") / "tiny.jsonl"
    assert run(["bench", str(tiny_bundle), "--data", str(tiny_samples), "-o", str(path), "--warmup", "0"]) == 0
    measured = read_records(path)
    exact = next(record for record in measured if record.split == FLOAT_REFERENCE)
    return [replace(record, outputs=exact.outputs) for record in measured]


def spoil(records: list[RunRecord], split: str, task: str, n_images: int) -> list[RunRecord]:
    """Makes one split wrong on the first images that the float model has right."""
    (record,) = (record for record in records if record.split == split)
    scores, left = [list(row) for row in record.outputs[task]], n_images
    for row, truth in zip(scores, record.labels[task], strict=True):
        if left and row.index(max(row)) == truth:
            row[truth], left = min(row) - 1.0, left - 1
    assert left == 0
    changed = replace(record, outputs={**record.outputs, task: tuple(map(tuple, scores))})
    return [changed if record.split == split else record for record in records]


def demo_run(records: list[RunRecord], bundle_folder: Path) -> DemoRun:
    bundle = load_bundle(bundle_folder)
    return DemoRun(summarise(records, bundle), bundle, tuple(records), Path("report.html"))


def end_demo_with(monkeypatch: pytest.MonkeyPatch, done: DemoRun) -> None:
    monkeypatch.setattr(splitboard.cli.demo, "run_demo", lambda out, energy, limit: done)


def test_the_gate_names_what_failed_and_nothing_else(records: list[RunRecord], tiny_bundle: Path) -> None:
    """One of 120 images is 0.83 points and passes, two are 1.67 and do not."""
    passed = demo_run(spoil(records, "s03", "colour", 1), tiny_bundle).summary
    assert check_accuracy(passed.splits, MARGIN_POINTS) == []
    failed = demo_run(spoil(records, "s03", "colour", 2), tiny_bundle).summary
    (failure,) = check_accuracy(failed.splits, MARGIN_POINTS)
    assert failure.startswith("s03 (blocks.0), colour: ")
    assert "1.67 points lost, 1 allowed (120 images)" in failure


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_failed_gate_is_1(
    records: list[RunRecord],
    tiny_bundle: Path,
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = spoil(spoil(records, "s03", "colour", 2), "s05", "shape", 6)
    end_demo_with(monkeypatch, demo_run(bad, tiny_bundle))
    assert run(["demo", *flags]) == 1
    out, err = capsys.readouterr()
    first, *others = err.splitlines()
    assert first.startswith("error: ")
    assert "s03 (blocks.0), colour" in first
    assert "s05 (blocks.1), shape" in err
    assert "5.00 points lost" in err
    assert not any(line.startswith("Try: s05") for line in others), "a second failure is no advice"
    assert "Traceback" not in err
    if flags:
        assert [split["id"] for split in json.loads(out)["splits"]] == ["s03", "s05"]


def test_a_passed_gate_is_0(
    records: list[RunRecord], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    end_demo_with(monkeypatch, demo_run(records, tiny_bundle))
    assert run(["demo"]) == 0
    assert capsys.readouterr().err == ""


def test_no_labels_is_2(
    records: list[RunRecord], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    end_demo_with(monkeypatch, demo_run([replace(record, labels={}) for record in records], tiny_bundle))
    assert run(["demo"]) == 2
    assert "has no labelled images" in capsys.readouterr().err


def test_a_usage_error_is_3(capsys: pytest.CaptureFixture[str]) -> None:
    """Click's own code for it is 2, which means inconclusive here."""
    assert run(["splits"]) == 3
    assert capsys.readouterr().err.startswith("error: ")


def test_a_bug_is_70_with_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> list[str]:
        raise RuntimeError("not foreseen")

    monkeypatch.setattr(boards.kinds, "kind_names", broken)
    assert run(["boards"]) == 70
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert err.rstrip().endswith("RuntimeError: not foreseen")
    assert "Try:" not in err
