"""Wrong input, one row each: exit code 3, one line with the offending value, advice, and nothing left behind."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from splitboard.cli.main import run
from splitboard.contract.bundle import load_bundle
from splitboard.contract.errors import UserError
from splitboard.contract.samples import save_samples

pytestmark = pytest.mark.usefixtures("quick_exports")

TINY = Path(__file__).parents[1] / "models" / "tiny.py"
IN_A_PROCESS = ("serve", "bench", "demo")
"""Verbs that would run for long, or for ever, if they did not refuse."""

TIMEOUT_S = 60
NEVER = ("Traceback", "\x1b", "weights_only")
"""Walls of traces, terminal codes, and torch's own advice on how to unpickle a file all the same."""

SPEC = """[preprocessing]
height = 32
width = 32
source_channels = 1
mean = [0.5, 0.4, 0.3]
std = [0.5, 0.6, 0.7]
[labels]
shape = ["round", "square"]
"""
FACTORIES = {
    "raises": "def make():\n    raise ValueError('no such width: 7')\n",
    "deep": "import raises\n\n\ndef make():\n    return raises.make()\n",
    "needs": "def make(width):\n    return width\n",
    "syntax": "def make(:\n",
    "other": "def make():\n    return 3\n",
    "leaves": "import sys\n\n\ndef make():\n    sys.exit(0)\n",
}


class Payload:
    """What an attacker puts into a checkpoint: a call that runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("was-unpickled", "w")


def _checkpoints(desk: Path, good: Path) -> None:
    import torch
    from safetensors.torch import load_file

    state = load_file(good)
    (desk / "nets.safetensors").write_bytes(good.read_bytes())
    (desk / "cut.safetensors").write_bytes(good.read_bytes()[:2000])
    torch.save(state, desk / "good.pt")
    (desk / "cut.pt").write_bytes((desk / "good.pt").read_bytes()[:2000])
    torch.save({name.replace("stem", "stam"): value for name, value in state.items()}, desk / "keys.pt")
    torch.save(state | {"heads.shape.weight": torch.zeros(3, 12)}, desk / "shapes.pt")
    torch.save(state | {"stem.0.bias": torch.full_like(state["stem.0.bias"], torch.nan)}, desk / "nan.pt")
    torch.save(state | {"stem.0.bias": "eight zeros"}, desk / "text.pt")
    torch.save(Payload(), desk / "pickled.pt")
    (desk / "program.pt2").write_text("hello\n")


def _specs(desk: Path) -> None:
    (desk / "spec.toml").write_text(SPEC)
    (desk / "typo.toml").write_text(SPEC.replace("height", "heigth"))
    (desk / "broken.toml").write_text(SPEC + "[labels")
    (desk / "latin.toml").write_bytes(SPEC.replace("round", "r\xf6nd").encode("latin-1"))
    (desk / "task.toml").write_text(SPEC.replace("shape =", "shpe ="))
    (desk / "labels.toml").write_text(SPEC.replace('"square"', '"square", "oval"'))


def _samples(desk: Path, good: Path) -> None:
    (desk / "good.npz").write_bytes(good.read_bytes())
    (desk / "cut.npz").write_bytes(good.read_bytes()[:2000])
    (desk / "text.npz").write_text("hello\n")
    (desk / "empty").mkdir()
    pixels = np.zeros((3, 40, 40, 1), np.uint8)
    np.save(desk / "array.npy", pixels)
    np.savez(desk / "pictures.npz", pictures=pixels)
    np.savez(desk / "rgb.npz", images=np.repeat(pixels, 3, axis=-1))
    np.savez(desk / "float.npz", images=pixels.astype(np.float32))
    save_samples(desk / "labels.npz", pixels, {"shape": np.zeros(2, np.int64)})
    save_samples(desk / "texture.npz", pixels, {"texture": np.zeros(3, np.int64)})
    save_samples(desk / "third.npz", pixels, {"shape": np.array([0, 2, 1]), "colour": np.array([0, 2, 1])})


def _folders(desk: Path, model: Path, bundle: Path) -> None:
    for name in ("model", "model.changed"):
        shutil.copytree(model, desk / name)
    for name in ("bundle", "bundle.changed", "bundle.extra", "bundle.missing"):
        shutil.copytree(bundle, desk / name)
    with open(desk / "model.changed" / "model.onnx", "ab") as file:
        file.write(b"x")
    edge = desk / "bundle.changed" / "edge" / "edge.int8.tflite"
    content = bytearray(edge.read_bytes())
    content[len(content) // 2] ^= 1
    edge.write_bytes(content)
    (desk / "bundle.extra" / "server" / "s99.onnx").write_text("hello\n")
    (desk / "bundle.missing" / "golden" / "golden.npz").unlink()


def _runs(desk: Path) -> None:
    good = desk / "good.jsonl"
    assert run(["bench", str(desk / "bundle"), "--data", str(desk / "good.npz"), "--limit", "5", "-o", str(good)]) == 0
    text = good.read_text()
    (desk / "cut.jsonl").write_text(text[: len(text) // 2])
    (desk / "old.jsonl").write_text(text.replace('"schema_version":3', '"schema_version":9'))
    (desk / "binary.jsonl").write_bytes(b"\xff\xfe\x00\n")
    (desk / "blank.jsonl").touch()


def _others(desk: Path) -> None:
    """What belongs to the user and lies where a command is told to write."""
    for name in ("theirs", "theirs.jsonl.d", "theirs.html.d", "theirs.demo"):
        (desk / name).mkdir()
        (desk / name / "test.npz").write_text("years of work\n")
        (desk / name / "thesis.tex").write_text("years of work\n")
    for name in ("file", "theirs.jsonl", "theirs.html", "notes.txt"):
        (desk / name).write_text("years of work\n")


@pytest.fixture(scope="module")
def desk(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    tiny_samples: Path,
    tiny_model: Path,
    tiny_bundle: Path,
) -> Path:
    """The user's folder, with everything that can be wrong in it."""
    made = tmp_path_factory.mktemp("desk")
    (made / "out").mkdir()
    (made / "nets").mkdir()
    (made / "nets" / "tiny.py").write_text(TINY.read_text())
    for name, code in FACTORIES.items():
        (made / "nets" / f"{name}.py").write_text(code)
    _checkpoints(made, tiny_checkpoint)
    _specs(made)
    _samples(made, tiny_samples)
    _folders(made, tiny_model, tiny_bundle)
    _runs(made)
    _others(made)
    return made


@pytest.fixture(scope="module")
def busy_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


def export(
    checkpoint: str = "nets.safetensors",
    model: str = "tiny:make",
    spec: str = "spec.toml",
    shape: str = "1x3x32x32",
    out: str = "out/model",
    without: str = "",
) -> list[str]:
    options = {"--model": model, "--spec": spec, "--input": shape}
    options.pop(without, None)
    return ["export", checkpoint, *itertools.chain(*options.items()), "-o", out, "--path", "nets"]


def build(
    split: str = "s03",
    calib: str = "good.npz",
    board: str = "rpi5",
    precision: str = "int8",
    out: str = "out/bundle",
    model: str = "model",
) -> list[str]:
    argv = ["build", model, "--board", board, "--split", split, "--calib", calib]
    return [*argv, "--precision", precision, "-o", out]


def bench(bundle: str = "bundle", *more: str, data: str = "good.npz", out: str = "out/runs.jsonl") -> list[str]:
    return ["bench", bundle, "--data", data, "-o", out, "--limit", "5", *more]


def report(runs: str = "good.jsonl", out: str = "out/report.html") -> list[str]:
    return ["report", runs, "-o", out]


def finetune(data: str = "good.npz", *more: str, model: str = "model", out: str = "out/tuned") -> list[str]:
    return ["finetune", model, "--data", data, "--calib", "good.npz", "-o", out, *more]


@dataclass(frozen=True)
class Wrong:
    """One wrong command line.

    Attributes:
        arguments: of ``splitboard``; ``BUSY`` stands for a port that is taken.
        value: stands in quotes in the first line.
        advice: stands in a ``Try:`` line.
    """

    arguments: Sequence[str]
    value: str
    advice: str = ""


WRONG = {
    # checkpoints
    "no checkpoint": Wrong(export("nope.safetensors"), "nope.safetensors"),
    "suffix": Wrong(export("theirs.html"), ".html", ".safetensors"),
    "cut safetensors": Wrong(export("cut.safetensors"), "cut.safetensors", "truncated"),
    "cut pt": Wrong(export("cut.pt"), "cut.pt", "truncated"),
    "other keys": Wrong(export("keys.pt"), "stem.0.", "--model"),
    "other shapes": Wrong(export("shapes.pt"), "heads.shape.weight", "--model"),
    "not a number": Wrong(export("nan.pt"), "stem.0.bias"),
    "not a tensor": Wrong(export("text.pt"), "stem.0.bias"),
    "pickled object": Wrong(export("pickled.pt"), "pickled.pt", "state dict"),
    # factories
    "factory raises": Wrong(export(model="raises:make"), "raises.py:2"),
    "factory's helper raises": Wrong(export(model="deep:make"), "raises.py:2"),
    "factory takes an argument": Wrong(export(model="needs:make"), "needs:make", "without arguments"),
    "factory is no Python": Wrong(export(model="syntax:make"), "syntax.py:1"),
    "factory makes no module": Wrong(export(model="other:make"), "other:make"),
    "factory ends the process": Wrong(export(model="leaves:make"), "leaves"),
    "no such factory": Wrong(export(model="tiny:mkae"), "tiny:mkae", "package.module:factory"),
    "no such module": Wrong(export(model="nothere:make"), "nothere:make", "--path"),
    "no module at all": Wrong(export(model=":make"), ":make", "package.module:factory"),
    # model specs, shapes, names
    "no spec": Wrong(export(spec="nope.toml"), "nope.toml"),
    "unknown key": Wrong(export(spec="typo.toml"), "heigth", '"height"'),
    "spec is no TOML": Wrong(export(spec="broken.toml"), "broken.toml"),
    "spec is not UTF-8": Wrong(export(spec="latin.toml"), "latin.toml"),
    "unknown task": Wrong(export(spec="task.toml"), "shpe", "shape"),
    "too many labels": Wrong(export(spec="labels.toml"), "3"),
    "not a shape": Wrong(export(shape="3x32x32"), "3x32x32", "1x3x224x224"),
    "not a number in a shape": Wrong(export(shape="1x3x32x\u00b2"), "1x3x32x\u00b2", "1x3x224x224"),
    "other shape": Wrong(export(shape="1x3x64x64"), "1x3x64x64", "1x3x32x32"),
    "name": Wrong([*export(), "--name", "a/b"], "a/b", "--name"),
    "several inputs without names": Wrong([*export(), "--input", "1x6"], "1x3x32x32", "image=1x3x224x224"),
    "type of an input": Wrong(export(shape="1x3x32x32:real"), "real", "float32"),
    "batch of eight": Wrong(export(shape="8x3x32x32"), "8x3x32x32", "a batch of 1"),
    "no such parameter": Wrong(export(shape="depth=1x3x32x32"), "depth", "image"),
    "wrong channels": Wrong(export(without="--spec", shape="1x4x32x32"), "stem.0", "plain torch"),
    "weights without a model": Wrong(export(without="--model"), "nets.safetensors", "--model"),
    "weights without a shape": Wrong(export(without="--input"), "nets.safetensors", "--input"),
    "a program with a model": Wrong(export("program.pt2"), "tiny:make", "leave --model out"),
    "no program": Wrong(export("program.pt2", without="--model"), "program.pt2", "torch.export.save"),
    # bundles to build
    "no model": Wrong(build(model="nope"), "nope", "splitboard export"),
    "changed model": Wrong(build(model="model.changed"), "model.onnx", "export"),
    "board": Wrong(build(board="rpi6"), "rpi6", '"rpi5"'),
    "precision": Wrong(build(precision="fp4"), "fp4", "int8"),
    "split": Wrong(build(split="s99"), "s99", '"s08"'),
    "split without a number": Wrong(build(split="s\u00b2"), "s\u00b2", "s07"),
    "no split": Wrong(build(split=""), "", "s07"),
    "split beside auto": Wrong(build(split="auto,s03"), "auto,s03", "--split s03"),
    "split at an end": Wrong(build(split="local"), "local", "every bundle holds it"),
    "split inside a block": Wrong(
        build(split="blocks.0.project"), "blocks.0.project", "sends 2 tensors and cuts there"
    ),
    "split behind a head": Wrong(build(split="heads.shape"), "heads.shape", "--local shape"),
    "unknown local task": Wrong([*build(), "--local", "shap"], "shap", "shape, colour"),
    "all tasks local": Wrong([*build(), "--local", "shape,colour"], "shape,colour", "local only"),
    "head that cannot be local": Wrong([*build(split="blocks.0"), "--local", "shape"], "shape", "splits where it can"),
    "unknown local task at auto": Wrong([*build(split="auto"), "--local", "nose"], "nose", "shape, colour"),
    "opset too old": Wrong([*build(), "--server-opset", "12"], "12", "13 to 18"),
    "opset too new": Wrong([*build(), "--server-opset", "19"], "19", "13 to 18"),
    "splits with no tensor": Wrong(["splits", "model", "--max-tensors", "0"], "0"),
    "somebody else's picture": Wrong(["splits", "model", "--picture", "theirs.html"], "theirs.html"),
    "no calibration": Wrong(build(calib="nope"), "nope"),
    "empty folder": Wrong(build(calib="empty"), "empty", ".png"),
    "no images": Wrong(build(calib="pictures.npz"), "images", "pictures"),
    "channels": Wrong(build(calib="rgb.npz"), "3", "[n, height, width, 1]"),
    "float images": Wrong(build(calib="float.npz"), "float.npz", "uint8"),
    "cut images": Wrong(build(calib="cut.npz"), "cut.npz"),
    "text for images": Wrong(build(calib="text.npz"), "text.npz"),
    "one array for images": Wrong(build(calib="array.npy"), "array.npy"),
    "too few labels": Wrong(build(calib="labels.npz"), "shape"),
    "calibration code that is not there": Wrong(build(calib="nothere:images"), "nothere:images", "--path"),
    "one image, thrice": Wrong(build(calib="texture.npz"), "1", "--ranges minmax"),
    "no image wanted": Wrong([*build(), "--calib-limit", "0"], "0"),
    "ranges": Wrong([*build(), "--ranges", "max"], "max", "minmax"),
    "unknown layer to keep in float": Wrong([*build(), "--keep-float", "blocks.00"], "blocks.00", '"blocks.0"'),
    "precision that the board lacks": Wrong(
        build(board="jetson-orin-nano", precision="int16x8"), "int16x8", "jetson-orin-nano runs: int8"
    ),
    # servers
    "no bundle": Wrong(["serve", "nope"], "nope", "splitboard build"),
    "busy port": Wrong(["serve", "bundle", "--port", "BUSY"], "BUSY", "--port 0"),
    "impossible port": Wrong(["serve", "bundle", "--port", "70000"], "70000"),
    "serve a changed bundle": Wrong(["serve", "bundle.changed", "--port", "0"], "edge.int8.tflite", "splitboard build"),
    "serve an extra file": Wrong(["serve", "bundle.extra", "--port", "0"], "s99.onnx", "splitboard build"),
    "serve a missing file": Wrong(["serve", "bundle.missing", "--port", "0"], "golden.npz", "splitboard build"),
    "serve a bundle twice": Wrong(["serve", "bundle", "bundle", "--port", "0"], "tiny-s00", "port"),
    # measurements
    "bench a changed bundle": Wrong(bench("bundle.changed"), "edge.int8.tflite", "splitboard build"),
    "bench an extra file": Wrong(bench("bundle.extra"), "s99.onnx", "splitboard build"),
    "bench an unknown split": Wrong(bench("bundle", "--split", "s99"), "s99", '"s09"'),
    "no such server": Wrong(
        bench("bundle", "--server", "http://127.0.0.1:1"), "http://127.0.0.1:1", "splitboard serve"
    ),
    "server is no URL": Wrong(bench("bundle", "--server", "ftp://pi"), "ftp://pi", "http://"),
    "no such station": Wrong(bench("bundle", "--board", "rpi5"), "rpi5", "address ="),
    "a board twice": Wrong(bench("bundle", "--board", "pi1,pi1"), "pi1", "once"),
    "local beside a board": Wrong(bench("bundle", "--board", "local,pi1"), "local,pi1", "one after the other"),
    "an emulated board of no kind": Wrong(bench("bundle", "--board", "emulated:rpi55"), "rpi55", "rpi5"),
    "meter without energy": Wrong(bench("bundle", "--meter", "pmic"), "--meter", "--energy"),
    "out below a file": Wrong(bench(out="file/runs.jsonl"), "file/runs.jsonl", "-o"),
    "sudo for nothing": Wrong(bench("bundle", "--sudo"), "--sudo", "--governor"),
    "no such governor": Wrong(bench("bundle", "--governor", "fastest"), "fastest"),
    "no data": Wrong(bench(data="nope.npz"), "nope.npz"),
    # records
    "no runs": Wrong(report("nope"), "nope", "splitboard bench"),
    "empty folder of runs": Wrong(report("empty"), "empty", "splitboard bench"),
    "cut record": Wrong(report("cut.jsonl"), "cut.jsonl:"),
    "record is not UTF-8": Wrong(report("binary.jsonl"), "binary.jsonl"),
    "record of another version": Wrong(report("old.jsonl"), "9"),
    "no record in the file": Wrong(report("blank.jsonl"), "blank.jsonl"),
    # never overwritten
    "export into their folder": Wrong(export(out="theirs"), "theirs", "-o"),
    "export onto their file": Wrong(export(out="file"), "file", "-o"),
    "export below their file": Wrong(export(out="file/model"), "file"),
    "build into their folder": Wrong(build(out="theirs"), "theirs", "-o"),
    "bench into their folder": Wrong(bench(out="theirs.jsonl.d"), "theirs.jsonl.d"),
    "bench onto their file": Wrong(bench(out="theirs.jsonl"), "theirs.jsonl"),
    "report into their folder": Wrong(report(out="theirs.html.d"), "theirs.html.d"),
    "report onto their file": Wrong(report(out="theirs.html"), "theirs.html"),
    "report onto their text": Wrong(report(out="notes.txt"), "notes.txt"),
    "demo into their folder": Wrong(["demo", "--limit", "1", "-o", "theirs.demo"], "theirs.demo"),
    "demo onto their file": Wrong(["demo", "--limit", "1", "-o", "file"], "file"),
    # usage
    "verb": Wrong(["exprot"], "exprot", "--help"),
    "option": Wrong(["boards", "--jsno"], "--jsno", "splitboard boards --help"),
    "extra argument": Wrong(["boards", "rpi5"], "rpi5", "splitboard boards --help"),
    "missing argument": Wrong(["splits"], "model", "splitboard splits --help"),
    "not a number in an option": Wrong(bench("bundle", "--threads", "two"), "two", "splitboard bench --help"),
    "no threads": Wrong(bench("bundle", "--threads", "0"), "0", "splitboard bench --help"),
    "reference model": Wrong(["train", "resnet"], "resnet", "elpv"),
    "suffix of a new checkpoint": Wrong(["train", "elpv", "-o", "out/elpv.bin"], "out/elpv.bin", ".safetensors"),
    # fine-tuning
    "fine-tune no model": Wrong(finetune(model="empty"), "empty", "splitboard export"),
    "fine-tune on no data": Wrong(finetune("nope.npz"), "nope.npz"),
    "fine-tune on images of other channels": Wrong(finetune("rgb.npz"), "3", "1]"),
    "fine-tune on labels of another number": Wrong(finetune("labels.npz"), "shape", "3 whole numbers"),
    "fine-tune on labels of other tasks": Wrong(finetune("texture.npz"), "texture", "shape, colour"),
    "fine-tune on a class that is not there": Wrong(finetune("third.npz"), "2", "from 0 to 1"),
    "fine-tune without a rate": Wrong(finetune("good.npz", "--learning-rate", "0"), "0.0", "--learning-rate"),
    "fine-tune for no epoch": Wrong(finetune("good.npz", "--epochs", "0"), "0", "splitboard finetune --help"),
    "fine-tune into their folder": Wrong(finetune(out="theirs"), "theirs", "-o"),
}


def _everything(folder: Path) -> dict[str, str]:
    """Name and content of all that a folder holds; Python's own caches of the user's modules left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


def in_a_process(argv: list[str]) -> tuple[int, str, str]:
    """Exit code and output of the command; it and all that it started are ended where it does not refuse in time."""
    command = [sys.executable, "-m", "splitboard.cli.main", *argv]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, out, err


@pytest.mark.parametrize("wrong", [pytest.param(wrong, id=name) for name, wrong in WRONG.items()])
def test_one_line_advice_and_nothing_left(
    wrong: Wrong, desk: Path, busy_port: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = [word.replace("BUSY", busy_port) for word in wrong.arguments]
    before = _everything(desk)
    monkeypatch.chdir(desk)
    if argv[0] in IN_A_PROCESS:
        code, out, err = in_a_process(argv)
    else:
        code = run(argv)
        out, err = capfd.readouterr()
    assert code == 3, err
    assert not [words for words in NEVER if words in err]
    first, *tries = err.splitlines()
    assert first.startswith("error: ")
    quoted = re.findall(r'"([^"]*)"', first)
    value = wrong.value.replace("BUSY", busy_port)
    assert any(value in part if value else not part for part in quoted), f"{value!r} is not in quotes in: {first}"
    assert tries, f"no advice below: {first}"
    assert all(line.startswith("Try: ") for line in tries), err
    assert any(wrong.advice in line for line in tries), err
    assert out == ""
    assert _everything(desk) == before


def test_the_payload_would_have_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Payload())).close()
    assert (tmp_path / "was-unpickled").exists()


def test_a_changed_byte_in_any_file_of_a_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    files = [path for path in copy.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert len(files) >= 6
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=re.escape(path.name)):
            load_bundle(copy)
        path.write_bytes(content)
    load_bundle(copy)


# The accuracy gate.


@pytest.fixture(scope="module")
def gate_desk(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, tiny_samples: Path) -> Path:
    """A bundle, images that can judge it, and everything that cannot."""
    made = tmp_path_factory.mktemp("gate")
    shutil.copytree(tiny_bundle, made / "bundle")
    (made / "calibration.npz").write_bytes(tiny_samples.read_bytes())
    random = np.random.default_rng(8)
    images = random.integers(0, 256, (6, 40, 40, 1)).astype(np.uint8)
    shape, colour = np.array([0, 1, 0, 1, 0, 1]), np.array([0, 1, 2, 0, 1, 2])
    sets: dict[str, dict[str, np.ndarray]] = {
        "test": {"shape": shape, "colour": colour},
        "one": {"shape": shape, "colour": np.full(6, 2)},
        "third": {"shape": np.array([0, 1, 2, 0, 1, 0])},
        "other": {"shpe": shape},
        "none": {},
        "numbers": {"shape": random.normal(0, 1, (6, 3))},
        "text": {"shape": np.array(list("abcdef"))},
    }
    for name, labels in sets.items():
        save_samples(made / f"{name}.npz", images, labels)
    gates = {
        "typo": "[default]\nmargn = 1.0\n",
        "task": "[tasks.shpe]\nmargin = 1.0\n",
        "metric": '[default]\nmetric = "acuracy"\n',
        "unit": '[tasks.shape]\nmetric = "mae"\n',
        "share": "[default]\nconfidence = 95.0\n",
        "mine": '[tasks.shape]\nmetric = "mine:f1"\nmargin = 0.1\n',
        "numbers": "[tasks.shape]\nmargin = 1.0\n",
        "broken": "[default\n",
        "balanced": '[default]\nmetric = "balanced_accuracy"\n',
    }
    for name, text in gates.items():
        (made / f"{name}.toml").write_text(text)
    (made / "mine.py").write_text("def f2(truth, outputs):\n    return 1.0\n")
    (made / "theirs.json").write_text("years of work\n")
    (made / "theirs.xml").write_text("years of work\n")
    check = ["check", str(made / "bundle"), "--data", str(made / "test.npz"), "--baseline", str(made / "good.json")]
    assert run([*check, "--update-baseline", "--reason", "first"]) in (0, 1, 2)
    good = (made / "good.json").read_text()
    (made / "model.json").write_text(re.sub(r'"model_sha256": "\w+"', f'"model_sha256": "{"f" * 64}"', good))
    (made / "board.json").write_text(re.sub(r'"board": "[^"]+"', '"board": "rpi4"', good))
    digest = hashlib.sha256(images[2].tobytes()).hexdigest()
    (made / "sample.json").write_text(good.replace(digest, "e" * 64))
    return made


def check(data: str = "test.npz", *more: str, bundle: str = "bundle") -> list[str]:
    return ["check", bundle, "--data", data, *more]


GATE_WRONG = {
    "no bundle to check": Wrong(check(bundle="nope"), "nope", "splitboard build"),
    "check a split that is not there": Wrong(check("test.npz", "--split", "s99"), "s99", "nearest"),
    "check remote only": Wrong(check("test.npz", "--split", "s00"), "s00", "with a half on the board"),
    "check on no data": Wrong(check("nope.npz"), "nope.npz", "give a folder"),
    "check on calibration images": Wrong(check("calibration.npz"), "samples.txt", "has not seen"),
    "check on one class": Wrong(check("one.npz"), "2", "other classes"),
    "check on a class that is not there": Wrong(check("third.npz"), "2", "round, square"),
    "check on labels of another task": Wrong(check("other.npz"), "shpe", "shape"),
    "check without labels": Wrong(check("none.npz"), "shape, colour", "labels.shape"),
    "check on labels that are words": Wrong(check("text.npz"), "shape", "whole numbers"),
    "check on more numbers than the model has": Wrong(check("numbers.npz", "--gate", "numbers.toml"), "3", "[6, 2]"),
    "no such gate": Wrong(check("test.npz", "--gate", "nope.toml"), "nope.toml", "[default]"),
    "gate is not TOML": Wrong(check("test.npz", "--gate", "broken.toml"), "broken.toml", "[default]"),
    "unknown key in the gate": Wrong(check("test.npz", "--gate", "typo.toml"), "margn", "margin"),
    "unknown task in the gate": Wrong(check("test.npz", "--gate", "task.toml"), "shpe", "shape"),
    "unknown metric in the gate": Wrong(check("test.npz", "--gate", "metric.toml"), "acuracy", "balanced_accuracy"),
    "margin without a unit in the gate": Wrong(check("test.npz", "--gate", "unit.toml"), "mae", "[tasks.shape]"),
    "confidence in percent in the gate": Wrong(check("test.npz", "--gate", "share.toml"), "95", "0.95"),
    "own metric that is not there": Wrong(check("test.npz", "--gate", "mine.toml"), "mine:f1", "--path"),
    "no such baseline": Wrong(check("test.npz", "--baseline", "nope.json"), "nope.json", "--update-baseline"),
    "baseline that is theirs": Wrong(check("test.npz", "--baseline", "theirs.json"), "theirs.json", ""),
    "baseline of another model": Wrong(check("test.npz", "--baseline", "model.json"), "f" * 64, "of this model"),
    "baseline under another metric": Wrong(
        check("test.npz", "--baseline", "good.json", "--gate", "balanced.toml"), "balanced_accuracy", "--gate"
    ),
    "baseline of another board": Wrong(check("test.npz", "--baseline", "board.json"), "board.json", "rpi4"),
    "baseline without a sample": Wrong(check("test.npz", "--baseline", "sample.json"), "sample.json", "data that"),
    "update without a reason": Wrong(
        check("test.npz", "--baseline", "new.json", "--update-baseline"), "--update-baseline", "--reason"
    ),
    "reason without an update": Wrong(
        check("test.npz", "--baseline", "good.json", "--reason", "why"), "--reason", "--update-baseline"
    ),
    "update with an empty reason": Wrong(
        check("test.npz", "--baseline", "new.json", "--update-baseline", "--reason", " "), " ", "--reason"
    ),
    "update of no file": Wrong(check("test.npz", "--update-baseline", "--reason", "why"), "why", "--baseline FILE"),
    "update onto their file": Wrong(
        check("test.npz", "--baseline", "theirs.json", "--update-baseline", "--reason", "why"), "theirs.json", ""
    ),
    "JUnit onto their file": Wrong(check("test.npz", "--junit", "theirs.xml"), "theirs.xml", "another file"),
    "summary onto their file": Wrong(check("test.npz", "--summary", "theirs.xml"), "theirs.xml", "another file"),
}


@pytest.mark.parametrize("wrong", [pytest.param(wrong, id=name) for name, wrong in GATE_WRONG.items()])
def test_the_gate_refuses_in_one_line(
    wrong: Wrong, gate_desk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()  # what the fixture has said
    test_one_line_advice_and_nothing_left(wrong, gate_desk, "", monkeypatch, capfd)


@pytest.fixture(scope="module")
def diagnose_desk(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, tiny_model: Path, tiny_samples: Path
) -> Path:
    """A bundle that can be diagnosed, and what cannot."""
    made = tmp_path_factory.mktemp("diagnose")
    for name in ("bundle", "fp32", "changed", "biases", "other"):
        shutil.copytree(tiny_bundle, made / name)
    shutil.copytree(tiny_model, made / "model")
    for name, old, new in (
        ("fp32", r'"precision": "int8"', '"precision": "fp32"'),
        ("biases", r'"corrected": \d+', '"corrected": 99'),
        ("other", r'"model_sha256": "\w+"', f'"model_sha256": "{"f" * 64}"'),
    ):
        manifest = made / name / "manifest.json"
        manifest.write_text(re.sub(old, new, manifest.read_text()))
    with open(made / "changed" / "calibration" / "ranges.json", "a") as file:
        file.write("\n")
    images = np.random.default_rng(8).integers(0, 256, (6, 40, 40, 1)).astype(np.uint8)
    save_samples(made / "test.npz", images, {"shape": np.array([0, 1, 0, 1, 0, 1])})
    save_samples(made / "none.npz", images, {})
    (made / "calibration.npz").write_bytes(tiny_samples.read_bytes())
    (made / "theirs.html").write_text("years of work\n")
    return made


def diagnose(*more: str, bundle: str = "bundle", data: str = "test.npz") -> list[str]:
    return ["diagnose", bundle, "--data", data, *more]


DIAGNOSE_WRONG = {
    "no bundle to diagnose": Wrong(diagnose(bundle="nope"), "nope", "splitboard build"),
    "diagnose a float bundle": Wrong(diagnose(bundle="fp32"), "fp32", "--precision int8"),
    "diagnose a changed bundle": Wrong(diagnose(bundle="changed"), "ranges.json", "splitboard build"),
    "diagnose without its biases": Wrong(diagnose(bundle="biases"), "biases.npz", "splitboard build"),
    "diagnose a split that is not there": Wrong(diagnose("--split", "s99"), "s99", "nearest"),
    "diagnose remote only": Wrong(diagnose("--split", "s00"), "s00", "with a half on the board"),
    "diagnose all splits": Wrong(diagnose("--split", "all"), "all", "the bundle has"),
    "diagnose on no data": Wrong(diagnose(data="nope.npz"), "nope.npz", "give a folder"),
    "diagnose without labels": Wrong(diagnose(data="none.npz"), "shape, colour", "labels.shape"),
    "diagnose on calibration images": Wrong(diagnose(data="calibration.npz"), "samples.txt", "has not seen"),
    "diagnose no layer": Wrong(diagnose("--worst", "0"), "0", "splitboard diagnose --help"),
    "diagnose on no image": Wrong(diagnose("--limit", "0"), "0", "splitboard diagnose --help"),
    "diagnose with no gate": Wrong(diagnose("--gate", "nope.toml"), "nope.toml", "[default]"),
    "diagnose with no model": Wrong(diagnose("--model", "nope"), "nope", "splitboard export"),
    "diagnose with another model": Wrong(diagnose("--model", "model", bundle="other"), "model", "leave --model out"),
    "diagnosis onto their file": Wrong(diagnose("-o", "theirs.html"), "theirs.html", "another file"),
}


@pytest.mark.parametrize("wrong", [pytest.param(wrong, id=name) for name, wrong in DIAGNOSE_WRONG.items()])
def test_diagnose_refuses_in_one_line(
    wrong: Wrong, diagnose_desk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()  # what the fixture has said
    test_one_line_advice_and_nothing_left(wrong, diagnose_desk, "", monkeypatch, capfd)


# Early exits.


@pytest.fixture(scope="module")
def exit_desk(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    tiny_model: Path,
    tiny_bundle: Path,
    exit_model: Path,
    exit_bundle: Path,
    exit_samples: Path,
) -> Path:
    """Models and bundles with and without exits, and images that fit them or do not."""
    made = tmp_path_factory.mktemp("exits")
    for name, source in {"model": exit_model, "plain": tiny_model, "bundle": exit_bundle, "bare": tiny_bundle}.items():
        shutil.copytree(source, made / name)
    for name in ("train", "calib", "held"):
        (made / f"{name}.npz").write_bytes((exit_samples / f"{name}.npz").read_bytes())
    images = np.random.default_rng(8).integers(0, 256, (12, 40, 40, 1)).astype(np.uint8)
    shape = np.arange(12) % 2
    sets: dict[str, dict[str, np.ndarray]] = {
        "none": {},
        "other": {"texture": shape},
        "third": {"shape": np.arange(12) % 3},
        "one": {"shape": np.zeros(12, np.int64)},
        "few": {"shape": np.array([0] * 9 + [1] * 3)},
        "numbers": {"shape": np.random.default_rng(8).normal(0, 1, (12, 2))},
    }
    for name, labels in sets.items():
        save_samples(made / f"{name}.npz", images, labels)
    (made / "nets").mkdir()
    (made / "nets" / "tiny.py").write_text(TINY.read_text())
    (made / "nets.safetensors").write_bytes(tiny_checkpoint.read_bytes())
    for name, exits in {"output": 'early = "shape"', "task": 'colour = "shap"', "classes": 'colour = "shape"'}.items():
        (made / f"{name}.toml").write_text(f"{SPEC.partition('[labels]')[0]}[exits]\n{exits}\n")
    shutil.copytree(exit_bundle, made / "half")
    manifest = json.loads((made / "half" / "manifest.json").read_text())
    manifest["exits"] = [one for one in manifest["exits"] if one["task"] == "shape"]
    for split in manifest["splits"]:
        split["exits"] = [name for name in split["exits"] if name.startswith("shape")]
    (made / "half" / "manifest.json").write_text(json.dumps(manifest))
    (made / "theirs.json").write_text("years of work\n")
    (made / "theirs").mkdir()
    (made / "theirs" / "thesis.tex").write_text("years of work\n")
    return made


def accuracy(*values: str, data: str = "held.npz", bundle: str = "bundle") -> list[str]:
    return thresholds(data, *(word for value in values for word in ("--accuracy", value)), bundle=bundle)


def exits(at: str = "blocks.1", data: str = "train.npz", *more: str, model: str = "model", out: str = "m") -> list[str]:
    return ["exits", model, "--at", at, "--data", data, "-o", out, *more]


def thresholds(data: str = "held.npz", *more: str, bundle: str = "bundle", out: str = "exits.json") -> list[str]:
    return ["thresholds", bundle, "--data", data, "-o", out, *more]


EXITS_WRONG = {
    "declared exit that is no output": Wrong(export(spec="output.toml", out="m"), "early", "shape, colour"),
    "declared exit of an unknown task": Wrong(export(spec="task.toml", out="m"), "shap", "shape"),
    "declared exit of other classes": Wrong(export(spec="classes.toml", out="m"), "1x3", "of its task"),
    "exits of no model": Wrong(exits(model="nope"), "nope", "splitboard export"),
    "exits nowhere": Wrong(exits("blocks.9"), "blocks.9", "nearest"),
    "exits at remote only": Wrong(exits("remote"), "remote", "the first cut"),
    "exits inside of a block": Wrong(exits("blocks.0.project"), "blocks.0.project", "sends 2 tensors"),
    "an exit of several tensors": Wrong(exits("m01"), "m01", "--max-tensors 1"),
    "exits that are there": Wrong(exits("stem"), "shape_exit_stem", "--at"),
    "exits of an unknown task": Wrong(exits("blocks.1", "train.npz", "--task", "shap"), "shap", "shape, colour"),
    "exits of a task without labels": Wrong(
        exits("blocks.1", "one.npz", "--task", "colour"), "colour", "labels.colour"
    ),
    "exits without labels": Wrong(exits("blocks.1", "none.npz"), "shape, colour", "labels.TASK"),
    "exits on labels of another task": Wrong(exits("blocks.1", "other.npz"), "shape, colour", "labels.TASK"),
    "exits on a class that is not there": Wrong(exits("blocks.1", "third.npz"), "2", "from 0 to 1"),
    "exits on a class of three images": Wrong(exits("blocks.1", "few.npz"), "square", "5 or more"),
    "exits on no data": Wrong(exits("blocks.1", "nope.npz"), "nope.npz", "give a folder"),
    "exits onto their folder": Wrong(exits(out="theirs"), "theirs", "another folder"),
    "thresholds of no bundle": Wrong(thresholds(bundle="nope"), "nope", "splitboard build"),
    "thresholds without exits": Wrong(thresholds(bundle="bare"), "bare", "splitboard exits"),
    "thresholds on no data": Wrong(thresholds("nope.npz"), "nope.npz", "give a folder"),
    "thresholds without labels": Wrong(thresholds("none.npz"), "shape, colour", "labels.shape"),
    "thresholds on labels of another task": Wrong(thresholds("other.npz"), "texture", "shape"),
    "thresholds on one class": Wrong(thresholds("one.npz"), "round", "other classes"),
    "thresholds on numbers": Wrong(thresholds("numbers.npz"), "shape", "whole numbers"),
    "thresholds on a class that is not there": Wrong(thresholds("third.npz"), "2", "round, square"),
    "thresholds on what fitted the exits": Wrong(thresholds("train.npz"), "exit_samples.txt", "neither"),
    "thresholds on calibration images": Wrong(thresholds("calib.npz"), "samples.txt", "has not seen"),
    "a drop of nothing": Wrong(thresholds("held.npz", "--drop", "0"), "0", "--drop 1.0"),
    "a drop of everything": Wrong(thresholds("held.npz", "--drop", "100"), "100", "--drop 1.0"),
    "an unknown measure": Wrong(thresholds("held.npz", "--measure", "margin"), "margin", "--measure entropy"),
    "confidence of thresholds in percent": Wrong(thresholds("held.npz", "--confidence", "95"), "95", "0.95"),
    "an accuracy out of reach": Wrong(accuracy("shape=97.5"), "97.5 %", "below 49.17"),
    "an accuracy of an unknown task": Wrong(accuracy("shap=88"), "shap", '"shape" is the nearest'),
    "an accuracy of a task without exits": Wrong(accuracy("colour=88", bundle="half"), "colour", "--task colour"),
    "an accuracy of a task without labels": Wrong(accuracy("colour=88", data="few.npz"), "colour", "labels.colour"),
    "two accuracies of a task": Wrong(accuracy("shape=40", "shape=45"), "shape=45", "one --accuracy per task"),
    "an accuracy in words": Wrong(accuracy("shape=high"), "high", "shape=88"),
    "an accuracy as a share": Wrong(accuracy("shape=0.88"), "0.88", "shape=88, not 0.88"),
    "an accuracy beyond everything": Wrong(accuracy("shape=100.5"), "100.5", "shape=88"),
    "an accuracy that is no number": Wrong(accuracy("shape=nan"), "nan", "shape=88"),
    "an accuracy of no task": Wrong(accuracy("88"), "88", "--accuracy defect=88"),
    "an accuracy without number": Wrong(accuracy("shape="), "shape=", "--accuracy defect=88"),
    "thresholds onto their file": Wrong(thresholds(out="theirs.json"), "theirs.json", "another file"),
}


@pytest.mark.parametrize("wrong", [pytest.param(wrong, id=name) for name, wrong in EXITS_WRONG.items()])
def test_the_verbs_about_exits_refuse_in_one_line(
    wrong: Wrong, exit_desk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()  # what the fixture has said
    test_one_line_advice_and_nothing_left(wrong, exit_desk, "", monkeypatch, capfd)
