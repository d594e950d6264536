"""The verbs one after the other on a user's own network, each with --json against its published schema."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from splitboard.cli.main import run
from splitboard.contract.bundle import bundle_sha256

ROOT = Path(__file__).parents[2]
SPEC = """
[preprocessing]
height = 32
width = 32
source_channels = 1
mean = [0.5, 0.4, 0.3]
std = [0.5, 0.6, 0.7]

[labels]
shape = ["round", "square"]
"""


def output(capfd: pytest.CaptureFixture[str], schema: str, *argv: str) -> Any:
    """Runs a command with --json and returns what it printed, validated."""
    code = run([*argv, "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err
    assert out.count("\n") == 1
    result = json.loads(out)
    jsonschema.validate(result, json.loads((ROOT / "docs" / "schema" / f"{schema}.schema.json").read_text()))
    return result


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "net.toml").write_text(SPEC)
    source = Path(__file__).parents[1] / "models"
    argv = ["export", str(tiny_checkpoint), "--model", "tiny:make", "--spec", str(folder / "net.toml")]
    assert run([*argv, "--input", "1x3x32x32", "--path", str(source), "-o", str(folder / "model")]) == 0
    return folder / "model"


def test_splits_lists_them_all_and_the_natural_ones(exported: Path, capfd: pytest.CaptureFixture[str]) -> None:
    everything = output(capfd, "splits-output", "splits", str(exported))["splits"]
    natural = output(capfd, "splits-output", "splits", str(exported), "--natural")["splits"]
    assert natural == [split for split in everything if split["natural"]]
    assert 0 < len(natural) < len(everything)
    assert run(["splits", str(exported)]) == 0
    table = capfd.readouterr().out
    assert all(split["id"] in table and split["scope"] in table for split in everything)


def test_build_bench_report(
    exported: Path, tiny_samples: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle, runs, page = tmp_path / "bundle", tmp_path / "runs.jsonl", tmp_path / "page.html"
    argv = ["build", str(exported), "--board", "rpi5", "--split", "blocks.1", "--calib", str(tiny_samples)]
    built = output(capfd, "build-output", *argv, "-o", str(bundle))
    assert built["bundle_sha256"] == bundle_sha256(bundle)
    assert set(built["accelerated_partitions"].values()) == {1}
    assert built["warnings"] == []
    argv = ["bench", str(bundle), "--data", str(tiny_samples), "-o", str(runs), "--warmup", "2", "--limit", "30"]
    benched = output(capfd, "bench-output", *argv)
    assert [split["id"] for split in benched["splits"]] == list(built["splits"])
    assert all(split["n"] == 30 and split["total_ms_p50"] > 0 for split in benched["splits"])
    reported = output(capfd, "report-output", "report", str(runs), "--bundle", str(bundle), "-o", str(page))
    assert reported["splits"] == benched["splits"]
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_local_only_needs_no_server(
    tiny_bundle: Path, tiny_samples: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", str(tiny_bundle), "--data", str(tiny_samples), "-o", str(tmp_path / "r.jsonl"), "--split", "s09"]
    (local,) = output(capfd, "bench-output", *argv, "--limit", "20", "--server", "http://127.0.0.1:9")["splits"]
    assert (local["kind"], local["payload_bytes"], local["link_ms_p50"]) == ("local", 0, 0.0)
    assert run([*argv, "--limit", "20", "--server", "http://127.0.0.1:9"]) == 0
    assert "simulated" not in capfd.readouterr().out  # ONNX Runtime gave the float model's answers alone


def test_serve_says_its_url_and_ends_on_a_signal(tiny_bundle: Path) -> None:
    argv = [sys.executable, "-m", "splitboard.cli.main", "serve", str(tiny_bundle), "--port", "0", "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = json.loads(server.stdout.readline())
        jsonschema.validate(said, json.loads((ROOT / "docs/schema/serve-output.schema.json").read_text()))
        with urllib.request.urlopen(f"{said['url']}/v2/health/ready", timeout=60) as reply:
            assert reply.status == 200
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=60)
    assert server.returncode == 0
    assert "Traceback" not in errors


def test_boards(capfd: pytest.CaptureFixture[str]) -> None:
    kinds = output(capfd, "boards-output", "boards")["kinds"]
    assert "rpi5" in [kind["name"] for kind in kinds]
    assert run(["boards"]) == 0
    assert "Raspberry Pi 5" in capfd.readouterr().out


def test_stations(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lab.toml").write_text(
        '[pi1]\naddress = "pi@10.0.0.7"\nkind = "rpi5"\n[nano]\naddress = "ubuntu@[fe80::1]:2222"\n'
    )
    found = output(capfd, "stations-output", "boards", "stations", "--stations", str(tmp_path / "lab.toml"))["stations"]
    assert [(one["name"], one["host"], one["port"], one["kind"]) for one in found] == [
        ("pi1", "10.0.0.7", 22, "rpi5"),
        ("nano", "fe80::1", 2222, None),
    ]
    assert run(["boards", "stations", "--stations", str(tmp_path / "lab.toml")]) == 0
    assert "ubuntu@[fe80::1]:2222" in capfd.readouterr().out


@pytest.mark.parametrize("verb", ["demo", "export", "splits", "build", "serve", "bench", "report", "boards", "train"])
def test_every_verb_has_help(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    text = capfd.readouterr().out
    assert "--json" in text
    assert verb == "boards" or "Example" in text


def test_no_argument_shows_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "Usage: splitboard" in capfd.readouterr().out
