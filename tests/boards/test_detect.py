"""Detecting: the kind that each captured device tree is of, read by a real shell."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import pytest
from sshd import real_sshd

from boards.detect import detect
from boards.kinds import kind_names, this_machine
from boards.shell.local import LocalShell
from boards.shell.recorded import RecordedShell
from boards.shell.shell import Completed
from splitboard.cli.main import run
from splitboard.contract.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BOARDS: list[dict[str, Any]] = tomllib.loads((Path(__file__).parent / "captures" / "device_trees.toml").read_text())[
    "board"
]


def board(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str = "",
    compatible: tuple[str, ...] = (),
    machine: str = "aarch64",
    nv_tegra_release: str = "",
) -> PurePosixPath:
    """A board's files, and a ``uname`` of its processor."""
    for folder in ("proc/device-tree", "etc", "bin"):
        (root / folder).mkdir(parents=True)
    if model:
        (root / "proc/device-tree/model").write_bytes(model.encode() + b"\0")
    if compatible:
        (root / "proc/device-tree/compatible").write_bytes(b"".join(one.encode() + b"\0" for one in compatible))
    if nv_tegra_release:
        (root / "etc/nv_tegra_release").write_text(f"{nv_tegra_release}\n# KERNEL_VARIANT: oot\n")
    (root / "bin/uname").write_text(f"#!/bin/sh\n[ $1 = -m ] && echo {machine}\n")
    (root / "bin/uname").chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}:/usr/bin:/bin")
    return PurePosixPath(root)


@pytest.mark.parametrize("captured", BOARDS, ids=lambda one: f"{one['kind']} {one['compatible'][0]}")
def test_every_captured_board_is_of_its_kind(
    captured: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = board(
        tmp_path / "root",
        monkeypatch,
        captured["model"],
        tuple(captured["compatible"]),
        nv_tegra_release=captured.get("nv_tegra_release", ""),
    )
    found = detect(LocalShell(), root)
    assert (found.kind, found.notes) == (captured["kind"], ())
    assert (found.model, list(found.compatible)) == (captured["model"], captured["compatible"])
    assert found.l4t == captured.get("l4t")


def test_every_kind_with_a_device_tree_has_a_capture() -> None:
    assert {one["kind"] for one in BOARDS} == {name for name in kind_names() if not name.startswith("linux")}


@pytest.mark.parametrize("name", ["dash", "bash"])
def test_any_posix_shell_reads_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = board(tmp_path / "root", monkeypatch, "Raspberry Pi 5 Model B Rev 1.0", ("raspberrypi,5-model-b",))
    program = shutil.which(name, path="/usr/bin:/bin")
    assert program is not None
    (tmp_path / "root/bin/sh").symlink_to(program)
    assert detect(LocalShell(), root).kind == "rpi5"


@pytest.mark.parametrize(
    ("model", "compatible", "machine", "kind", "note"),
    [
        (
            "Radxa ZERO 3W",
            ("radxa,zero3w", "rockchip,rk3566"),
            "aarch64",
            "linux-arm64",
            'says "Radxa ZERO 3W", which no',
        ),
        ("Raspberry Pi 500 Rev 1.0", ("raspberrypi,500", "brcm,bcm2712"), "aarch64", "linux-arm64", "Raspberry Pi 500"),
        ("", (), "aarch64", "linux-arm64", "it has no device tree"),
        ("linux,dummy-virt", ("linux,dummy-virt",), "aarch64", "linux-arm64", "virtual machine"),
        ("Raspberry Pi 4 Model B Rev 1.4", (), "aarch64", "rpi4", "alone"),
        ("Raspberry Pi 4 Model B Rev 1.4", ("raspberrypi,4-model-b",), "armv7l", "rpi4", '"armv7l", not aarch64'),
        # A published capture: the module is an Orin Nano, the model is its carrier's.
        (
            "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
            ("nvidia,p3768-0000+p3767-0005", "nvidia,tegra234"),
            "aarch64",
            "jetson-orin-nano",
            "(jetson-orin-nx); the part number decides",
        ),
        # TX2 NX, another module than TX2.
        (
            "NVIDIA Jetson TX2 NX Developer Kit",
            ("nvidia,p3509-0000+p3636-0001", "nvidia,tegra186"),
            "aarch64",
            "linux-arm64",
            "TX2 NX",
        ),
    ],
)
def test_what_is_not_certain_is_said(
    model: str,
    compatible: tuple[str, ...],
    machine: str,
    kind: str,
    note: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = detect(LocalShell(), board(tmp_path / "root", monkeypatch, model, compatible, machine))
    assert found.kind == kind
    assert any(note in one for one in found.notes), found.notes


def test_a_pc_is_of_the_generic_kind_without_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = detect(LocalShell(), board(tmp_path / "root", monkeypatch, machine="x86_64"))
    assert (found.kind, found.notes) == ("linux-x86-64", ())


def test_an_unknown_architecture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as error:
        detect(LocalShell(), board(tmp_path / "root", monkeypatch, "StarFive VisionFive 2", ("sifive",), "riscv64"))
    assert error.value.message == 'there is no kind of board for the architecture "riscv64" (StarFive VisionFive 2)'


@pytest.mark.parametrize(
    ("code", "out", "complaint", "says"),
    [
        (127, "", "sh: not found\n", "sh: not found"),
        (0, "Welcome! This account is for the menu only.\n", "", "the menu only"),
        (137, "\n@@splitboard machine\naarch64\n", "", "aarch64"),
    ],
)
def test_a_board_that_runs_no_script_is_refused(code: int, out: str, complaint: str, says: str) -> None:
    """No shell, a login that is no shell, and a script that did not come to its end."""
    argv = ("sh", "-s", "--", "")
    shell = RecordedShell("pi1", [Completed(argv, code, out, complaint)])
    with pytest.raises(UserError, match='station "pi1" did not run the reading script') as error:
        detect(shell)
    assert says in error.value.message


def test_this_machine_through_sshd_and_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with real_sshd(tmp_path) as desk:
        one = desk.station
        stations = tmp_path / "stations.toml"
        stations.write_text(
            f'[desk]\naddress = "{one.user}@{one.host}:{one.port}"\nkey = "{one.key}"\n'
            f'known_hosts = "{one.known_hosts}"\n'
        )
        assert run(["boards", "detect", "desk", "--stations", str(stations)]) == 0
        assert capfd.readouterr().out.startswith(f"{this_machine().name}: {this_machine().title}\n")
        assert run(["boards", "detect", "desk", "--stations", str(stations), "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    schema = Path(__file__).parents[2] / "docs" / "schema" / "detect-output.schema.json"
    jsonschema.validate(said, json.loads(schema.read_text()))
    assert said["detected"]["kind"] == this_machine().name
