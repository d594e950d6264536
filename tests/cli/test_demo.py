"""The main job, as a newcomer runs it: one real demo over the whole test part, looked at from all sides."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from calib.artefact import accelerated_partitions, count_operators, float_tensors
from splitboard.contract.bundle import load_bundle
from splitboard.contract.record import FLOAT_REFERENCE, read_records
from splitboard.contract.samples import load_samples

pytestmark = pytest.mark.slow

SCHEMAS = Path(__file__).parents[2] / "docs" / "schema"
N_TEST = 654


@dataclass(frozen=True)
class Demo:
    folder: Path
    result: dict[str, Any]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    argv = [sys.executable, "-m", "splitboard.cli.main", "demo", "--json", "--out", str(folder / "out")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return Demo(folder / "out", json.loads(done.stdout))


def entries(demo: Demo) -> list[dict[str, Any]]:
    return [demo.result["remote"], *demo.result["splits"], demo.result["local"]]


def test_the_json_is_as_published(demo: Demo) -> None:
    jsonschema.validate(demo.result, json.loads((SCHEMAS / "demo-result.schema.json").read_text()))
    assert Path(demo.result["report"]).is_file()
    assert [split["scope"] for split in demo.result["splits"]] == [f"backbone.blocks.{block}" for block in (4, 10, 14)]
    assert all(split["natural"] for split in demo.result["splits"])
    assert [entry["payload_bytes"] for entry in entries(demo)] == [
        224 * 224, 28 * 28 * 40, 14 * 14 * 112, 7 * 7 * 192, 0,
    ]  # fmt: skip


def test_no_task_loses_more_than_a_point_at_any_split(demo: Demo) -> None:
    for entry in entries(demo):
        assert entry["n"] == N_TEST
        assert entry["accuracy"].keys() == {"defect", "cell_type"}
        for accuracy in entry["accuracy"].values():
            assert accuracy["n"] == N_TEST
            assert accuracy["int8"] >= accuracy["float"] - 0.01


def test_the_accuracy_is_that_of_the_raw_records(demo: Demo) -> None:
    labels = load_samples(demo.folder / "test.npz", 1).labels
    by_split = {record.split: record for record in read_records(demo.folder / "runs")}
    for entry in entries(demo):
        for task, accuracy in entry["accuracy"].items():
            for split, said in ((entry["id"], accuracy["int8"]), (FLOAT_REFERENCE, accuracy["float"])):
                guesses = np.array(by_split[split].outputs[task]).argmax(axis=1)
                assert said == pytest.approx(np.mean(guesses == labels[task]))


def test_remote_only_is_the_float_model(demo: Demo) -> None:
    """The whole float model behind the wire gives the float reference's scores."""
    by_split = {record.split: record for record in read_records(demo.folder / "runs")}
    for task in ("defect", "cell_type"):
        np.testing.assert_allclose(
            by_split["s00"].outputs[task], by_split[FLOAT_REFERENCE].outputs[task], rtol=1e-4, atol=1e-5
        )


def test_the_spans_sum_to_the_end_to_end_time(demo: Demo) -> None:
    for record in read_records(demo.folder / "runs"):
        if record.split != FLOAT_REFERENCE:
            parts = np.sum([record.spans_ns[span] for span in record.spans_ns], axis=0)
            np.testing.assert_allclose(np.median(parts / np.array(record.total_ns)), 1, atol=0.05)


def test_the_edge_file_is_full_int8_in_one_accelerated_part_per_signature(demo: Demo) -> None:
    bundle = load_bundle(demo.folder / "bundle")
    content = (demo.folder / "bundle" / bundle.edge_files[0]).read_bytes()
    assert float_tensors(content) == []
    operators = count_operators(content)
    assert len(operators) == 4
    for names in operators.values():
        assert not names.keys() & {"TRANSPOSE", "QUANTIZE", "DEQUANTIZE", "PAD"}
    assert accelerated_partitions(content) == dict.fromkeys(operators, 1)


def test_every_cut_was_proved_on_real_images(demo: Demo) -> None:
    splits = load_bundle(demo.folder / "bundle").splits
    for split in splits[1:-1]:
        assert split.float_error.keys() == {"defect", "cell_type"}
        assert max(split.float_error.values()) <= 1e-5


def test_calibration_and_test_images_are_disjoint_and_enough(demo: Demo) -> None:
    used = (demo.folder / "bundle" / "calibration" / "samples.txt").read_text().split()
    assert len(used) == len(set(used)) >= 200
    assert not set(used) & set(load_samples(demo.folder / "test.npz", 1).hashes)


def test_a_board_checks_itself_with_the_golden_images(demo: Demo) -> None:
    from boards.zipapp import build_zipapp

    runtime = build_zipapp(demo.folder / "splitboard-edge.pyz")
    argv = [sys.executable, "-I", str(runtime), "selfcheck", "--bundle", str(demo.folder / "bundle")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"]


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.words = ""

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words += f" {data}"


def test_the_page_opens_in_a_browser_without_network(demo: Demo) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    with tempfile.TemporaryDirectory() as profile:
        quiet = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
        argv = [browser, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={profile}"]
        page = Path(demo.result["report"]).as_uri()
        done = subprocess.run([*argv, "--dump-dom", page], capture_output=True, text=True, check=True, timeout=120)
    text = _Text()
    text.feed(done.stdout)
    assert not [link for link in text.links if not link.startswith("#")]
    for entry in entries(demo):
        assert entry["id"] in text.words
        assert f"{entry['total_ms_p50']:.2f}" in text.words
    for task in ("defect", "cell_type"):
        assert task in text.words
    assert "energy was not asked for" in text.words
