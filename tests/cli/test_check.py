"""The gate on a real artefact: good, spoiled and swapped bundles, every output, the baseline, and the pytest plugin."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from jsonschema import Draft202012Validator
from lxml import etree
from onnx import numpy_helper
from safetensors.torch import save_file

from calib.gate.statistics import paired_limits
from splitboard.cli.main import run
from splitboard.contract.samples import save_samples

pytestmark = pytest.mark.usefixtures("quick_exports")

MODELS = Path(__file__).parents[1] / "models"
SCHEMAS = Path(__file__).parents[2] / "docs" / "schema"
WORKFLOW = Path(__file__).parents[2] / "examples" / "github" / "accuracy.yml"
N = 320
SPEC = """[preprocessing]
height = 32
width = 32
source_channels = 1
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a network with two heads of one size, images to calibrate it and others to judge it."""
    sys.path.insert(0, str(MODELS))
    try:
        import twin  # type: ignore[import-not-found, unused-ignore]
    finally:
        sys.path.remove(str(MODELS))
    made = tmp_path_factory.mktemp("gate")
    save_file(twin.fitted().state_dict(), made / "twin.safetensors")
    (made / "spec.toml").write_text(SPEC)
    save_samples(made / "calib.npz", twin.pictures(120, seed=2)[0], {})
    save_samples(made / "test.npz", *twin.pictures(N, seed=3))
    (made / "gate.toml").write_text("[default]\nmargin = 5.0\n")
    model = ["--model", "twin:make", "--path", str(MODELS), "--input", "1x3x32x32"]
    spec = ["--spec", str(made / "spec.toml")]
    assert run(["export", str(made / "twin.safetensors"), *model, *spec, "-o", str(made / "model")]) == 0
    build = ["build", str(made / "model"), "--board", "rpi5", "--split", "blocks.0"]
    assert run([*build, "--calib", str(made / "calib.npz"), "-o", str(made / "bundle")]) == 0
    return made


def _changed(desk: Path, name: str, path: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of the bundle in which one file and its hash in the manifest are others: only accuracy can tell."""
    copy = desk / name
    shutil.copytree(desk / "bundle", copy)
    content = change((copy / path).read_bytes())
    (copy / path).write_bytes(content)
    manifest = json.loads((copy / "manifest.json").read_text())
    (artifact,) = [one for one in manifest["artifacts"] if one["path"] == path]
    artifact.update(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def _spoil(content: bytes) -> bytes:
    """An eighth of the scale of the first convolution's output, in every signature: values above are cut off."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    for subgraph in model.subgraphs:
        codes = [model.operatorCodes[operator.opcodeIndex].builtinCode for operator in subgraph.operators]
        first = subgraph.operators[codes.index(BuiltinOperator.CONV_2D)]
        activation = subgraph.tensors[first.outputs[0]].quantization
        activation.scale = [activation.scale[0] / 8]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _swap(content: bytes) -> bytes:
    """The two heads' weights and biases in each other's place."""
    model = onnx.load_model_from_string(content)
    nodes = [node for node in model.graph.node if node.op_type == "Gemm"]
    assert len(nodes) == 2
    for mine, other in zip(nodes[0].input[1:], nodes[1].input[1:], strict=True):
        one = next(tensor for tensor in model.graph.initializer if tensor.name == mine)
        two = next(tensor for tensor in model.graph.initializer if tensor.name == other)
        values = numpy_helper.to_array(one), numpy_helper.to_array(two)
        one.CopyFrom(numpy_helper.from_array(values[1], mine))
        two.CopyFrom(numpy_helper.from_array(values[0], other))
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def spoiled(desk: Path) -> Path:
    return _changed(desk, "spoiled", "edge/edge.int8.tflite", _spoil)


@pytest.fixture(scope="module")
def swapped(desk: Path) -> Path:
    return _changed(desk, "swapped", f"server/{_cut(desk)}.onnx", _swap)


def _cut(desk: Path) -> str:
    splits = [split["id"] for split in json.loads((desk / "bundle" / "manifest.json").read_text())["splits"]]
    return str(splits[1])


def _check(bundle: Path, *options: str) -> list[str]:
    data = ["--data", str(bundle.parent / "test.npz"), "--gate", str(bundle.parent / "gate.toml")]
    return ["check", str(bundle), *data, *options]


def _lines(out: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *judgements, whole = [json.loads(line) for line in out.splitlines()]
    return judgements, whole


def test_good_bundle_passes(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_check(desk / "bundle", "--json")) == 0
    captured = capsys.readouterr()
    judgements, whole = _lines(captured.out)
    for name, objects in (("check-judgement", judgements), ("check-output", [whole])):
        validator = Draft202012Validator(json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")))
        for one in objects:
            validator.validate(one)
    assert [one["task"] for one in judgements] == ["shape", "colour"] * 2
    assert (whole["verdict"], whole["against"], whole["judged"], whole["n"]) == ("PASS", "float", 4, N)
    for one in judgements:
        limits = paired_limits(one["lost"], one["gained"], N, 0.95)
        assert (one["lower"], one["upper"]) == pytest.approx((100 * limits.lower, 100 * limits.upper))
        assert one["reference"] > 0.9
    assert captured.err.count("this set can only detect a drop of") == 2


def test_accuracy_is_that_of_the_artefact(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Recomputed with LiteRT and ONNX Runtime alone."""
    import onnxruntime as ort
    from ai_edge_litert.interpreter import Interpreter

    assert run(_check(desk / "bundle", "--json")) == 0
    judgements, _ = _lines(capsys.readouterr().out)
    with np.load(desk / "test.npz") as data:
        images, truth = data["images"], {task: data[f"labels.{task}"] for task in ("shape", "colour")}
    manifest = json.loads((desk / "bundle" / "manifest.json").read_text())
    scale, zero_point = manifest["edge_input"]["scale"], manifest["edge_input"]["zero_point"]
    normalised = (images.astype(np.float32) / 255 - 0.5) / 0.5
    stored = np.clip(np.round(normalised / scale) + zero_point, -128, 127).astype(np.int8).repeat(3, axis=-1)
    interpreter = Interpreter(str(desk / "bundle" / "edge" / "edge.int8.tflite"))
    right = {}
    for split in manifest["splits"][1:]:
        runner = interpreter.get_signature_runner(split["edge_signature"])
        (key,) = runner.get_input_details()
        edge = [runner(**{key: image[None]}) for image in stored]
        if split["server"] is None:
            answers = {task: np.array([one[task].argmax() for one in edge]) for task in truth}
        else:
            session = ort.InferenceSession(str(desk / "bundle" / split["server"]))
            (wire,) = split["tensors"]
            sent = [next(iter(one.values())) for one in edge]
            scores = [session.run(list(truth), {wire["name"]: tensor}) for tensor in sent]
            answers = {task: np.array([one[i].argmax() for one in scores]) for i, task in enumerate(truth)}
        right |= {(split["id"], task): float((answers[task] == truth[task]).mean()) for task in truth}
    assert {(one["split"], one["task"]): one["deployed"] for one in judgements} == pytest.approx(right)


def test_spoiled_scale_fails(spoiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_check(spoiled, "--json")) == 1
    captured = capsys.readouterr()
    judgements, whole = _lines(captured.out)
    assert whole["verdict"] == "FAIL"
    assert {one["split"] for one in judgements if one["verdict"] == "FAIL"} == {one["split"] for one in judgements}
    assert whole["reasons"][0] in captured.err
    assert run(_check(spoiled)) == 1
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line in whole["reasons"]] == list(whole["reasons"])


def test_swapped_heads_fail_where_they_are_swapped(
    swapped: Path, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(_check(swapped, "--json")) == 1
    judgements, _ = _lines(capsys.readouterr().out)
    verdicts = {(one["split"], one["task"]): one["verdict"] for one in judgements}
    cut = _cut(desk)
    assert {pair for pair, verdict in verdicts.items() if verdict == "FAIL"} == {(cut, "shape"), (cut, "colour")}


def test_few_samples_are_inconclusive(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(desk / "test.npz") as data:
        few = {name: data[name][:100] for name in data}
    np.savez(desk / "few.npz", **few)
    code = run(["check", str(desk / "bundle"), "--data", str(desk / "few.npz"), "--split", _cut(desk)])
    captured = capsys.readouterr()
    assert code == 2
    assert "it cannot PASS if nothing changes: that needs 299 samples" in captured.out
    assert "INCONCLUSIVE" in captured.err
    assert "samples do not tell, about" in captured.err
    assert "99.0" not in captured.out  # a hundred samples support no decimals


def test_junit_summary_and_annotations(
    spoiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "steps.md"))
    (tmp_path / "steps.md").write_text("earlier\n")
    junit, summary = tmp_path / "out" / "gate.xml", tmp_path / "gate.md"
    assert run(_check(spoiled, "--json", "--junit", str(junit), "--summary", str(summary))) == 1
    captured = capsys.readouterr()
    judgements, whole = _lines(captured.out)
    root = etree.parse(str(junit)).getroot()
    assert root.tag == "testsuites"
    assert root.get("tests") == str(len(judgements))
    cases = root.findall("testsuite/testcase")
    assert [(case.get("classname"), case.get("name")) for case in cases] == [
        (f"twin.{one['split']}", one["task"]) for one in judgements
    ]
    failed = [case.find("failure") for case in cases if case.find("failure") is not None]
    assert root.get("failures") == str(len(failed))
    assert [one.get("message") for one in failed] == whole["reasons"]
    assert {one.get("type") for one in failed} <= {"fail", "inconclusive"}
    page = summary.read_text()
    assert page.startswith("## splitboard check: FAIL")
    assert page.count("| FAIL |") == sum(one["verdict"] == "FAIL" for one in judgements)
    assert (tmp_path / "steps.md").read_text() == f"earlier\n{page}"
    commands = [line for line in captured.err.splitlines() if line.startswith("::error title=")]
    assert len(commands) == len(failed)
    assert f"::{whole['reasons'][0].replace('%', '%25')}" in commands[0]
    # Once more onto its own files; never onto others'.
    assert run(_check(spoiled, "--junit", str(junit), "--summary", str(summary))) == 1


def test_tasks_without_labels_are_listed(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(desk / "test.npz") as data:
        np.savez(tmp_path / "half.npz", **{"images": data["images"], "labels.shape": data["labels.shape"]})
    junit = tmp_path / "gate.xml"
    options = ["--gate", str(desk / "gate.toml"), "--junit", str(junit), "--split", _cut(desk)]
    assert run(["check", str(desk / "bundle"), "--data", str(tmp_path / "half.npz"), *options]) == 0
    assert "not judged, no labels: colour" in capsys.readouterr().out
    cases = etree.parse(str(junit)).getroot().findall("testsuite/testcase")
    assert [case.find("skipped") is not None for case in cases] == [False, True]


def test_baseline_takes_the_place_of_float(
    desk: Path, spoiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = tmp_path / "gate.json"
    made = ["--baseline", str(baseline), "--update-baseline", "--reason", "accepted as it is"]
    assert run(_check(spoiled, *made)) == 1  # judged against float, written all the same
    entries = json.loads(baseline.read_text())["entries"]
    assert {one["reason"] for one in entries} == {"accepted as it is"}
    schema = json.loads((SCHEMAS / "gate-baseline.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator(schema).validate(json.loads(baseline.read_text()))
    before = baseline.read_bytes()
    capsys.readouterr()
    assert run(_check(spoiled, "--baseline", str(baseline), "--json")) == 0
    judgements, whole = _lines(capsys.readouterr().out)
    assert whole["against"] == "baseline"
    assert {(one["lost"], one["gained"]) for one in judgements} == {(0, 0)}
    assert run(_check(desk / "bundle", "--baseline", str(baseline), "--json")) == 0
    judgements, _ = _lines(capsys.readouterr().out)
    assert all(one["drop"] < 0 for one in judgements)  # the good bundle gains on the spoiled one
    assert baseline.read_bytes() == before


def test_folder_per_class_and_own_metric(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_module = pytest.importorskip("PIL.Image")
    manifest = json.loads((desk / "bundle" / "manifest.json").read_text())
    manifest["tasks"][0]["labels"] = ["dark", "grey", "light"]
    bundle = tmp_path / "bundle"
    shutil.copytree(desk / "bundle", bundle)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with np.load(desk / "test.npz") as data:
        for i, (image, label) in enumerate(zip(data["images"], data["labels.shape"], strict=True)):
            folder = tmp_path / "photos" / manifest["tasks"][0]["labels"][label]
            folder.mkdir(parents=True, exist_ok=True)
            image_module.fromarray(image[..., 0]).save(folder / f"{i:03}.png")
    (tmp_path / "export.py").write_text("def right(truth, outputs):\n    return (truth == outputs.argmax(1)).mean()\n")
    (tmp_path / "gate.toml").write_text('[tasks.shape]\nmetric = "export:right"\nmargin = 0.05\n')
    options = ["--gate", str(tmp_path / "gate.toml"), "--path", str(tmp_path), "--split", _cut(desk), "--json"]
    code = run(["check", str(bundle), "--data", str(tmp_path / "photos"), *options])
    judgements, whole = _lines(capsys.readouterr().out)
    assert (code, whole["not_judged"]) == (0, ["colour"])
    assert [(one["task"], one["metric"], one["n"]) for one in judgements] == [("shape", "export:right", N)]
    assert judgements[0]["reference"] - judgements[0]["deployed"] == pytest.approx(judgements[0]["drop"])


def _pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # anyio comes with a dependency, and its plugin warns.
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:anyio", "-W", "error", *options]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_pytest_fails_for_the_same_reason(
    desk: Path, swapped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_mine.py").write_text("def test_mine():\n    pass\n")
    given = ["--splitboard-data", str(desk / "test.npz"), "--splitboard-gate", str(desk / "gate.toml")]
    good = _pytest(tmp_path, "--splitboard-bundle", str(desk / "bundle"), *given)
    assert good.returncode == 0, good.stdout
    assert "5 passed" in good.stdout
    bad = _pytest(tmp_path, "--splitboard-bundle", str(swapped), *given, "-k", "splitboard")
    assert bad.returncode == 1, bad.stdout
    assert "2 failed, 2 passed, 1 deselected" in bad.stdout
    assert "Traceback" not in bad.stdout
    assert run(_check(swapped, "--json")) == 1
    _, whole = _lines(capsys.readouterr().out)
    for line in whole["reasons"]:
        assert line in bad.stdout
    cut = _cut(desk)
    failed = [line.split()[1] for line in bad.stdout.splitlines() if line.startswith("FAILED")]
    assert [node.rpartition("/")[-1] for node in failed] == [f"splitboard::{cut}::{t}" for t in ("shape", "colour")]


@pytest.mark.slow
def test_pytest_says_what_is_wrong_with_the_input(desk: Path, tmp_path: Path) -> None:
    wrong = _pytest(tmp_path, "--splitboard-bundle", "nope", "--splitboard-data", str(desk / "test.npz"))
    assert wrong.returncode == 4
    assert '"nope"' in wrong.stderr
    assert _pytest(tmp_path, "--splitboard-bundle", str(desk / "bundle")).returncode == 4


def test_plugin_imports_nothing_of_ours_unasked(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "import sys\n\n\ndef test_mine():\n    assert 'splitboard.cli.pytest_plugin' in sys.modules\n"
        "    loaded = {'scipy', 'onnxruntime', 'calib', 'typer', 'rich'} & set(sys.modules)\n    assert not loaded\n"
    )
    done = _pytest(tmp_path)
    assert done.returncode == 0, done.stdout


def test_the_workflow_gives_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    lines = WORKFLOW.read_text(encoding="utf-8").splitlines()
    commands = [line.partition("splitboard ")[2].split() for line in lines if "run: splitboard " in line]
    assert [verb for verb, *_ in commands] == ["build", "check"]
    for verb, *words in commands:
        assert run([verb, "--help"]) == 0
        shown = capsys.readouterr().out
        for option in (word for word in words if word.startswith("-")):
            assert option in shown, f"{verb} {option}"
