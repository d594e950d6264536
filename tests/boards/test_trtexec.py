"""The edge graphs alone, by trtexec: its arguments by release, its times, and a board that notes what it is asked.

The board is this machine behind a real sshd. Its trtexec is a script that begins as a real one does (the captured log)
and writes times in the form that trtexec's source prints.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from interpreters import find_interpreter
from sshd import Desk, free_port, real_sshd

from boards.bench.trtexec import read_times, release_of, trtexec_argv
from boards.stations import Station
from splitboard.cli.main import run
from splitboard.contract.bundle import load_bundle
from splitboard.contract.errors import SplitboardError

ROOT = Path(__file__).parents[2]
LOG = (Path(__file__).parent / "captures" / "trtexec-nano-8.2.1.txt").read_text(encoding="utf-8")
MEASURE = "--timingCacheFile=/c --warmUp=1000 --duration=10 --iterations=100 --exposeDMA"


# Arguments.


@pytest.mark.parametrize(
    ("release", "precision", "expected"),
    [
        # JetPack 4.6
        ((8, 2, 1), "fp16", f"t --onnx=/g --fp16 --workspace=512 {MEASURE} --useSpinWait"),
        ((8, 2, 1), "fp32", f"t --onnx=/g --workspace=512 {MEASURE} --useSpinWait"),
        # JetPack 5.1
        ((8, 5, 2), "int8", f"t --onnx=/g --int8 --fp16 --memPoolSize=workspace:512 {MEASURE} --useSpinWait"),
        ((8, 5, 2), "fp16", f"t --onnx=/g --fp16 --memPoolSize=workspace:512 {MEASURE} --useSpinWait"),
        # JetPack 6.0
        ((8, 6, 2), "fp16", f"t --onnx=/g --fp16 --memPoolSize=workspace:512 {MEASURE} --useSpinWait"),
        # JetPack 6.1 and 6.2
        ((10, 3, 0), "int8", f"t --onnx=/g --stronglyTyped --memPoolSize=workspace:512 {MEASURE} --useSpinWait"),
        # JetPack 7.0, 7.1
        ((10, 13, 3), "fp16", f"t --onnx=/g --stronglyTyped --memPoolSize=workspace:512 {MEASURE} --useSpinWait"),
        # JetPack 7.2
        ((10, 16, 2), "fp32", f"t --onnx=/g --stronglyTyped --memPoolSize=workspace:512 {MEASURE} --useSpinWait"),
        # JetPack 7.2.2 with TensorRT's own packages
        (
            (11, 4, 1),
            "int8",
            f"t --onnx=/g --memPoolSize=workspace:512 {MEASURE} --includeDataTransfers --noCudaGraph",
        ),
    ],
)
def test_golden_argv(release: tuple[int, ...], precision: str, expected: str) -> None:
    found = trtexec_argv("t", release, precision, "/g", "/times", "/c", 512)
    assert found == [*expected.split(), "--exportTimes=/times"]


@pytest.mark.parametrize(
    ("line", "release"),
    [
        (LOG, (8, 2, 1)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # trtexec --help", (8, 5, 2)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8602] # trtexec --help", (8, 6, 2)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --help", (10, 3, 0)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v101303] [b9] # trtexec --help", (10, 13, 3)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v110401] [b106] # trtexec --help", (11, 4, 1)),
    ],
)
def test_the_release_is_what_trtexec_says(line: str, release: tuple[int, ...]) -> None:
    assert release_of(line) == release


def test_a_program_that_is_no_trtexec_is_named() -> None:
    with pytest.raises(SplitboardError, match='its release: "usage: trtexec"'):
        release_of("usage: trtexec")


# Times.


def exported(starts_ms: list[float], compute_ms: list[float], *, ends: str) -> str:
    """As ``exportJSONTrace`` prints them: C++'s six digits, one object a line, a comma before all but the first.

    Args:
        starts_ms: of the computation, since the first run began.
        compute_ms: length of each.
        ends: what the release has behind ``latencyMs``.
    """
    h2d, d2h, lines = 0.276855, 0.00830078, []
    for start, length in zip(starts_ms, compute_ms, strict=True):
        values = {
            "startEnqMs": start - 0.4,
            "endEnqMs": start - 0.1,
            "startH2dMs": start - h2d,
            "endH2dMs": start,
            "startComputeMs": start,
            "endComputeMs": start + length,
            "startD2hMs": start + length,
            "endD2hMs": start + length + d2h,
            "h2dMs": h2d,
            "computeMs": length,
            "d2hMs": d2h,
            "latencyMs": h2d + length + d2h,
        }
        pairs = ", ".join(f'"{name}" : {value:.6g}' for name, value in values.items())
        lines.append(f"{{ {pairs}{ends} }}")
    return "[\n  " + "\n, ".join(lines) + "\n]\n"


def test_times_of_8_2_without_the_warm_up() -> None:
    """Runs of 90 ms for 3 s as in the captured log; what began in the first second is warm-up."""
    starts = [0.5 + 90.4 * i for i in range(47)]
    lengths = [90.0183 + 0.01 * (i % 3) for i in range(47)]
    found = read_times(exported(starts, lengths, ends=', "endToEndMs" : 90.4048'))
    kept = [length for start, length in zip(starts, lengths, strict=True) if start >= 1000]
    assert len(kept) == 35 == int(re.search(r"trace has (\d+)", LOG)[1])  # type: ignore[index]
    np.testing.assert_allclose(np.array(found.compute_ns) / 1e6, kept, rtol=1e-5)
    np.testing.assert_allclose(np.array(found.latency_ns) / 1e6, np.array(kept) + 0.285156, rtol=1e-5)


def test_times_of_a_late_run_keep_their_digits() -> None:
    """After 100 s the points in time are known to the millisecond, and a computation of 0.5 ms still is what it is."""
    found = read_times(exported([123456.7], [0.512345], ends=""))
    assert found.compute_ns == (512345,)


@pytest.mark.parametrize("text", ["", "[", "{}", '[{"startComputeMs": 2000}]', '[{"startComputeMs": "soon"}]', "[1]"])
def test_what_holds_no_times_is_named(text: str) -> None:
    with pytest.raises(SplitboardError, match="exported no times"):
        read_times(text)


# A board.

TRTEXEC = """#!/bin/sh
here=$(dirname "$0")
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v$(cat "$here/release")] # trtexec $*"
[ "$1" = --help ] && exit 0
for one in "$@"; do
    case $one in
    --onnx=*) onnx=${one#*=} ;;
    --exportTimes=*) times=${one#*=} ;;
    esac
done
if [ -e "$here/broken" ]; then
    echo "[10/02/2023-11:52:09] [W] [TRT] a warning" >&2
    echo "[10/02/2023-11:52:10] [E] Error[10]: [optimizer.cpp::computeCosts::2011] Error Code 10: Internal Error" >&2
    echo "&&&& FAILED TensorRT.trtexec"
    exit 1
fi
cd "$(dirname "$onnx")" || exit 1
{ printf '%s\\n' "$@"; sha256sum "$(basename "$onnx")" weights.*; echo; } >>"$here/asked"
cp "$here/times.json" "$OLDPWD/$times" 2>/dev/null || cp "$here/times.json" "$times"
"""


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A folder of programs that come first on the board's PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    write_program(folder / "trtexec", TRTEXEC)
    (folder / "release").write_text("8201")
    starts = [500.0 + 10 * i for i in range(150)]
    (folder / "times.json").write_text(exported(starts, [4.0 + i / 100 for i in range(150)], ends=""))
    return folder


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def desk(tmp_path: Path, bench: Path) -> Iterator[Desk]:
    (tmp_path / "sshd").mkdir()
    with real_sshd(tmp_path / "sshd", f"SetEnv PATH={bench}:{os.environ['PATH']}") as found:
        yield found


@pytest.fixture
def station(desk: Desk, tmp_path: Path) -> Station:
    """JetPack 4's Python is 3.6; the lease runs on it."""
    return replace(
        desk.station,
        name="nano",
        kind="jetson-nano",
        python=None if (found := find_interpreter("3.6")) is None else str(found),
        root=str(tmp_path / "board"),
    )


def stations_file(folder: Path, station: Station) -> str:
    path = folder / "stations.toml"
    lines = [f"[{station.name}]", f'address = "{station.user}@{station.host}:{station.port}"']
    names = ("kind", "key", "root", "known_hosts", "python")
    lines += [f'{name} = "{value}"' for name in names if (value := getattr(station, name)) is not None]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def built(model: Path, samples: Path, target: Path, board: str, precision: str) -> Path:
    argv = ["build", str(model), "--board", board, "--precision", precision, "--split", "blocks.0,blocks.1"]
    assert run([*argv, "--calib", str(samples), "-o", str(target)]) == 0
    return target


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tiny_samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tiny_model, tiny_samples, tmp_path_factory.mktemp("fp16") / "bundle", "jetson-nano", "fp16")


def asked(bench: Path) -> list[list[str]]:
    """What trtexec was asked, call by call."""
    return [call.splitlines() for call in (bench / "asked").read_text().split("\n\n") if call]


def test_every_edge_graph_is_measured_and_nothing_else(
    bundle: Path, bench: Path, station: Station, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "nano.jsonl"
    argv = ["trtexec", str(bundle), "--board", "nano", "-o", str(out)]
    argv += ["--stations", stations_file(tmp_path, station)]
    capsys.readouterr()
    assert run([*argv, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    loaded = load_bundle(bundle)
    edge = [split for split in loaded.splits if split.edge is not None]
    assert len(edge) == len(loaded.splits) - 1

    calls = asked(bench)
    assert len(calls) == len(edge)
    (weights,) = [artifact for artifact in loaded.artifacts if artifact.format == "onnx-weights"]
    for split, call in zip(edge, calls, strict=True):
        options, sums = call[:-2], [line.split() for line in call[-2:]]
        (graph,) = [artifact for artifact in loaded.artifacts if artifact.path == split.edge]
        assert sums == [[graph.sha256, Path(graph.path).name], [weights.sha256, Path(weights.path).name]]
        assert "--fp16" in options
        assert any(re.fullmatch(r"--workspace=\d+", option) for option in options)

    kept = [4.0 + i / 100 for i in range(50, 150)]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    for line, split in zip(lines, edge, strict=True):
        assert (line["split"], line["board"], line["tensorrt"]) == (split.id, "jetson-nano", "8.2.1")
        np.testing.assert_allclose(np.array(line["compute_ns"]) / 1e6, kept, rtol=1e-5)
        assert line["not_measured"]["energy"]
        assert line["not_measured"]["link"] == "nothing is sent"
        validate(line, "edge-times")
    validate(said, "edge-alone-output")
    for found, split in zip(said["splits"], edge, strict=True):
        assert found["id"] == split.id
        assert found["n"] == 100
        assert found["compute_ms_p50"] == pytest.approx(np.percentile(kept, 50), rel=1e-5)
        assert found["latency_ms_p95"] == pytest.approx(np.percentile(kept, 95) + 0.285156, rel=1e-5)
    assert not list(Path(station.root, "runs").iterdir())  # the run's folder has gone with it
    assert not Path(station.root, "lease.json").exists()

    # What it wrote is no run record, and a report of it is refused; the run itself can be done again.
    assert run(["report", str(out), "-o", str(tmp_path / "report.html")]) == 3
    assert 'unknown key "measures"' in capsys.readouterr().err
    assert run([*argv, "--split", edge[0].id]) == 0
    printed = capsys.readouterr().out
    assert "latency of the edge graph alone" in printed
    assert "energy: no meter is read while trtexec runs" in printed
    assert "link: nothing is sent" in printed


def validate(found: Any, schema: str) -> None:
    path = ROOT / "docs" / "schema" / f"{schema}.schema.json"
    jsonschema.validate(found, json.loads(path.read_text(encoding="utf-8")))


def test_a_newer_jetson_is_asked_in_its_own_words(bundle: Path, bench: Path, station: Station, tmp_path: Path) -> None:
    (bench / "release").write_text("110401")
    argv = ["trtexec", str(bundle), "--board", "nano", "-o", str(tmp_path / "t.jsonl"), "--split", "s09"]
    assert run([*argv, "--stations", stations_file(tmp_path, station)]) == 0
    (call,) = asked(bench)
    assert "--noCudaGraph" in call
    assert "--fp16" not in call


# Refusals.


def test_what_cannot_be_measured_so_is_refused(
    bundle: Path, bench: Path, station: Station, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["trtexec", str(bundle), "-o", str(tmp_path / "t.jsonl"), "--stations", stations_file(tmp_path, station)]
    cases = {
        '"nano,other"': ["--board", "nano,other"],
        'split "s00" sends the image': ["--board", "nano", "--split", "s00"],
        'unknown split "s99"': ["--board", "nano", "--split", "s99"],
    }
    for words, more in cases.items():
        assert run([*argv, *more]) == 3
        said = capsys.readouterr().err
        assert words in said
        assert "Try: " in said
    assert not (tmp_path / "t.jsonl").exists()
    assert not (bench / "asked").exists()


def test_int8_on_tensorrt_8_2_is_refused(
    tiny_model: Path,
    tiny_samples: Path,
    bench: Path,
    station: Station,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    int8 = built(tiny_model, tiny_samples, tmp_path / "int8", "jetson-xavier-nx", "int8")
    xavier = replace(station, kind="jetson-xavier-nx")
    argv = ["trtexec", str(int8), "--board", "nano", "-o", str(tmp_path / "t.jsonl")]
    argv += ["--stations", stations_file(tmp_path, xavier)]
    assert run(argv) == 3
    said = capsys.readouterr().err
    assert '"int8" is not measured with TensorRT 8.2.1' in said
    assert "--precision fp16" in said
    (bench / "release").write_text("8502")
    assert run(argv) == 0
    assert all("--int8" in call for call in asked(bench))


def test_a_bundle_for_another_board_is_refused(
    bundle: Path, station: Station, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["trtexec", str(bundle), "--board", "nano", "-o", str(tmp_path / "t.jsonl")]
    assert run([*argv, "--stations", stations_file(tmp_path, replace(station, kind="jetson-tx2"))]) == 3
    assert 'the bundle is for "jetson-nano", and station "nano" is a "jetson-tx2"' in capsys.readouterr().err


def test_tflite_is_refused(
    tiny_bundle: Path, station: Station, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["trtexec", str(tiny_bundle), "--board", "nano", "-o", str(tmp_path / "t.jsonl")]
    assert run([*argv, "--stations", stations_file(tmp_path, station)]) == 3
    assert "is no ONNX file, and trtexec reads no other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fixture", "splits", "words"),
    [
        ("tiny_bundle", "all", "is no ONNX file, and trtexec reads no other"),
        ("bundle", "s99", 'unknown split "s99"'),
        ("bundle", "s00", 'split "s00" sends the image'),
        ("bundle", "all", "has no ssh at"),  # nothing else is wrong
    ],
)
def test_arguments_are_looked_at_before_the_board(
    fixture: str,
    splits: str,
    words: str,
    desk: Desk,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The board's host key is known, and nobody listens at the port."""
    stations = stations_file(tmp_path, replace(desk.behind(free_port()), name="nano"))
    argv = ["trtexec", str(request.getfixturevalue(fixture)), "--board", "nano", "--splits", splits]
    assert run([*argv, "-o", str(tmp_path / "t.jsonl"), "--stations", stations]) == 3
    assert words in capsys.readouterr().err


def test_a_board_without_tensorrt_is_refused(
    bundle: Path, station: Station, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To build for it, as for another Jetson, would not help: trtexec reads no TFLite."""
    argv = ["trtexec", str(bundle), "--board", "nano", "-o", str(tmp_path / "t.jsonl")]
    assert run([*argv, "--stations", stations_file(tmp_path, replace(station, kind="rpi5"))]) == 3
    said = capsys.readouterr().err
    assert 'station "nano" is a "rpi5", which runs none' in said
    assert "splitboard build" not in said


def test_a_trtexec_that_fails_says_why(
    bundle: Path, bench: Path, station: Station, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bench / "broken").touch()
    argv = ["trtexec", str(bundle), "--board", "nano", "-o", str(tmp_path / "t.jsonl")]
    argv += ["--stations", stations_file(tmp_path, station)]
    assert run(argv) == 3
    said = capsys.readouterr().err
    assert "Error Code 10: Internal Error" in said
    assert "add swap" in said
    assert not (tmp_path / "t.jsonl").exists()
    assert not list(Path(station.root, "runs").iterdir())
    (bench / "trtexec").unlink()
    assert run(argv) == 3
    assert 'station "nano" has no trtexec' in capsys.readouterr().err
