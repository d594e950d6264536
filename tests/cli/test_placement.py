"""Several tensors on the wire and a head on the board: built, served and benchmarked by the commands themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.model import load_model
from export.reference import reference_session
from export.splits import list_splits
from splitboard.cli.main import run
from splitboard.contract.bundle import Bundle, load_bundle
from splitboard.contract.preprocess import normalise, prepare
from splitboard.contract.record import read_records
from splitboard.contract.samples import load_samples


@pytest.fixture(scope="module")
def pooled(tiny_model: Path) -> str:
    """The last single-tensor cut: both heads take its tensor."""
    return next(p.id for p in list_splits(load_model(tiny_model)).proper if p.local_tasks and p.id[0] == "s")


@pytest.fixture(scope="module")
def local(tiny_model: Path, tiny_samples: Path, pooled: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The head ``shape`` on the board, server graphs for TensorRT 8.5."""
    out = tmp_path_factory.mktemp("local") / "bundle"
    options = ["--board", "linux-x86-64", "--split", pooled, "--local", "shape", "--server-opset", "17"]
    assert run(["build", str(tiny_model), *options, "--calib", str(tiny_samples), "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def several(tiny_model: Path, tiny_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tensors cross: a block's input, which skips its convolutions, and what they have made of it so far."""
    out = tmp_path_factory.mktemp("several") / "bundle"
    options = ["--board", "linux-x86-64", "--split", "m01"]
    assert run(["build", str(tiny_model), *options, "--calib", str(tiny_samples), "-o", str(out)]) == 0
    return out


def scores(bundle: Path, split_id: str, samples: Path, folder: Path) -> list[dict[str, list[float]]]:
    """What a bench over a real socket recorded, image by image."""
    runs = folder / "runs.jsonl"
    options = ["--split", split_id, "--limit", "12", "--warmup", "0", "-o", str(runs)]
    assert run(["bench", str(bundle), "--data", str(samples), *options]) == 0
    (record,) = [one for one in read_records(runs) if one.split == split_id]  # beside the float reference
    return [dict(zip(record.outputs, values, strict=True)) for values in zip(*record.outputs.values(), strict=True)]


def check_against_float(found: list[dict[str, list[float]]], model: Path, samples: Path, bundle: Bundle) -> None:
    """Every task's scores are the float model's, up to what the bundle says of INT8."""
    loaded = load_model(model)
    spec = loaded.info.declared()
    inputs = normalise(prepare(load_samples(samples, 1).images[: len(found)], spec), spec)
    session = reference_session(loaded.graph.model)
    for image, answers in zip(inputs, found, strict=True):
        expected = dict(zip(loaded.graph.outputs, session.run(None, {"image": image[None]}), strict=True))
        assert answers.keys() == expected.keys()
        for task, values in answers.items():
            assert np.abs(np.asarray(values) - expected[task][0]).max() <= 2 * bundle.golden_tolerance[task]


def test_one_task_answers_on_the_board_and_the_other_on_the_server(
    local: Path, tiny_model: Path, tiny_samples: Path, pooled: str, tmp_path: Path
) -> None:
    bundle = load_bundle(local)
    split = bundle.split(pooled)
    assert split.local_tasks == ("shape",)
    server = onnx.load(local / str(split.server))
    assert [output.name for output in server.graph.output] == ["colour"]
    found = scores(local, pooled, tiny_samples, tmp_path)
    check_against_float(found, tiny_model, tiny_samples, bundle)


def test_two_tensors_cross(several: Path, tiny_model: Path, tiny_samples: Path, tmp_path: Path) -> None:
    bundle = load_bundle(several)
    tensors = bundle.split("m01").tensors
    assert len(tensors) == 2
    assert {tensor.dtype for tensor in tensors} == {"int8"}
    found = scores(several, "m01", tiny_samples, tmp_path)
    check_against_float(found, tiny_model, tiny_samples, bundle)


def test_server_graphs_say_what_they_are_and_have_the_opset_that_was_asked_for(local: Path, pooled: str) -> None:
    bundle = load_bundle(local)
    for split in bundle.splits:
        if split.server is None:
            continue
        server = onnx.load(local / split.server)
        assert [one.version for one in server.opset_import if one.domain == ""] == [17]
        notes = {entry.key: entry.value for entry in server.metadata_props}
        assert notes["splitboard.split"] == split.id
        assert notes["splitboard.model_sha256"] == bundle.model_sha256
        tasks = {"shape": ["round", "square"], "colour": ["0", "1", "2"]}
        assert json.loads(notes["splitboard.tasks"]) == {
            name: labels for name, labels in tasks.items() if split.id != pooled or name == "colour"
        }
        assert json.loads(notes["splitboard.preprocessing"])["height"] == 32
        assert "torch" in json.loads(notes["splitboard.tools"])


def test_auto_says_why(
    tiny_model: Path, tiny_samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--board", "linux-x86-64", "--split", "auto", "--calib", str(tiny_samples)]
    assert run(["build", str(tiny_model), *options, "-o", str(tmp_path / "bundle"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    cuts = said["splits"][1:-1]
    assert cuts
    assert list(said["reasons"]) == cuts
    assert all("% of the multiply-accumulates on the edge" in reason for reason in said["reasons"].values())
