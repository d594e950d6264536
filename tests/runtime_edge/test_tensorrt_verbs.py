"""The board's command line with TensorRT, from the option to the record; library and binding are stand-ins."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import fake_pycuda
import numpy as np
import pytest
from fake_tensorrt import fake_tensorrt
from trt_bundles import LABELS, images, rewritten, write_bundle

from runtime_edge.__main__ import main
from splitboard.contract.bundle import load_bundle, write_manifest
from splitboard.contract.record import SPANS, read_records


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    for precision in ("int8", "fp16"):
        write_bundle(folder / precision, precision)
    np.savez(folder / "data.npz", images=images(6), **{"labels.y": np.arange(6) % 3})
    return folder


@pytest.fixture
def jetson(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """TensorRT 10.3 and pycuda; gives the folder of the engine cache."""
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("10.3.0"))
    fake_pycuda.install(monkeypatch)
    return tmp_path / "engines"


def say(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


NAME = "tensorrt 10.3.0, pycuda 2024.1.2, pycuda captures none"


def test_build_then_run(bundles: Path, jetson: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    common = ("--bundle", bundles / "int8", "--engine-cache", jetson)
    code, out, err = say(capsys, "trt-build", *common, "--out", tmp_path / "built.jsonl")
    assert code == 0, err
    assert err.count("built s0") == 2
    assert "s01: layers: 2 INT8, 1 FP32; " in out
    assert "conversion FP32>INT8: x/quantize, for x/quantize" in out
    built = [json.loads(line) for line in (tmp_path / "built.jsonl").read_text().splitlines()]
    assert [one["split"] for one in built] == ["s01", "s02"]
    assert {one["precision"] for one in built} == {"int8"}
    assert all(one["findings"]["not_int8"] == [] and one["device_ns"] == [] for one in built)

    code, out, err = say(capsys, "run", *common, "--data", bundles / "data.npz", "--split", "s02")
    assert (code, "built" in err) == (0, False), err
    answers = [json.loads(line) for line in out.splitlines()]
    golden = np.load(bundles / "int8/golden/golden.npz")["y"]
    assert len(answers) == 6
    for answer, scores in zip(answers, golden, strict=False):  # the first four are the golden images
        assert answer["outputs"]["y"]["label"] == LABELS[int(np.argmax(scores))]
        assert answer["outputs"]["y"]["by"] == "local"

    code, out, _ = say(capsys, "selfcheck", *common)
    assert (code, json.loads(out)["passed"]) == (0, True)


def test_bench_keeps_the_time_of_the_gpu_apart(
    bundles: Path, jetson: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "runs.jsonl"
    arguments = ["--bundle", bundles / "int8", "--engine-cache", jetson, "--data", bundles / "data.npz"]
    for _ in range(5):  # a busy machine may interrupt between two readings of the clock: measured again, as advised
        code, _, err = say(capsys, "bench", *arguments, "--splits", "s02", "--out", out, "--warmup", 2)
        if code != 2:
            break
    assert code == 0, err
    (record,) = read_records(out)
    assert record.engine == NAME
    assert record.before.runtime == NAME
    assert len(record.device_ns) == len(record.total_ns) == 6
    for i, device_ns in enumerate(record.device_ns):
        assert 0 < device_ns <= record.spans_ns["edge"][i]
    assert set(record.spans_ns) == set(SPANS)  # the GPU's time is part of one of them, and none of its own


def test_profile_side_by_side(bundles: Path, jetson: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    common = ("--engine-cache", jetson, "--splits", "s02", "--runs", 5)
    code, out, err = say(
        capsys, "trt-profile", "--bundle", bundles / "int8", "--beside", bundles / "fp16", *common,
        "--out", tmp_path / "p.jsonl",
    )  # fmt: skip
    assert code == 0, err
    # The fake tells for layer i that it took i + 1 microseconds: x/quantize, x/dequantize, first, relu, ...
    assert "s02: int8  GPU " in out
    assert "slower: " in out
    assert "Q/DQ to remove: r" in out
    assert "Try: splitboard build MODEL --keep-float " in out
    int8, fp16 = (json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines())
    assert (int8["precision"], fp16["precision"]) == ("int8", "fp16")
    assert int8["engine"] == fp16["engine"] == NAME
    assert (len(int8["device_ns"]), len(fp16["device_ns"])) == (5, 5)
    assert [layer["time_ns"] for layer in int8["layers"]] == [1000 * (i + 1) for i in range(len(int8["layers"]))]
    assert {"x/quantize", "r/quantize"} <= {one["cause"] for one in int8["findings"]["conversions"]}
    assert fp16["findings"]["conversions"] == []


def test_profile_of_one(bundles: Path, jetson: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = say(
        capsys, "trt-profile", "--bundle", bundles / "fp16", "--engine-cache", jetson, "--splits", "s02", "--runs", 3
    )
    assert code == 0, err
    assert "         1.0 us  FP32       CaskConvolution          first" in out
    assert "sum of its layers 36.0 us" in out  # 1 + 2 + ... + 8


def test_another_model_beside(bundles: Path, jetson: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "other", "fp16")
    write_manifest(tmp_path / "other", type(bundle)(**{**vars(bundle), "model_sha256": "9" * 64}))
    code, _, err = say(
        capsys, "trt-profile", "--bundle", bundles / "int8", "--beside", tmp_path / "other", "--engine-cache", jetson
    )
    assert code == 3
    assert "is of another model than the bundle" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["selfcheck", "--threads", "4"], 'threads is "4", and TensorRT has none to set'),
        (["selfcheck", "--workspace", "0"], '--workspace is "0"'),
        (["selfcheck", "--dla", "-1"], '--dla is "-1"'),
        (["selfcheck", "--dla", "0"], '--dla is "0", and this board with TensorRT 10.3.0 has no DLA'),
        (["trt-build", "--splits", "s00"], 'the board runs nothing of "s00"'),
        (["trt-build", "--splits", "s09"], 'unknown split "s09"'),
        (["trt-profile", "--runs", "0"], '--runs is "0"'),
        (["trt-build", "--power-mode", "MAXN"], 'there is no power mode here to set to "MAXN"'),
    ],
)
def test_refusals(
    bundles: Path, jetson: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    verb, *rest = arguments
    code, out, err = say(capsys, verb, "--bundle", bundles / "int8", "--engine-cache", jetson, *rest)
    assert (code, out) == (3, "")
    assert words in err
    assert not jetson.exists()


def test_a_bundle_for_litert(tiny_bundle: Path, jetson: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = say(capsys, "trt-build", "--bundle", tiny_bundle, "--engine-cache", jetson)
    assert (code, "TensorRT builds engines of ONNX files" in err) == (3, True)
    code, _, err = say(capsys, "selfcheck", "--bundle", tiny_bundle, "--dla", 0)
    assert (code, "this bundle runs in LiteRT" in err) == (3, True)
    assert say(capsys, "selfcheck", "--bundle", tiny_bundle)[0] == 0


# What a machine would run it with


def doctor(capsys: pytest.CaptureFixture[str], bundle: Path) -> tuple[int, str, list[Any]]:
    code, out, _ = say(capsys, "doctor", "--bundle", bundle)
    found = json.loads(out)
    return code, found["environment"]["runtime"], found["problems"]


def test_doctor_with_both(bundles: Path, jetson: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(capsys, bundles / "int8") == (0, "tensorrt 10.3.0, pycuda 2024.1.2", [])


def test_doctor_without_a_binding(
    bundles: Path, jetson: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pycuda", "pycuda.driver", "cuda", "cuda.bindings", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    code, runtime, (problem,) = doctor(capsys, bundles / "int8")
    assert (code, runtime) == (3, "none")
    assert "no CUDA binding" in problem["message"]
    assert "python3 -m pip install pycuda" in problem["tries"][0]
    assert say(capsys, "selfcheck", "--bundle", bundles / "int8")[0] == 3  # and no fallback


def test_doctor_with_an_old_tensorrt(
    bundles: Path, jetson: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("8.2.1"))
    code, _, (problem,) = doctor(capsys, bundles / "int8")
    assert (code, problem["message"]) == (3, 'TensorRT "8.2.1" has no named tensors, which came with 8.5')
    assert "trtexec" in problem["tries"][0]


def test_a_host_simulates(bundles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, runtime, problems = doctor(capsys, bundles / "int8")
    assert (code, problems) == (0, [])
    assert runtime.startswith("onnxruntime ")
    assert say(capsys, "selfcheck", "--bundle", bundles / "int8")[0] == 0
    code, _, err = say(capsys, "selfcheck", "--bundle", bundles / "int8", "--dla", 0)
    assert (code, "this bundle runs in ONNX Runtime" in err) == (3, True)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with nothing that runs ONNX files: a container on a Jetson looks so, and a new host."""
    for name in ("tensorrt", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("bare")
def test_where_nothing_runs_onnx_both_ways_out_are_named(bundles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, runtime, (problem,) = doctor(capsys, bundles / "int8")
    assert (code, runtime) == (3, "none")
    assert "TensorRT is not there" in problem["message"]
    assert "ONNX Runtime does not load" in problem["message"]
    board, _, host = problem["tries"]
    assert board.startswith("on a Jetson")
    assert "python3-libnvinfer" in board
    assert host.startswith("on a host")
    assert "pip install onnxruntime" in host
    for verb, *more in (("selfcheck",), ("run", "--data", bundles / "data.npz", "--split", "s02")):
        code, out, err = say(capsys, verb, "--bundle", bundles / "int8", *more)
        assert (code, out) == (3, "")
        assert err == "\n".join([f"error: {problem['message']}", *(f"Try: {line}" for line in problem["tries"]), ""])


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trt-build", "--bundle", "nothere"], '"nothere" is not a bundle'),
        (["trt-build", "--bundle", "{tiny}"], "TensorRT builds engines of ONNX files"),
        (["trt-build", "--bundle", "{int8}", "--splits", "s99"], 'unknown split "s99"'),
        (["trt-build", "--bundle", "{int8}", "--workspace", "0"], '--workspace is "0"'),
        (["trt-profile", "--bundle", "{int8}", "--splits", "s99"], 'unknown split "s99"'),
        (["trt-profile", "--bundle", "{int8}", "--beside", "nothere"], '"nothere" is not a bundle'),
        (["trt-profile", "--bundle", "{int8}", "--beside", "{tiny}"], "TensorRT builds engines of ONNX files"),
        (
            ["trt-profile", "--bundle", "{int8}", "--beside", "{int8}"],
            "TensorRT does not load",
        ),  # nothing else is wrong
    ],
)
def test_arguments_are_looked_at_before_tensorrt(
    bundles: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    places = {"int8": bundles / "int8", "tiny": tiny_bundle}
    code, out, err = say(capsys, *(argument.format(**places) for argument in arguments))
    assert (code, out) == (3, "")
    assert words in err
    assert ("TensorRT does not load" in err) == (words == "TensorRT does not load")


def test_a_jetson_does_not(
    bundles: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3\n")
    monkeypatch.setattr("runtime_edge.engines.choice.TEGRA_RELEASE", release)
    code, _, (problem,) = doctor(capsys, bundles / "int8")
    assert (code, problem["message"]) == (3, 'this is a Jetson, and this Python has no "tensorrt"')
    code, _, err = say(capsys, "selfcheck", "--bundle", bundles / "int8")
    assert (code, "this is a Jetson" in err) == (3, True)


def test_a_jetson_without_a_bundle(
    jetson: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ai_edge_litert", "ai_edge_litert.interpreter", "tflite_runtime", "tflite_runtime.interpreter"):
        monkeypatch.setitem(sys.modules, name, None)
    code, out, _ = say(capsys, "doctor")
    found = json.loads(out)
    assert (code, found["environment"]["runtime"]) == (0, "tensorrt 10.3.0, pycuda 2024.1.2")


def test_nothing_of_it_is_loaded_by_other_verbs(tiny_bundle: Path) -> None:
    """What a Raspberry Pi runs does not load what only a Jetson needs."""
    import subprocess

    code = (
        "import sys; from runtime_edge.__main__ import main; code = main(['selfcheck', '--bundle', sys.argv[1]]); "
        "loaded = [name for name in sys.modules if name.startswith(('runtime_edge.cuda', 'runtime_edge.tensorrt.'))]; "
        "print(code, sorted(loaded), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_bundle)], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "0 ['runtime_edge.tensorrt.options']"


def test_the_manifest_is_checked_first(
    bundles: Path, jetson: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "b")
    path = tmp_path / "b" / str(load_bundle(tmp_path / "b").splits[1].edge)
    path.write_bytes(path.read_bytes() + b" ")
    code, _, err = say(capsys, "trt-build", "--bundle", tmp_path / "b", "--engine-cache", jetson)
    assert (code, "was changed since it was built" in err) == (3, True)
    rewritten(tmp_path / "b", bundle)
