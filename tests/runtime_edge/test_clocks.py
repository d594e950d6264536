"""Clocks are held for a measurement and put back, also when the process that held them is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime_edge.bench.clocks import cool_down, governor_changes, held, power_mode_changes
from splitboard.contract.errors import Inconclusive, UserError

HOLD = """
import sys, time
from pathlib import Path
from runtime_edge.bench.clocks import governor_changes, held
with held(governor_changes("performance", Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""

# As on a Jetson: warnings in front, the number on a line of its own.
NVPMODEL = """#!/bin/sh
state={state}
if [ "$1" = -q ]; then echo "NVPM WARN: fan mode is not set!"; echo "NV Power Mode: $(cat $state)"; echo 0; exit 0; fi
case "$2" in 0) echo MAXN > $state;; 1) echo 15W > $state;; *) echo "NVPM ERROR: no such mode" >&2; exit 1;; esac
"""

# /etc/nvpmodel.conf of Jetson Linux, shortened.
NVPMODEL_CONF = """
# MAXN is the NONE power model to release all constraints
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=15W >
CPU_ONLINE CORE_0 1
"""


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """Two clusters of cores, as on a Raspberry Pi and a Jetson together."""
    for policy, governor in (("policy0", "ondemand"), ("policy4", "schedutil")):
        folder = tmp_path / "sys/devices/system/cpu/cpufreq" / policy
        folder.mkdir(parents=True)
        (folder / "scaling_available_governors").write_text("ondemand schedutil performance\n")
        (folder / "scaling_governor").write_text(f"{governor}\n")
    return tmp_path


def governors(root: Path) -> list[str]:
    files = sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*/scaling_governor"))
    return [file.read_text().strip() for file in files]


def test_a_governor_is_held_and_put_back(board: Path) -> None:
    with held(governor_changes("performance", board)):
        assert governors(board) == ["performance", "performance"]
        assert governor_changes("performance", board) == []
    assert governors(board) == ["ondemand", "schedutil"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_governor_is_put_back_when_its_holder_is_killed(board: Path, number: int) -> None:
    argv = [sys.executable, "-c", HOLD, str(board)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."}) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert governors(board) == ["performance", "performance"]
        holder.send_signal(number)
        holder.wait(10)
    end = time.monotonic() + 30
    while governors(board) != ["ondemand", "schedutil"] and time.monotonic() < end:
        time.sleep(0.02)
    assert governors(board) == ["ondemand", "schedutil"]


def test_what_cannot_be_set_is_refused_and_what_was_set_is_put_back(board: Path) -> None:
    changes = governor_changes("performance", board)
    broken = changes[1]._replace(apply=("sh", "-c", "echo sudo: a password is required >&2; exit 1"))
    with (
        pytest.raises(UserError, match=r'policy4.*"sudo: a password is required"') as caught,
        held([changes[0], broken]),
    ):
        pytest.fail("it was held")
    assert any("--sudo" in line for line in caught.value.tries)
    assert governors(board) == ["ondemand", "schedutil"]


def test_commands_run_with_the_prefix(board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    (tmp_path / "bin").mkdir()
    sudo = tmp_path / "bin/sudo"
    sudo.write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" >> {log}\nshift\nexec "$@"\n')
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sudo.parent}:{os.environ['PATH']}")
    with held(governor_changes("performance", board), ("sudo", "-n")):
        assert governors(board) == ["performance", "performance"]
    assert governors(board) == ["ondemand", "schedutil"]
    assert log.read_text().split() == ["-n"] * 4


def test_another_governor_is_refused(board: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='"policy0" has no governor "fast"') as caught:
        governor_changes("fast", board)
    assert caught.value.tries == ("it has: ondemand, schedutil, performance",)
    with pytest.raises(UserError, match="no governor here"):
        governor_changes("performance", tmp_path / "bare")


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fake ``nvpmodel`` on the path; yields the root."""
    (tmp_path / "mode").write_text("15W\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nvpmodel.conf").write_text(NVPMODEL_CONF)
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin/nvpmodel"
    tool.write_text(NVPMODEL.format(state=tmp_path / "mode"))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    return tmp_path


def test_a_power_mode_is_chosen_by_name_and_put_back(jetson: Path) -> None:
    (change,) = power_mode_changes("MAXN", jetson)
    assert change.apply == ("nvpmodel", "-m", "0")
    with held([change]):
        assert (jetson / "mode").read_text() == "MAXN\n"
        assert power_mode_changes("MAXN", jetson) == []
    assert (jetson / "mode").read_text() == "15W\n"


def test_another_power_mode_is_refused(jetson: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='no power mode "MAXN_SUPER"') as caught:
        power_mode_changes("MAXN_SUPER", jetson)
    assert caught.value.tries == ("it has: MAXN, 15W",)
    with pytest.raises(UserError, match=r"no /etc/nvpmodel\.conf"):
        power_mode_changes("MAXN", tmp_path / "bare")


def test_a_board_cools_down_first() -> None:
    readings, told, paused = iter([61.0, 55.5, 49.9]), list[str](), list[float]()
    cool_down(50.0, 600.0, lambda: next(readings), told.append, paused.append)
    assert told == ["61.0 degrees, waiting for 50", "55.5 degrees, waiting for 50"]
    assert len(paused) == 2


def test_a_board_that_stays_hot_is_inconclusive() -> None:
    with pytest.raises(Inconclusive, match=r'"61\.0" degrees after 10 s'):
        cool_down(50.0, 10.0, lambda: 61.0, lambda line: None, lambda seconds: None)
    with pytest.raises(UserError, match="does not tell its temperature"):
        cool_down(50.0, 10.0, lambda: None, lambda line: None, lambda seconds: None)
