"""The file of exit rules belongs to one bundle, and a bundle's exits to its tasks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from splitboard.contract.bundle import bundle_sha256, load_bundle
from splitboard.contract.errors import UserError
from splitboard.contract.exits import SCHEMA_VERSION, ExitRule, ExitRules, read_exit_rules, write_exit_rules


def a_rule(split: str, output: str, task: str, threshold: float | None = 0.9, rate: float = 0.5) -> ExitRule:
    reason = None if threshold is not None else "none"
    return ExitRule(
        split, output, task, "max_softmax", threshold, reason, 0.01, 0.95, 400, rate, 0.8, 0.7, 0.9, 0.8, 0.005
    )


@pytest.fixture
def rules(exit_bundle: Path) -> ExitRules:
    bundle = load_bundle(exit_bundle)
    found = [a_rule(split.id, one.output, one.task) for split in bundle.splits for one in bundle.exits_of(split)]
    assert len(found) == 6
    return ExitRules(SCHEMA_VERSION, bundle_sha256(exit_bundle), "ab" * 32, tuple(found))


def test_what_is_written_is_read(rules: ExitRules, exit_bundle: Path, tmp_path: Path) -> None:
    write_exit_rules(tmp_path / "exits.json", rules)
    bundle = load_bundle(exit_bundle)
    assert read_exit_rules(tmp_path / "exits.json", bundle, bundle_sha256(exit_bundle)) == rules
    assert [path.name for path in tmp_path.iterdir()] == ["exits.json"]


def test_rules_of_another_bundle_are_refused(rules: ExitRules, tiny_bundle: Path, tmp_path: Path) -> None:
    write_exit_rules(tmp_path / "exits.json", rules)
    with pytest.raises(UserError, match=f'fitted for the bundle "{rules.bundle_sha256}"'):
        read_exit_rules(tmp_path / "exits.json", load_bundle(tiny_bundle), bundle_sha256(tiny_bundle))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output": "nope"}, 'the exit "nope"'),
        ({"split": "s99"}, "at s99"),
        ({"task": "colour"}, "of task colour"),
        ({"measure": "margin"}, 'measures by "margin"'),
        ({"threshold": "high"}, "threshold: expected float, found \"'high'\""),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(
    rules: ExitRules, exit_bundle: Path, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    written = dataclasses.asdict(rules)
    (index,) = [i for i, one in enumerate(rules.rules) if (one.split, one.output) == ("s02", "shape_exit_stem")]
    written["rules"][index].update(change)
    (tmp_path / "exits.json").write_text(json.dumps(written))
    with pytest.raises(UserError) as caught:
        read_exit_rules(tmp_path / "exits.json", load_bundle(exit_bundle), bundle_sha256(exit_bundle))
    assert said in caught.value.message


def test_another_schema_and_a_missing_file_are_refused(rules: ExitRules, exit_bundle: Path, tmp_path: Path) -> None:
    write_exit_rules(tmp_path / "exits.json", dataclasses.replace(rules, schema_version=9))
    bundle, sha256 = load_bundle(exit_bundle), bundle_sha256(exit_bundle)
    with pytest.raises(UserError, match='schema "9"'):
        read_exit_rules(tmp_path / "exits.json", bundle, sha256)
    with pytest.raises(UserError, match=r'cannot read ".*nope\.json"'):
        read_exit_rules(tmp_path / "nope.json", bundle, sha256)


def test_the_best_rule_of_a_task_answers_most_often() -> None:
    rules = ExitRules(
        1,
        "",
        "",
        (
            a_rule("s02", "early", "shape", rate=0.2),
            a_rule("s02", "late", "shape", rate=0.6),
            dataclasses.replace(a_rule("s02", "worse", "shape", rate=0.6), accuracy_exit=0.3),
            a_rule("s02", "never", "shape", threshold=None, rate=0.0),
            a_rule("s05", "early", "shape", rate=0.9),
            a_rule("s02", "unsure", "colour", threshold=None, rate=0.0),
        ),
    )
    assert rules.best("s02", "shape") == rules.rules[1]
    assert rules.best("s02", "colour") is None
    assert rules.best("s09", "shape") is None


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["exits"][0].update(task="texture"),
        lambda manifest: manifest["splits"][1]["exits"].append("nope"),
        lambda manifest: manifest["splits"][0]["exits"].append(manifest["exits"][0]["output"]),
        lambda manifest: manifest["splits"][-1]["exits"].append(manifest["exits"][0]["output"]),
        lambda manifest: manifest["exits"].append(manifest["exits"][0]),
        lambda manifest: manifest["exits"][0].update(output="shape"),
    ],
    ids=["unknown task", "unknown exit", "on remote only", "of a local task", "twice", "named as a task"],
)
def test_a_manifest_whose_exits_do_not_fit_is_refused(exit_bundle: Path, tmp_path: Path, change: object) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(exit_bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)  # type: ignore[operator]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r'has the exit ".*", which does not fit its tasks and halves'):
        load_bundle(copy)
