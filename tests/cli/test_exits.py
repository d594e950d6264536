"""Exits from the model folder to the rules: both formats, the server without them, data that must not meet."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import early
import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from calib.gate.deployed import deployed_outputs
from export.model import load_model
from export.reference import reference_session
from export.splits import list_splits
from splitboard.cli.main import run
from splitboard.cli.thresholds import check_accuracies
from splitboard.contract.bundle import bundle_sha256, file_sha256, load_bundle
from splitboard.contract.errors import UserError
from splitboard.contract.exits import read_exit_rules
from splitboard.contract.preprocess import edge_image, normalise, prepare
from splitboard.contract.samples import load_samples, save_samples

MODELS = Path(__file__).parents[1] / "models"
EXITS = ("shape_exit_stem", "colour_exit_stem", "shape_exit_blocks_0", "colour_exit_blocks_0")


@pytest.fixture(scope="module")
def qdq_bundle(exit_model: Path, exit_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle for a board that takes Q/DQ ONNX, its channels equalised."""
    target = tmp_path_factory.mktemp("bundle") / "qdq"
    options = ["--board", "jetson-orin-nano", "--split", "stem,blocks.1", "--calib", str(exit_samples / "calib.npz")]
    assert run(["build", str(exit_model), *options, "--equalise", "-o", str(target)]) == 0
    return target


def test_splits_are_listed_as_without_exits(tiny_model: Path, exit_model: Path) -> None:
    assert list_splits(load_model(exit_model)).points == list_splits(load_model(tiny_model)).points


@pytest.mark.parametrize("kind", ["exit_bundle", "qdq_bundle"])
def test_an_edge_half_gives_the_exits_whose_input_it_makes(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    bundle = load_bundle(folder)
    assert [one.output for one in bundle.exits] == list(EXITS)
    assert [split.exits for split in bundle.splits] == [(), EXITS[:2], EXITS, ()]
    assert [task.name for task in bundle.tasks] == ["shape", "colour"]
    for split in bundle.splits:
        if split.server is not None:
            server = onnx.load(folder / split.server)
            names = {name for node in server.graph.node for name in (*node.input, *node.output)}
            assert not [name for name in names if "exit" in name]
            assert [output.name for output in server.graph.output] == ["shape", "colour"]
    with np.load(folder / bundle.golden) as golden:
        assert set(golden) == {"images", "shape", "colour"}
    assert set(bundle.golden_tolerance) == {"shape", "colour"}


def test_the_wire_is_as_without_exits_and_the_heads_are_counted(exit_bundle: Path, exit_model: Path) -> None:
    bundle, splits = load_bundle(exit_bundle), list_splits(load_model(exit_model))
    for split in bundle.splits[1:3]:
        point = next(one for one in splits.points if one.id == split.id)
        assert split.payload_bytes == point.int8_bytes
        assert split.server_macs == point.server_macs
        # 16 features to 2 and to 3 classes at every place; weights and biases.
        places = len(split.exits) // 2
        assert split.edge_macs - point.edge_macs == places * 16 * (2 + 3)
        assert split.edge_parameters - point.edge_parameters == places * (16 + 1) * (2 + 3)


def test_exits_take_no_transposition_and_leave_local_only_alone(exit_bundle: Path) -> None:
    bundle = load_bundle(exit_bundle)
    assert all("TRANSPOSE" not in operators for operators in bundle.operators.values())
    interpreter = Interpreter(model_path=str(exit_bundle / bundle.edge_files[0]))
    assert set(interpreter.get_signature_list()["local"]["outputs"]) == {"shape", "colour"}
    assert bundle.operators["local"]["MEAN"] == 1
    assert bundle.operators[bundle.splits[2].id]["MEAN"] == 2


@pytest.mark.parametrize("kind", ["exit_bundle", "qdq_bundle"])
def test_deployed_exits_are_near_the_float_model(
    kind: str, exit_model: Path, exit_samples: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    bundle, images = load_bundle(folder), load_samples(exit_samples / "held.npz", 1).images[:20]
    found = deployed_outputs(folder, bundle, bundle.splits[1:3], images, lambda what, done, total: None)
    session = reference_session(load_model(exit_model).whole.model)
    inputs = normalise(prepare(images, bundle.preprocessing), bundle.preprocessing)
    runs = [session.run(list(EXITS), {"image": inputs[i : i + 1]}) for i in range(len(inputs))]
    for split in bundle.splits[1:3]:
        assert set(found[split.id]) == {"shape", "colour", *split.exits}
        for name in split.exits:
            expected = np.concatenate([one[EXITS.index(name)] for one in runs])
            assert found[split.id][name].dtype == np.float32
            assert np.abs(found[split.id][name] - expected).max() < 0.06 * np.ptp(expected), name


def test_a_qdq_edge_half_gives_float_exits(qdq_bundle: Path, exit_samples: Path) -> None:
    bundle = load_bundle(qdq_bundle)
    split = bundle.splits[2]
    model = onnx.load(qdq_bundle / str(split.edge))
    assert [one.name for one in model.graph.output] == [*(tensor.name for tensor in split.tensors), *EXITS]
    types = {one.name: one.type.tensor_type.elem_type for one in model.graph.output}
    assert {types[name] for name in EXITS} == {onnx.TensorProto.FLOAT}
    by_output = {node.output[0]: node for node in model.graph.node}
    for name in EXITS:  # the heads are INT8 inside
        assert by_output[by_output[name].input[0]].op_type == "DequantizeLinear"
        assert by_output[by_output[name].input[1]].op_type == "DequantizeLinear"
    image = load_samples(exit_samples / "held.npz", 1).images[:1]
    stored = edge_image(prepare(image, bundle.preprocessing), bundle.input_table())
    assert reference_session(model).run(["shape_exit_stem"], {"image": stored})[0].shape == (1, 2)


@pytest.fixture(scope="module")
def finals(exit_bundle: Path, exit_samples: Path) -> dict[str, dict[str, np.ndarray]]:
    """What the server halves answer to the interpreter's tensors, by split and task."""
    bundle = load_bundle(exit_bundle)
    images = load_samples(exit_samples / "held.npz", 1).images
    inputs = edge_image(prepare(images, bundle.preprocessing), bundle.input_table())
    interpreter = Interpreter(model_path=str(exit_bundle / bundle.edge_files[0]))
    found = {}
    for split in bundle.splits[1:3]:
        runner = interpreter.get_signature_runner(split.edge_signature)
        server = reference_session(onnx.load(exit_bundle / str(split.server)))
        (wire,) = split.tensors
        sent = [runner(image=image[None])[wire.name].copy() for image in inputs]
        answers = [server.run(["shape", "colour"], {wire.name: one}) for one in sent]
        found[split.id] = {task: np.concatenate([a[i] for a in answers]) for i, task in enumerate(("shape", "colour"))}
    return found


@pytest.mark.parametrize("measure", ["max_softmax", "entropy"])
def test_thresholds_are_written_for_every_exit(
    exit_bundle: Path,
    exit_samples: Path,
    finals: dict[str, dict[str, np.ndarray]],
    tmp_path: Path,
    measure: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "exits.json"
    options = ["--data", str(exit_samples / "held.npz"), "--drop", "5", "--measure", measure, "-o", str(out)]
    assert run(["thresholds", str(exit_bundle), *options, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    bundle, held = load_bundle(exit_bundle), load_samples(exit_samples / "held.npz", 1)
    rules = read_exit_rules(out, bundle, bundle_sha256(exit_bundle))
    assert rules.data_sha256 == said["data_sha256"] == held.sha256
    assert [rule["output"] for rule in said["rules"]] == [one.output for one in rules.rules]
    assert [(one.split, one.output) for one in rules.rules] == [
        (split.id, name) for split in bundle.splits for name in split.exits
    ]
    for rule in rules.rules:
        assert (rule.n_samples, rule.measure, rule.target_drop) == (360, measure, 0.05)
        assert rule.drop_upper <= 0.05
        assert rule.accuracy == pytest.approx(
            (finals[rule.split][rule.task].argmax(axis=1) == held.labels[rule.task]).mean()
        )
    # The tiny network was never trained and its exits were: they take over.
    assert all(rules.best(split.id, "shape") is not None for split in bundle.splits[1:3])
    assert all(rule.accuracy_exit > 0.9 for rule in rules.rules if rule.task == "shape")


@pytest.fixture
def turned(exit_samples: Path, tmp_path: Path) -> Path:
    """Held-out images whose classes are turned round, so that the surest answers are wrong ones."""
    held = load_samples(exit_samples / "held.npz", 1)
    save_samples(tmp_path / "turned.npz", held.images, {"shape": 1 - held.labels["shape"]})
    return tmp_path / "turned.npz"


def test_the_table_says_where_an_exit_never_answers(
    exit_bundle: Path, turned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exits.json"
    options = ["--data", str(turned), "--drop", "3", "-o", str(out)]
    assert run(["thresholds", str(exit_bundle), *options]) == 0
    text = capsys.readouterr().out
    assert "never exits: shape_exit_stem at s02: already its surest answers may lose more than is allowed" in text
    assert "not fitted, no labels: colour" in text
    rules = read_exit_rules(out, load_bundle(exit_bundle), bundle_sha256(exit_bundle)).rules
    assert {rule.threshold for rule in rules} == {None}
    assert {rule.task for rule in rules} == {"shape"}


def test_too_few_images_are_inconclusive(
    exit_bundle: Path, turned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exits.json"
    options = ["--data", str(turned), "--drop", "0.5", "-o", str(out)]
    assert run(["thresholds", str(exit_bundle), *options]) == 2
    text, error = capsys.readouterr()
    assert "360" in error
    assert "598" in error  # without a change in n images, 0.05 ** (1 / n) <= 1 - 0.005 from n = 598 on
    assert "never" in text
    rules = read_exit_rules(out, load_bundle(exit_bundle), bundle_sha256(exit_bundle)).rules
    assert {rule.threshold for rule in rules} == {None}


@pytest.fixture(scope="module")
def uneven_bundle(exit_bundle: Path, exit_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose split ``s02`` ends in a head of task shape that was fitted, and ``s05`` in one that was not."""
    folder = tmp_path_factory.mktemp("uneven") / "bundle"
    shutil.copytree(exit_bundle, folder)
    bundle, held = load_bundle(folder), load_samples(exit_samples / "held.npz", 1)
    split = bundle.splits[1]
    path, (wire,) = folder / str(split.server), split.tensors
    server = onnx.load(path)
    (head,) = (node for node in server.graph.node if "shape" in node.output)
    server.graph.output.append(onnx.helper.make_empty_tensor_value_info(head.input[0]))
    session = reference_session(server)
    del server.graph.output[-1]
    runner = Interpreter(model_path=str(folder / bundle.edge_files[0])).get_signature_runner(split.edge_signature)
    inputs = edge_image(prepare(held.images, bundle.preprocessing), bundle.input_table())
    sent = [runner(image=image[None])[wire.name].copy() for image in inputs]
    values = np.concatenate([session.run([head.input[0]], {wire.name: one})[0] for one in sent]).astype(np.float64)
    scaler = StandardScaler().fit(values)
    model = LogisticRegression(max_iter=10_000).fit(scaler.transform(values), held.labels["shape"])
    weight = np.concatenate([-model.coef_, model.coef_]) / scaler.scale_
    bias = np.concatenate([-model.intercept_, model.intercept_]) - weight @ scaler.mean_
    for tensor in server.graph.initializer:
        fitted = {head.input[1]: weight, head.input[2]: bias}.get(tensor.name)
        if fitted is not None:
            assert tuple(tensor.dims) == fitted.shape
            tensor.CopyFrom(onnx.numpy_helper.from_array(fitted.astype(np.float32), tensor.name))
    onnx.save(server, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    (entry,) = (one for one in manifest["artifacts"] if one["path"] == split.server)
    entry.update(sha256=file_sha256(path), size_bytes=path.stat().st_size)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def own(uneven_bundle: Path, exit_samples: Path) -> dict[str, int]:
    """How many of the held-out images the splits' own halves get right in task shape."""
    bundle, held = load_bundle(uneven_bundle), load_samples(exit_samples / "held.npz", 1)
    inputs = edge_image(prepare(held.images, bundle.preprocessing), bundle.input_table())
    interpreter = Interpreter(model_path=str(uneven_bundle / bundle.edge_files[0]))
    found = {}
    for split in bundle.splits[1:3]:
        runner = interpreter.get_signature_runner(split.edge_signature)
        server = reference_session(onnx.load(uneven_bundle / str(split.server)))
        (wire,) = split.tensors
        answers = [server.run(["shape"], {wire.name: runner(image=image[None])[wire.name]})[0] for image in inputs]
        found[split.id] = int((np.concatenate(answers).argmax(axis=1) == held.labels["shape"]).sum())
    assert found["s02"] > 0.85 * len(held) > 0.6 * len(held) > found["s05"]
    return found


@pytest.fixture(scope="module")
def kept(
    uneven_bundle: Path, exit_samples: Path, own: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The rules that keep 80 % in task shape, where one of two splits has as much, and what the command says."""
    out, said = tmp_path_factory.mktemp("kept") / "exits.json", io.StringIO()
    options = ["--data", str(exit_samples / "held.npz"), "--drop", "7", "--accuracy", "shape=80", "-o", str(out)]
    with contextlib.redirect_stdout(said):
        assert run(["thresholds", str(uneven_bundle), *options]) == 0
    return out, said.getvalue()


def test_an_accuracy_is_kept_where_the_split_has_it_and_other_tasks_keep_the_drop(
    uneven_bundle: Path, own: dict[str, int], kept: tuple[Path, str]
) -> None:
    rules = read_exit_rules(kept[0], load_bundle(uneven_bundle), bundle_sha256(uneven_bundle))
    of_shape = [rule for rule in rules.rules if rule.task == "shape"]
    assert [rule.split for rule in of_shape] == ["s02", "s05", "s05"]
    for rule in of_shape:
        assert rule.target_accuracy == 0.8
        assert rule.accuracy == pytest.approx(own[rule.split] / 360)
        assert rule.target_drop == pytest.approx(max(0, own[rule.split] / 360 - 0.8))
    reached, *missed = of_shape
    assert reached.threshold is not None
    assert reached.exit_rate > 0
    assert reached.accuracy - reached.drop_upper >= 0.8
    for rule in missed:
        assert (rule.threshold, rule.exit_rate) == (None, 0)
        assert rule.reason == "out of reach: the split itself is below 80 %"
    assert {(r.target_accuracy, r.target_drop) for r in rules.rules if r.task == "colour"} == {(None, 0.07)}
    assert rules.best("s05", "shape") is None


def test_the_table_says_the_target(kept: tuple[Path, str]) -> None:
    lines = kept[1].splitlines()
    ends = {tuple(line.split()[:2]): line.split("  ")[-1].strip() for line in lines if "_exit_" in line[:30]}
    assert ends["s02", "shape_exit_stem"] == "80 %"
    assert ends["s02", "colour_exit_stem"] == "7"
    assert "never exits: shape_exit_stem at s05: out of reach: the split itself is below 80 %" in lines


def test_rules_from_before_there_were_accuracies_are_read(
    uneven_bundle: Path, kept: tuple[Path, str], tmp_path: Path
) -> None:
    old = json.loads(kept[0].read_text())
    assert [rule.pop("target_accuracy") for rule in old["rules"]] == [0.8, None, 0.8, None, 0.8, None]
    (tmp_path / "old.json").write_text(json.dumps(old))
    rules = read_exit_rules(tmp_path / "old.json", load_bundle(uneven_bundle), bundle_sha256(uneven_bundle))
    assert [rule.target_accuracy for rule in rules.rules] == [None] * 6


def test_an_accuracy_that_no_split_has_is_refused(
    uneven_bundle: Path, exit_samples: Path, own: dict[str, int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exits.json"
    options = ["--data", str(exit_samples / "held.npz"), "--accuracy", "shape=99.9", "-o", str(out)]
    assert run(["thresholds", str(uneven_bundle), *options]) == 3
    (line,) = (one for one in capfd.readouterr().err.splitlines() if one.startswith("error"))
    assert line == 'error: task "shape" cannot keep an accuracy of "99.9 %": by itself ' + ", ".join(
        f"{split} has {100 * right / 360:.2f} % ({right} of 360)" for split, right in own.items()
    )
    assert not list(tmp_path.iterdir())


def test_percents_are_the_shares_that_counting_gives() -> None:
    for right in range(10, 1001):
        assert check_accuracies([f"kind={right // 10}.{right % 10}"]) == {"kind": right / 1000}
    assert check_accuracies(["a=b=88", "c=9e1"]) == {"a=b": 0.88, "c": 0.9}


@pytest.mark.parametrize(("name", "said"), [("train", "exit_samples.txt"), ("calib", "calibration/samples.txt")])
def test_images_that_made_the_bundle_fit_no_threshold(
    exit_bundle: Path, exit_samples: Path, tmp_path: Path, name: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    held, seen = (load_samples(exit_samples / f"{one}.npz", 1) for one in ("held", name))
    images = np.concatenate([held.images, seen.images[7:8]])
    labels = {task: np.append(held.labels[task], seen.labels[task][7]) for task in held.labels}
    save_samples(tmp_path / "mixed.npz", images, labels)
    out = tmp_path / "exits.json"
    assert run(["thresholds", str(exit_bundle), "--data", str(tmp_path / "mixed.npz"), "-o", str(out)]) == 3
    error = capfd.readouterr().err
    assert "1 of the images" in error
    assert said in error
    assert seen.hashes[7] in error
    assert not out.exists()


def test_exits_may_come_in_turns_and_are_fine_tuned_with_the_model(
    exit_model: Path, exit_samples: Path, tmp_path: Path
) -> None:
    train = str(exit_samples / "train.npz")
    more = ["--task", "shape", "--at", "blocks.1", "--data", str(exit_samples / "calib.npz"), "-o", str(tmp_path / "m")]
    assert run(["exits", str(exit_model), *more]) == 0
    three = load_model(tmp_path / "m").info
    assert [one.output for one in three.exits] == [*EXITS, "shape_exit_blocks_1"]
    hashes = {*load_samples(Path(train), 1).hashes, *load_samples(exit_samples / "calib.npz", 1).hashes}
    assert set(three.exit_samples) == hashes
    options = ["--data", str(exit_samples / "held.npz"), "--calib", train, "--epochs", "1", "-o", str(tmp_path / "t")]
    assert run(["finetune", str(tmp_path / "m"), *options]) == 0
    tuned = load_model(tmp_path / "t")
    assert tuned.info.exits == three.exits
    assert set(tuned.info.exit_samples) == hashes | {*load_samples(exit_samples / "held.npz", 1).hashes}
    before = load_model(tmp_path / "m").whole.constant("shape_exit_blocks_1.weight")
    assert not np.array_equal(tuned.whole.constant("shape_exit_blocks_1.weight"), before)


@pytest.mark.parametrize("kind", ["exit_bundle", "qdq_bundle"])
def test_the_other_verbs_know_a_bundle_with_exits(
    kind: str, exit_samples: Path, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    folder: Path = request.getfixturevalue(kind)
    data = ["--data", str(exit_samples / "held.npz")]
    assert run(["check", str(folder), *data, "--json"]) == 0
    judged = [json.loads(line) for line in capsys.readouterr().out.splitlines()][:-1]
    assert {one["task"] for one in judged} == {"shape", "colour"}
    page = ["--split", "s05", "--worst", "2", "--limit", "40", "-o", str(tmp_path / "d.html")]
    assert run(["diagnose", str(folder), *data, *page, "--json"]) == 0
    layers = {one["layer"] for one in json.loads(capsys.readouterr().out)["layers"]}
    assert layers
    assert not [name for name in layers if "exit" in name]


@pytest.mark.slow
@pytest.mark.parametrize("board", ["linux-x86-64", "jetson-orin-nano"])
def test_a_model_s_own_exit_is_deployed(board: str, exit_samples: Path, tmp_path: Path) -> None:
    save_file(early.make().state_dict(), tmp_path / "net.safetensors")
    (tmp_path / "spec.toml").write_text(
        "[preprocessing]\nheight = 32\nwidth = 32\nsource_channels = 1\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n"
        '[exits]\nkind_early = "kind"\n'
    )
    model, folder = tmp_path / "model", tmp_path / "bundle"
    source = ["--model", "early:make", "--path", str(MODELS), "--spec", str(tmp_path / "spec.toml")]
    argv = ["export", str(tmp_path / "net.safetensors"), *source, "--input", "1x3x32x32", "-o", str(model)]
    assert run(argv) == 0
    calib = str(exit_samples / "calib.npz")
    options = ["--board", board, "--split", "stages.1", "--calib", calib, "--equalise", "-o", str(folder)]
    assert run(["build", str(model), *options]) == 0
    bundle = load_bundle(folder)
    assert [split.exits for split in bundle.splits] == [(), ("kind_early",), ()]
    assert bundle.quantisation.equalised == 1  # of the trunk; the exit's own layers stay as they are
    assert not (folder / "calibration" / "exit_samples.txt").exists()
    images = load_samples(exit_samples / "held.npz", 1).images[:10]
    (split,) = bundle.splits[1:2]
    found = deployed_outputs(folder, bundle, [split], images, lambda what, done, total: None)[split.id]
    inputs = normalise(prepare(images, bundle.preprocessing), bundle.preprocessing)
    with torch.no_grad():
        expected = {name: value.numpy() for name, value in early.make().eval()(torch.from_numpy(inputs)).items()}
    for name in ("kind", "age", "kind_early"):
        assert np.abs(found[name] - expected[name]).max() < 0.06 * np.ptp(expected[name]), name
    save_samples(tmp_path / "held.npz", images, {"kind": np.arange(10) % 3})
    page = ["--worst", "2", "-o", str(tmp_path / "d.html")]
    assert run(["diagnose", str(folder), "--data", str(tmp_path / "held.npz"), *page]) == 0


def test_the_manifest_without_the_exit_samples_is_refused(exit_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(exit_bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "calibration" / "exit_samples.txt").unlink()
    with pytest.raises(UserError, match=re.escape('lacks the file "calibration/exit_samples.txt"')):
        load_bundle(tmp_path / "bundle")
