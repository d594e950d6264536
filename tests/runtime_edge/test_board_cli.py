"""The board's command line as it runs on a board: the zip application, in an isolated interpreter."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from network.fault_proxy import fault_proxy
from serving import Running

from boards.zipapp import build_zipapp
from splitboard.contract.bundle import load_bundle, write_manifest
from splitboard.contract.errors import EXIT_INCONCLUSIVE
from splitboard.contract.record import read_records
from splitboard.contract.samples import load_samples


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_zipapp(tmp_path_factory.mktemp("app"))


@pytest.fixture(scope="module")
def local(tiny_bundle: Path) -> str:
    """The id of local only."""
    return load_bundle(tiny_bundle).splits[-1].id


def run(pyz: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(pyz), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120)


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Standard error without what the interpreter writes when it starts."""
    return "".join(line + "\n" for line in done.stderr.splitlines() if not line.startswith("INFO: "))


def test_the_archive(pyz: Path, tmp_path: Path) -> None:
    again = build_zipapp(tmp_path / "other.pyz")
    assert again.read_bytes() == pyz.read_bytes()
    assert pyz.stat().st_size < 300_000
    assert os.access(pyz, os.X_OK)
    names = zipfile.ZipFile(pyz).namelist()
    assert names == sorted(names)
    assert {name.split("/")[0] for name in names} == {"__main__.py", "runtime_edge", "splitboard"}
    assert all(re.fullmatch(r"(runtime_edge/(\w+/)?|splitboard/(contract/)?)?\w+\.py", name) for name in names)


def test_help_shows_examples(pyz: Path) -> None:
    done = run(pyz, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "python3 splitboard-edge.pyz bench --bundle" in done.stdout
    for verb in ("run", "bench", "doctor", "selfcheck"):
        assert f"usage: splitboard-edge {verb}" in run(pyz, verb, "--help").stdout


def test_doctor(pyz: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    done = run(pyz, "doctor", "--bundle", tiny_bundle)
    found = json.loads(done.stdout)
    assert (done.returncode, found["problems"], found["numpy"]) == (0, [], np.__version__)
    assert found["environment"]["runtime"].startswith("ai-edge-litert ")
    broken = run(pyz, "doctor", "--bundle", tmp_path)
    assert broken.returncode == 3
    assert "is not a bundle" in json.loads(broken.stdout)["problems"][0]["message"]


def test_selfcheck_passes_and_fails(pyz: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    done = run(pyz, "selfcheck", "--bundle", tiny_bundle)
    found = json.loads(done.stdout)
    assert (done.returncode, found["passed"]) == (0, True)
    assert set(found["error"]) == {"shape", "colour"}
    strict = tmp_path / "strict"
    shutil.copytree(tiny_bundle, strict)
    write_manifest(strict, replace(load_bundle(strict), golden_tolerance={"shape": 0.0, "colour": 1e9}))
    failed = run(pyz, "selfcheck", "--bundle", strict)
    assert (failed.returncode, json.loads(failed.stdout)["passed"]) == (1, False)


def test_run_prints_a_line_per_image(pyz: Path, tiny_bundle: Path, tiny_samples: Path, server: Running) -> None:
    data = ("--bundle", tiny_bundle, "--data", tiny_samples, "--limit", 3)
    by_split = {}
    for split in load_bundle(tiny_bundle).splits:
        done = run(pyz, "run", *data, "--split", split.id, *([] if split.is_local else ["--server", server.url]))
        assert (done.returncode, said(done).split(" in ")[0]) == (0, "3 images")
        by_split[split.id] = [json.loads(line) for line in done.stdout.splitlines()]
    hashes = load_samples(tiny_samples, 1).hashes[:3]
    for split_id, lines in by_split.items():
        assert [(line["sample"], line["split"]) for line in lines] == [(sample, split_id) for sample in hashes]
        for line in lines:
            assert line["total_ns"] > 0
            check_answer(line["outputs"]["shape"], ["round", "square"])
            check_answer(line["outputs"]["colour"], ["0", "1", "2"])


def check_answer(answer: dict[str, Any], labels: list[str]) -> None:
    assert sum(answer["scores"]) == pytest.approx(1)
    assert answer["label"] == labels[int(np.argmax(answer["scores"]))]


def test_bench_writes_records(
    pyz: Path, tiny_bundle: Path, tiny_samples: Path, server: Running, tmp_path: Path, local: str
) -> None:
    out = tmp_path / "runs/board.jsonl"
    data = ("--bundle", tiny_bundle, "--data", tiny_samples, "--server", server.url, "--out", out, "--limit", 5)
    for _ in range(5):  # a busy machine may interrupt between two readings of the clock: measured again, as advised
        done = run(pyz, "bench", *data, "--splits", f"{local}, s00", "--warmup", 1, "--emulated", "--board", "rpi5")
        if done.returncode != EXIT_INCONCLUSIVE:
            break
    assert (done.returncode, done.stdout, said(done)) == (0, "", "")
    found = read_records(out)
    assert [record.split for record in found] == ["s00", local]
    assert {(r.board, r.emulated, r.n_warmup, r.threads) for r in found} == {("rpi5", True, 1, 1)}
    assert found[0].energy_reason == "energy was not asked for (--energy)"
    assert len(found[0].total_ns) == 5


def test_refusals(pyz: Path, tiny_bundle: Path, tiny_samples: Path, tmp_path: Path, local: str) -> None:
    bench = ["bench", "--bundle", tiny_bundle, "--data", tiny_samples, "--out", tmp_path / "runs.jsonl"]
    run_ = ["run", "--bundle", tiny_bundle, "--data", tiny_samples]
    cases: list[tuple[list[Any], str]] = [
        ([], "error: the following arguments are required: VERB"),
        (["fly"], "invalid choice: 'fly'"),
        ([*bench, "--warmup", "many"], "invalid int value: 'many'"),
        ([*bench, "--warmup", "-1"], '--warmup is "-1"'),
        ([*bench, "--limit", "0"], '--limit is "0"'),
        ([*bench, "--splits", local, "--threads", "0"], 'threads is "0"'),
        ([*bench, "--splits", "s99"], 'unknown split "s99"'),
        ([*bench], 'no server given for "s00, s03, s05"'),
        ([*bench, "--server", "http://127.0.0.1:9"], 'no server at "http://127.0.0.1:9"'),
        ([*bench, "--server", "here"], '"here" is not an address of a server'),
        (["selfcheck", "--bundle", tmp_path], "is not a bundle"),
        (["run", "--bundle", tiny_bundle, "--data", tmp_path / "no.npz", "--split", local], "no images at"),
        (
            [*run_, "--split", "s03", "--coding", "jpeg", "--server", "http://127.0.0.1:9"],
            'the coding "jpeg" is for images',
        ),
        ([*run_, "--split", "s03"], f"needs no server: {local}"),
        ([*run_, "--split", local, "--among", "s00"], "--among is of --split auto"),
        ([*run_, "--split", local, "--deadline", "0"], '--deadline is "0"'),
        ([*run_, "--split", local, "--rate", "-1"], '--rate is "-1"'),
        ([*run_, "--split", local, "--cpus", "0,4711"], 'cannot run on the processors "0,4711"'),
        ([*run_, "--split", local, "--joules", "2"], "--joules needs to know the energy"),
        ([*run_, "--split", local, "--stream", "--out", tmp_path / "out"], "--stream prints"),
        (
            [*run_, "--split", "s03", "--server", "http://127.0.0.1:9", "--token-file", tmp_path / "no"],
            "holds no token",
        ),
    ]
    for arguments, words in cases:
        done = run(pyz, *arguments)
        assert (done.returncode, done.stdout) == (3, ""), arguments
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert "\nTry: " in done.stderr
    assert not list(tmp_path.iterdir())


def test_interrupted(pyz: Path, tiny_bundle: Path, tiny_samples: Path, tmp_path: Path, local: str) -> None:
    arguments = ["bench", "--bundle", tiny_bundle, "--data", tiny_samples, "--splits", local, "--warmup", "100000000"]
    command = [sys.executable, "-I", str(pyz), *map(str, arguments), "--out", str(tmp_path / "runs.jsonl")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if process.stderr is None:
        raise RuntimeError("standard error is not piped")
    first = process.stderr.readline()  # the interpreter has started
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in first + errors) == (130, False)
    assert not list(tmp_path.iterdir())


def test_a_reader_that_goes_away(pyz: Path, tiny_bundle: Path, tiny_samples: Path, local: str) -> None:
    command = [sys.executable, "-I", str(pyz), "run", "--bundle", str(tiny_bundle), "--data", str(tiny_samples)]
    command += ["--split", local]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if process.stdout is None or process.stderr is None:
            raise RuntimeError("the outputs are not piped")
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(60) == 141
    assert "Traceback" not in errors


def test_the_bar_is_for_terminals_only(
    pyz: Path, tiny_bundle: Path, tiny_samples: Path, tmp_path: Path, local: str
) -> None:
    arguments = ["bench", "--bundle", tiny_bundle, "--data", tiny_samples, "--splits", local, "--limit", "4"]
    master, terminal = pty.openpty()
    command = [sys.executable, "-I", str(pyz), *map(str, arguments), "--out", str(tmp_path / "runs.jsonl")]
    process = subprocess.Popen(command, stderr=terminal)
    os.close(terminal)
    shown = b""
    while process.poll() is None or b"24/24" not in shown:
        try:
            shown += os.read(master, 1000)
        except OSError:  # the other end is closed
            break
    os.close(master)
    assert process.wait(60) in (0, EXIT_INCONCLUSIVE)  # the second on a busy machine, and after the bar
    assert b"\rlatency [####################] 24/24\r\n" in shown


def test_auto_needs_a_server_that_tells_its_times(
    pyz: Path, tiny_bundle: Path, tiny_samples: Path, server: Running
) -> None:
    """As Triton does not."""
    data = ("--bundle", tiny_bundle, "--data", tiny_samples, "--limit", 3, "--among", "s00,s03")
    with fault_proxy(server.port) as proxy:
        proxy.down = lambda answer: answer.replace(b"Server-Timing", b"X-erver-Timing")
        done = run(pyz, "run", *data, "--split", "auto", "--server", proxy.url)
    assert done.returncode == 3
    assert "sends no Server-Timing, which --split auto needs" in done.stderr
