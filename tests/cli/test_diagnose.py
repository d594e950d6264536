"""The command on bundles of a network with one spoiled layer: it is named, and building without it meets the gate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from ai_edge_litert.interpreter import Interpreter
from jsonschema import Draft202012Validator
from safetensors.torch import save_file

from splitboard.cli.main import run
from splitboard.contract.samples import save_samples

pytestmark = pytest.mark.usefixtures("quick_exports")

MODELS = Path(__file__).parents[1] / "models"
SCHEMA = Path(__file__).parents[2] / "docs" / "schema" / "diagnose-output.schema.json"
BOARDS = ("rpi5", "jetson-orin-nano")
N = 160
SPEC = """[preprocessing]
height = 32
width = 32
source_channels = 1
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with and without the spoiled layer, images to calibrate, and others to judge."""
    made = tmp_path_factory.mktemp("diagnose")
    sys.path.insert(0, str(MODELS))
    try:
        import outlier  # type: ignore[import-not-found, unused-ignore]
        import twin  # type: ignore[import-not-found, unused-ignore]
    finally:
        sys.path.remove(str(MODELS))
    (made / "spec.toml").write_text(SPEC)
    save_samples(made / "calib.npz", twin.pictures(120, seed=2)[0], {})
    save_samples(made / "test.npz", *twin.pictures(N, seed=3))
    for name, net in (("twin", twin.fitted()), ("outlier", outlier.fitted())):
        save_file(net.state_dict(), made / f"{name}.safetensors")
        model = ["--model", f"{name}:make", "--path", str(MODELS), "--input", "1x3x32x32"]
        options = [*model, "--spec", str(made / "spec.toml"), "-o", str(made / f"{name}.model")]
        assert run(["export", str(made / f"{name}.safetensors"), *options]) == 0
    return made


def build(desk: Path, name: str, board: str, *options: str) -> Path:
    out = desk / "-".join([name, board, *options]).replace("/", "_")
    if not out.exists():
        command = ["build", str(desk / f"{name}.model"), "--board", board, "--split", "blocks.0"]
        assert run([*command, "--calib", str(desk / "calib.npz"), "-o", str(out), *options]) == 0
    return out


def diagnose(bundle: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    page = bundle.with_suffix(".html")
    data = ["--data", str(bundle.parent / "test.npz"), "-o", str(page)]
    capsys.readouterr()
    assert run(["diagnose", str(bundle), *data, "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).validate(found)
    assert page.is_file()
    return found


def accuracy(bundle: Path, split: str, test: Path) -> dict[str, float]:
    """Top-1 of the artefact with LiteRT and ONNX Runtime alone."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    (one,) = [found for found in manifest["splits"] if found["id"] == split]
    with np.load(test) as data:
        images, truth = data["images"], {task: data[f"labels.{task}"] for task in ("shape", "colour")}
    real = ((images.astype(np.float32) / 255 - 0.5) / 0.5).repeat(3, axis=-1)
    spec, names = manifest["edge_input"], list(truth)
    if spec["layout"] == "NHWC":
        stored = np.clip(np.round(real.astype(np.float64) / spec["scale"]) + spec["zero_point"], -128, 127)
        runner = Interpreter(str(bundle / one["edge"])).get_signature_runner(one["edge_signature"])
        edge = [runner(**{spec["name"]: image[None]}) for image in stored.astype(np.int8)]
    else:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(str(bundle / one["edge"]), options)
        outputs = [output.name for output in session.get_outputs()]
        given = np.ascontiguousarray(real.transpose(0, 3, 1, 2))
        edge = [dict(zip(outputs, session.run(outputs, {spec["name"]: i[None]}), strict=True)) for i in given]
    if one["server"] is not None:
        server = ort.InferenceSession(str(bundle / one["server"]))
        wires = [tensor["name"] for tensor in one["tensors"]]
        edge = [dict(zip(names, server.run(names, {w: e[w] for w in wires}), strict=True)) for e in edge]
    return {
        task: float(np.mean([e[task].argmax() == t for e, t in zip(edge, truth[task], strict=True)])) for task in names
    }


@pytest.mark.slow
@pytest.mark.parametrize("board", BOARDS)
def test_the_spoiled_layer_is_first_and_its_exclusion_meets_the_gate(
    board: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = build(desk, "outlier", board)
    found = diagnose(bundle, capsys, "--worst", "4", "--model", str(desk / "outlier.model"))
    noise = {one["layer"]: one for one in found["layers"]}
    spoiled, *others = [one["layer"] for one in found["worst"]]
    assert found["modules"][spoiled] == "blocks.1.0"
    assert noise[spoiled]["added"] > 10 * max(noise[other]["added"] for other in others)
    assert found["deviation"] == 0
    assert not found["met"]
    costs = {one["layer"]: one for one in found["worst"]}
    for i in range(2):
        assert costs[spoiled]["int8"][i]["loss"] > 20
        assert costs[spoiled]["left_float"][i]["loss"] < 1
        for other in others:
            assert costs[other]["int8"][i]["loss"] < 1
            assert costs[other]["left_float"][i]["loss"] > 20
    assert (found["exclusion"]["found"], found["exclusion"]["met"]) == ([spoiled], True)
    assert found["exclusion"]["shortest"]
    as_built = accuracy(bundle, found["split"], desk / "test.npz")
    assert {one["task"]: one["value"] for one in found["tasks"]} == pytest.approx(as_built)

    words = found["command"].split()
    assert words[:2] == ["splitboard", "build"]
    kept = words[words.index("--keep-float") + 1]
    assert kept == spoiled
    cured = build(desk, "outlier", board, "--keep-float", kept)
    after = accuracy(cured, found["split"], desk / "test.npz")
    exact = {one["task"]: one["reference"] for one in found["tasks"]}
    promised = {one["task"]: one["value"] for one in found["exclusion"]["tasks"]}
    for task in exact:
        assert exact[task] - after[task] <= 0.01
        assert after[task] == pytest.approx(promised[task], abs=0.01)
    again = diagnose(cured, capsys, "--worst", "2")
    assert again["met"]
    assert again["exclusion"] is None
    assert again["keep_float"] == [spoiled]
    assert spoiled not in [one["layer"] for one in again["worst"]]


@pytest.mark.parametrize("board", BOARDS)
def test_a_split_is_diagnosed_with_its_server_half(board: str, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The spoiled layer lies behind the cut, on the server: in float."""
    bundle = build(desk, "outlier", board)
    split = json.loads((bundle / "manifest.json").read_text())["splits"][1]["id"]
    found = diagnose(bundle, capsys, "--worst", "3", "--split", split, "--limit", "60")
    assert (found["split"], found["n"], found["met"]) == (split, 60, True)
    assert found["exclusion"] is None
    assert found["command"] is None
    assert all(one["added"] < 0.01 for one in found["layers"])
    with np.load(desk / "test.npz") as data:
        np.savez(desk / "first.npz", **{name: data[name][:60] for name in data})
    as_built = accuracy(bundle, split, desk / "first.npz")
    assert {one["task"]: one["value"] for one in found["tasks"]} == pytest.approx(as_built)


@pytest.mark.slow
def test_a_healthy_bundle_meets_the_gate(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = build(desk, "twin", "rpi5")
    page = desk / "healthy.html"
    data = ["--data", str(desk / "test.npz"), "-o", str(page)]
    capsys.readouterr()
    assert run(["diagnose", str(bundle), *data, "--worst", "2"]) == 0
    out = capsys.readouterr().out
    assert "INT8 meets the gate" in out
    assert "--keep-float" not in out
    assert f"Page: {page}" in out
    assert "INT8 meets the gate" in page.read_text()


def test_layers_that_cannot_meet_the_gate_are_said_to(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A gate that asks for a gain: nothing left in float gives it."""
    bundle = build(desk, "outlier", "jetson-orin-nano")
    (desk / "own.py").write_text("def off(truth, outputs):\n    return float(abs(outputs).sum())\n")
    (desk / "own.toml").write_text(
        '[tasks.shape]\nmetric = "own:off"\nmargin = 0.0\n[tasks.colour]\nmetric = "top1"\nmargin = 0.0\n'
    )
    options = ["--gate", str(desk / "own.toml"), "--path", str(desk), "--worst", "2"]
    found = diagnose(bundle, capsys, *options)
    assert not found["exclusion"]["met"]
    assert found["command"] is None
    assert "did not meet it" in Path(found["page"]).read_text()
