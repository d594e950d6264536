"""``gate.toml``, baselines and evaluation sets: what is taken, and what is refused with the offending value."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calib.gate.baseline import BaselineTask, baseline_task, new_entry, read_baseline, require_samples, updated
from calib.gate.config import Gate, TaskGate, read_gate, rules
from calib.gate.evaluation import check_labels, check_outputs, evaluation_set, labels_of_folders
from splitboard.contract.bundle import Bundle, Task, load_bundle
from splitboard.contract.errors import UserError
from splitboard.contract.samples import Samples, load_samples, save_samples

TASKS = (Task("shape", ("round", "square")), Task("colour", ("red", "green", "blue")))
NAMES = ("shape", "colour")
EXAMPLE = Path(__file__).parents[2] / "examples" / "gate.toml"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "gate.toml"
    path.write_text(text)
    return path


def test_defaults() -> None:
    ruled = rules(Gate(), NAMES, {"shape": "classes", "colour": "maps"})
    assert {task: (rule.metric.name, rule.margin, rule.confidence) for task, rule in ruled.items()} == {
        "shape": ("top1", 0.01, 0.95),
        "colour": ("miou", 0.01, 0.95),
    }


def test_a_task_overrides_the_default(tmp_path: Path) -> None:
    gate = read_gate(
        write(
            tmp_path,
            '[default]\nmargin = 2\nconfidence = 0.9\n[tasks.colour]\nmetric = "balanced_accuracy"\nmargin = 0.5\n',
        )
    )
    ruled = rules(gate, NAMES, {"shape": "classes", "colour": "classes"})
    assert (ruled["shape"].metric.name, ruled["shape"].margin, ruled["shape"].confidence) == ("top1", 0.02, 0.9)
    assert (ruled["colour"].metric.name, ruled["colour"].margin) == ("balanced_accuracy", 0.005)
    assert ruled["colour"].alpha == pytest.approx(0.1)


def test_own_units_and_own_metric(tmp_path: Path) -> None:
    text = '[tasks.shape]\nmargin = 3.5\n[tasks.colour]\nmetric = "mine:f"\nmargin = 7.0\nhigher_is_better = false\n'
    ruled = rules(read_gate(write(tmp_path, text)), NAMES, {"shape": "numbers", "colour": "classes"})
    assert (ruled["shape"].metric.name, ruled["shape"].margin) == ("mae", 3.5)
    assert (ruled["colour"].metric.name, ruled["colour"].margin) == ("mine:f", 7.0)
    assert not ruled["colour"].metric.higher_is_better


def test_the_example_is_a_gate_with_and_without_its_comments(tmp_path: Path) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert rules(read_gate(EXAMPLE), NAMES, {"shape": "classes"})["shape"].margin == 0.01
    tables = "\n".join(line[2:] if line.startswith(("# [", "# m", "# h")) else line for line in text.splitlines())
    gate = read_gate(write(tmp_path, tables))
    assert gate.tasks["depth"] == TaskGate(metric="mae", margin=0.05)
    assert set(gate.tasks) == {"defect", "depth", "lesion"}


REFUSED: dict[str, tuple[str, str, str]] = {
    "key": ("[tasks.shape]\nmargn = 1.0\n", "margn", "margin"),
    "table": ("[defaults]\nmargin = 1.0\n", "defaults", "default"),
    "type": ('[default]\nmargin = "1"\n', "'1'", "[default]"),
    "toml": ("[default\n", "gate.toml", "[default]"),
    "task": ("[tasks.shpe]\nmargin = 1.0\n", "shpe", "shape"),
    "no labels": ("[tasks.colour]\nmargin = 1.0\n", "colour", "labels.colour"),
    "metric": ('[default]\nmetric = "top_1"\n', "top_1", "top1"),
    "far metric": ('[default]\nmetric = "zzz"\n', "zzz", "balanced_accuracy"),
    "metric of other labels": ('[default]\nmetric = "miou"\n', "miou", "top1"),
    "confidence": ("[default]\nconfidence = 95.0\n", "95", "0.95"),
    "low confidence": ("[default]\nconfidence = 0.5\n", "0.5", "0.95"),
    "margin": ("[default]\nmargin = -1.0\n", "-1", "points"),
    "margin of all": ("[default]\nmargin = 100.0\n", "100", "points"),
    "margin not a number": ("[default]\nmargin = nan\n", "nan", "points"),
    "no margin in its unit": ('[default]\nmetric = "mae"\nmargin = 1.0\n', "mae", "[tasks.shape] margin"),
    "direction is known": ('[tasks.shape]\nmetric = "top1"\nhigher_is_better = true\n', "true", "leave"),
}


@pytest.mark.parametrize(("text", "value", "advice"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path: Path, text: str, value: str, advice: str) -> None:
    with pytest.raises(UserError) as refused:
        rules(read_gate(write(tmp_path, text)), NAMES, {"shape": "classes"})
    assert any(value in part for part in refused.value.message.split('"')[1::2]), refused.value.message
    assert any(advice in line for line in refused.value.tries), refused.value.tries


def labelled(**labels: Any) -> Samples:
    n = len(next(iter(labels.values()))) if labels else 4
    images = np.random.default_rng(9).integers(0, 256, (n, 8, 8, 1)).astype(np.uint8)
    found = {task: np.asarray(values) for task, values in labels.items()}
    return Samples(images, found, tuple(f"{i:064x}" for i in range(n)))


def test_kinds_of_labels_in_an_npz(tmp_path: Path) -> None:
    path = tmp_path / "all.npz"
    images = np.zeros((3, 8, 8, 1), np.uint8)
    kinds: dict[str, Any] = {
        "shape": np.array([0, 1, 1], np.uint8),
        "depth": np.array([0.5, 1.5, 2.5], np.float32),
        "pose": np.zeros((3, 2)),
        "mask": np.zeros((3, 4, 4), np.uint8),
    }
    save_samples(path, images, kinds)
    samples = load_samples(path, 1)
    assert list(samples.labels) == ["shape"]  # what every other verb takes for labels
    assert {task: (values.dtype.name, values.shape) for task, values in samples.targets.items()} == {
        "depth": ("float64", (3,)),
        "pose": ("float64", (3, 2)),
        "mask": ("int64", (3, 4, 4)),
    }
    chosen = samples.rows([2, 0])
    assert chosen.labels["shape"].tolist() == [1, 0]
    assert chosen.targets["depth"].tolist() == [2.5, 0.5]
    for wrong in (np.zeros((3, 2), np.int64), np.zeros((3, 2, 2)), np.array(["a", "b", "c"]), np.zeros(2)):
        save_samples(path, images, {"shape": wrong})
        with pytest.raises(UserError, match="shape"):
            load_samples(path, 1)


def test_labels_that_cannot_judge() -> None:
    ruled = rules(Gate(), NAMES, {"shape": "classes"})
    for values, odd in (([0, 1, 2], '"2"'), ([0, -1, 1], '"-1"'), ([1, 1, 1], '"square"')):
        with pytest.raises(UserError, match=odd):
            check_labels({"shape": np.asarray(values)}, ruled, TASKS)
    check_labels({"shape": np.asarray([0, 1, 1])}, ruled, TASKS)
    numbers = rules(Gate(tasks={"shape": TaskGate(margin=1.0)}), NAMES, {"shape": "numbers"})
    check_labels({"shape": np.zeros((3, 2))}, numbers, TASKS)
    with pytest.raises(UserError, match='"1" numbers'):
        check_labels({"shape": np.zeros(3)}, numbers, TASKS)
    with pytest.raises(UserError, match='"nan"'):
        check_labels({"shape": np.array([[0.0, np.nan]])}, numbers, TASKS)
    with pytest.raises(UserError, match='"4x4"'):
        check_outputs("mask", np.zeros((2, 4, 4), np.int64), np.zeros((2, 3, 8, 8)))
    with pytest.raises(UserError, match='"nan"'):
        check_outputs("shape", np.zeros(1, np.int64), np.array([[0.0, np.nan]]))


def test_subfolders_are_classes_of_the_one_task_that_has_them() -> None:
    assert labels_of_folders(("square", "round", "square"), TASKS)["shape"].tolist() == [1, 0, 1]
    assert labels_of_folders(("2024", "2025"), TASKS) == {}
    assert labels_of_folders(("", ""), TASKS) == {}
    with pytest.raises(UserError, match='"oval"'):
        labels_of_folders(("square", "oval"), TASKS)
    with pytest.raises(UserError, match=r'"\."'):
        labels_of_folders(("square", ""), TASKS)
    with pytest.raises(UserError, match='"a, b"'):
        labels_of_folders(("x", "y"), (Task("a", ("x", "y")), Task("b", ("x", "y", "z"))))


def test_repeated_images_count_once(tiny_bundle: Path) -> None:
    samples = labelled(shape=[0, 1, 1, 0])
    twice = dataclasses.replace(samples, hashes=(*samples.hashes[:3], samples.hashes[0]))
    found = evaluation_set(tiny_bundle, load_bundle(tiny_bundle), twice)
    assert (len(found.samples), found.n_repeated) == (3, 1)
    assert found.truth["shape"].tolist() == [0, 1, 1]


def test_calibration_images_cannot_judge(tiny_bundle: Path, tiny_samples: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    samples = load_samples(tiny_samples, 1)
    with pytest.raises(UserError, match=f'120 of .*"{samples.hashes[0]}"'):
        evaluation_set(tiny_bundle, bundle, samples)
    with pytest.raises(UserError, match='"shpe"'):
        evaluation_set(tiny_bundle, bundle, labelled(shpe=[0, 1]))
    with pytest.raises(UserError, match='"shape, colour"'):
        evaluation_set(tiny_bundle, bundle, labelled())


def _entry(bundle: Bundle, samples: Samples, split: str = "s01") -> Any:
    outputs = np.random.default_rng(1).normal(0, 1, (len(samples), 2)).astype(np.float32)
    return new_entry(bundle, split, "first", samples, {"shape": baseline_task("top1", 0.5, outputs, samples)}), outputs


def test_baseline_keeps_every_output_exactly(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, samples = load_bundle(tiny_bundle), labelled(shape=[0, 1, 1])
    entry, outputs = _entry(bundle, samples)
    path = tmp_path / "gate.json"
    path.write_text(updated(None, (entry,)))
    found = read_baseline(path).entry(bundle, "s01", path)
    assert found == entry
    kept = np.asarray([found.tasks["shape"].outputs[digest] for digest in samples.hashes], np.float32)
    assert (kept == outputs).all()
    require_samples(found, ["shape"], samples, path)


def test_an_update_replaces_its_own_entry_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, samples = load_bundle(tiny_bundle), labelled(shape=[0, 1, 1])
    first, _ = _entry(bundle, samples)
    other, _ = _entry(bundle, samples, "s02")
    path = tmp_path / "gate.json"
    path.write_text(updated(None, (first, other)))
    newer = dataclasses.replace(first, model_sha256="f" * 64, reason="retrained")
    path.write_text(updated(read_baseline(path), (newer,)))
    assert [(one.split, one.reason) for one in read_baseline(path).entries] == [("s01", "retrained"), ("s02", "first")]


def test_baselines_that_do_not_fit(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, samples = load_bundle(tiny_bundle), labelled(shape=[0, 1, 1])
    entry, _ = _entry(bundle, samples)
    path = tmp_path / "gate.json"
    path.write_text(updated(None, (dataclasses.replace(entry, model_sha256="f" * 64),)))
    with pytest.raises(UserError, match=f'"{"f" * 64}".*"{bundle.model_sha256}"'):
        read_baseline(path).entry(bundle, "s01", path)
    path.write_text(updated(None, (entry,)))
    with pytest.raises(UserError, match='"s07"'):
        read_baseline(path).entry(bundle, "s07", path)
    with pytest.raises(UserError, match='no task "colour"'):
        require_samples(entry, ["colour"], samples, path)
    more = labelled(shape=[0, 1, 1, 0, 1])
    with pytest.raises(UserError, match=f'lacks 2 of 5 .*"{more.hashes[3]}"'):
        require_samples(entry, ["shape"], more, path)
    path.write_text(json.dumps({"schema_version": 9, "entries": []}))
    with pytest.raises(UserError, match='"9"'):
        read_baseline(path)
    path.write_text("years of work")
    with pytest.raises(UserError, match="not valid JSON"):
        read_baseline(path)
    with pytest.raises(UserError, match="too large"):
        baseline_task("miou", 0.5, np.zeros((3, 2, 4, 4)), samples)
    assert isinstance(entry.tasks["shape"], BaselineTask)
