from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from runtime_edge.bench.environment import read_environment
from splitboard.contract.decode import decode
from splitboard.contract.record import Environment

# As a Raspberry Pi 5 with Raspberry Pi OS Bookworm shows them; the kernel ends device tree strings with a zero byte.
PI5 = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/loadavg": "0.12 0.34 0.56 1/234 5678\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000\n",
    "sys/class/thermal/thermal_zone0/temp": "51250\n",
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def program(folder: Path, text: str) -> None:
    (folder / "vcgencmd").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "vcgencmd").chmod(0o755)


def test_a_raspberry_pi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, PI5)
    program(tmp_path, 'test "$1" = get_throttled && echo throttled=0x50000')
    monkeypatch.setenv("PATH", str(tmp_path))
    found = read_environment("some interpreter 1.0", tmp_path)
    assert found.cpu_model == "Raspberry Pi 5 Model B Rev 1.0"
    assert (found.governor, found.clock_hz, found.temperature_c) == ("ondemand", 2.4e9, 51.25)
    assert (found.load_1min, found.throttled, found.runtime) == (0.12, "throttled=0x50000", "some interpreter 1.0")
    assert found.missing == {}


def test_a_desktop(tmp_path: Path) -> None:
    write(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC 7B13\nflags\t: fpu\n"})
    assert read_environment("none", tmp_path).cpu_model == "AMD EPYC 7B13"


def test_every_none_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = read_environment("none", tmp_path)
    absent = {field.name for field in dataclasses.fields(found) if getattr(found, field.name) is None}
    assert absent == set(found.missing) == {
        "cpu_model", "governor", "clock_hz", "temperature_c", "throttled", "load_1min",
    }  # fmt: skip
    assert found.missing["throttled"] == "vcgencmd is not on PATH"
    assert all(found.missing.values())


@pytest.mark.parametrize(
    ("files", "attribute", "reason"),
    [
        ({"sys/class/thermal/thermal_zone0/temp": "hot\n"}, "temperature_c", "not a number: hot"),
        ({"proc/loadavg": "\n"}, "load_1min", "does not start with a number"),
        ({"proc/cpuinfo": "processor: 0\n"}, "cpu_model", "no model name"),
    ],
)
def test_what_cannot_be_read_is_not_guessed(tmp_path: Path, files: dict[str, str], attribute: str, reason: str) -> None:
    write(tmp_path, files)
    found = read_environment("none", tmp_path)
    assert getattr(found, attribute) is None
    assert reason in found.missing[attribute]


@pytest.mark.parametrize(
    ("script", "reason"), [("echo VCHI initialization failed; exit 255", "exit 255: VCHI initialization failed")]
)
def test_a_vcgencmd_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str) -> None:
    program(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = read_environment("none", tmp_path)
    assert found.throttled is None
    assert reason in found.missing["throttled"]


def test_this_machine_fits_the_record() -> None:
    found = read_environment("none")
    assert decode(Environment, dataclasses.asdict(found), "here") == found
    assert found.cpu_count == len(os.sched_getaffinity(0))
