"""NVIDIA's tool: the exact arguments for each board and release, recovery mode, and what goes into rootfs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tarfile
from pathlib import Path

import pytest

from boards.flash.identity import Identity
from boards.flash.jetson import check_recovery, flash_argv, in_recovery, read_release, user_argv
from boards.kinds import kind_names, load_kind
from splitboard.cli.main import run
from splitboard.contract.errors import UserError
from tests.boards import images

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@desk"

# As NVIDIA prints them: quick starts of r35.5, r36.2, r36.4.3, developer guides r38 and r39.2 (Flashing Support),
# README_initrd_flash.txt (workflow 1), and flash.sh of L4T 32.7.
_INITRD = "sudo ./tools/kernel_flash/l4t_initrd_flash.sh"
_NVME_35 = (
    f"{_INITRD} --external-device nvme0n1p1 -c tools/kernel_flash/flash_l4t_external.xml "
    '-p "-c bootloader/t186ref/cfg/flash_t234_qspi.xml" --showlogs --network usb0 jetson-orin-nano-devkit internal'
)
_NVME_36 = (
    f"{_INITRD} --external-device nvme0n1p1 -c tools/kernel_flash/flash_l4t_t234_nvme.xml "
    '-p "-c bootloader/generic/cfg/flash_t234_qspi.xml" --showlogs --network usb0 jetson-orin-nano-devkit{} internal'
)
GOLDEN = {
    ("jetson-nano", (32, 7, 6)): "sudo ./flash.sh jetson-nano-devkit-emmc mmcblk0p1",
    ("jetson-tx2", (32, 7, 6)): "sudo ./flash.sh jetson-tx2-devkit mmcblk0p1",
    ("jetson-xavier-nx", (32, 7, 6)): "sudo ./flash.sh jetson-xavier-nx-devkit-emmc mmcblk0p1",
    ("jetson-xavier-nx", (35, 6, 4)): f"{_INITRD} --showlogs --network usb0 jetson-xavier-nx-devkit-emmc internal",
    ("jetson-agx-xavier", (32, 7, 6)): "sudo ./flash.sh jetson-agx-xavier-devkit mmcblk0p1",
    ("jetson-agx-xavier", (35, 6, 4)): f"{_INITRD} --showlogs --network usb0 jetson-agx-xavier-devkit internal",
    ("jetson-orin-nano", (35, 5, 0)): _NVME_35,
    ("jetson-orin-nano", (36, 2, 0)): _NVME_36.format(""),
    ("jetson-orin-nano", (36, 4, 0)): _NVME_36.format(""),
    ("jetson-orin-nano", (36, 4, 3)): _NVME_36.format("-super"),
    ("jetson-orin-nano", (36, 5, 0)): _NVME_36.format("-super"),
    ("jetson-orin-nano", (39, 2, 0)): "sudo ./l4t_initrd_flash.sh --erase-all jetson-orin-nano-devkit-super internal",
    ("jetson-orin-nx", (35, 2, 1)): _NVME_35.replace("jetson-orin-nano-devkit", "p3509-a02+p3767-0000"),
    ("jetson-orin-nx", (35, 5, 0)): _NVME_35,
    ("jetson-orin-nx", (36, 4, 3)): _NVME_36.format("-super"),
    ("jetson-orin-nx", (39, 2, 1)): "sudo ./l4t_initrd_flash.sh --erase-all jetson-orin-nano-devkit-super internal",
    ("jetson-agx-orin", (35, 5, 0)): f"{_INITRD} --showlogs --network usb0 jetson-agx-orin-devkit internal",
    ("jetson-agx-orin", (36, 4, 3)): f"{_INITRD} --showlogs --network usb0 jetson-agx-orin-devkit internal",
    ("jetson-agx-orin", (39, 2, 0)): "sudo ./l4t_initrd_flash.sh jetson-agx-orin-devkit internal",
    ("jetson-thor", (38, 4, 0)): "sudo ./l4t_initrd_flash.sh jetson-agx-thor-devkit internal",
    ("jetson-thor", (39, 2, 0)): "sudo ./l4t_initrd_flash.sh jetson-agx-thor-devkit internal",
}
LSUSB = """\
Bus 002 Device 001: ID 1d6b:0003 Linux Foundation 3.0 root hub
Bus 001 Device 012: ID 0955:{} NVIDIA Corp. APX
Bus 001 Device 003: ID 0bda:5411 Realtek Semiconductor Corp. RTS5411 Hub
"""


@pytest.mark.parametrize(("board", "wanted"), GOLDEN.items(), ids=lambda value: str(value)[:40])
def test_the_arguments_are_nvidias(board: tuple[str, tuple[int, int, int]], wanted: str) -> None:
    assert list(flash_argv(*board)) == shlex.split(wanted)


def test_every_jetson_of_the_kinds_can_be_flashed_with_every_release_of_it() -> None:
    for name in kind_names():
        if name.startswith("jetson"):
            releases = [release for system in load_kind(name).systems for release in system.l4t]
            assert releases
            for release in releases:
                numbers = [*map(int, release.split(".")), 0, 0]
                assert flash_argv(name, (numbers[0], numbers[1], numbers[2]))[0] == "sudo"


@pytest.mark.parametrize(
    ("kind", "release", "said"),
    [
        ("jetson-agx-orin", (32, 7, 6), 'Jetson Linux "32.7.6" is not for jetson-agx-orin'),
        ("jetson-xavier-nx", (36, 4, 3), 'Jetson Linux "36.4.3" is not for jetson-xavier-nx'),
        ("jetson-orin-nano", (38, 2, 0), 'Jetson Linux "38.2.0" is not for jetson-orin-nano'),
        ("rpi5", (36, 4, 3), '"rpi5" is not flashed with Jetson Linux'),
    ],
)
def test_a_release_that_the_board_never_had_is_refused(kind: str, release: tuple[int, int, int], said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        flash_argv(kind, release)
    assert refused.value.tries


@pytest.mark.parametrize(
    ("kind", "product"),
    [
        ("jetson-nano", "7f21"),
        ("jetson-tx2", "7c18"),
        ("jetson-xavier-nx", "7e19"),
        ("jetson-agx-xavier", "7019"),
        ("jetson-orin-nano", "7523"),
        ("jetson-orin-nano", "7623"),
        ("jetson-orin-nx", "7323"),
        ("jetson-orin-nx", "7423"),
        ("jetson-agx-orin", "7023"),
        ("jetson-thor", "7026"),
    ],
)
def test_a_board_in_recovery_mode_is_seen(kind: str, product: str) -> None:
    board = load_kind(kind)
    check_recovery(board, LSUSB.format(product))
    assert in_recovery(LSUSB.format(product), board.flash.recovery_usb) == (f"0955:{product}",)


def test_none_another_or_two_boards_are_refused() -> None:
    board = load_kind("jetson-agx-orin")
    with pytest.raises(UserError, match=r"no NVIDIA Jetson AGX Orin .*in recovery mode"):
        check_recovery(board, "Bus 002 Device 001: ID 1d6b:0003 Linux Foundation 3.0 root hub\n")
    with pytest.raises(UserError, match='but "0955:7523" of NVIDIA'):
        check_recovery(board, LSUSB.format("7523"))
    with pytest.raises(UserError, match="2 boards are in recovery mode"):
        check_recovery(board, LSUSB.format("7023") * 2)


def test_the_default_user_has_no_password_that_anybody_knows() -> None:
    argv = user_argv(Identity("ann", "orin-a", (KEY,), None))
    assert list(argv) == shlex.split("sudo ./tools/l4t_create_default_user.sh -u ann -n orin-a --accept-license")


@pytest.fixture
def l4t(tmp_path: Path) -> Path:
    """A Linux_for_Tegra whose tools note that they were called."""
    folder = tmp_path / "Linux_for_Tegra"
    (folder / "rootfs/etc").mkdir(parents=True)
    release = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8\n"
    (folder / "rootfs/etc/nv_tegra_release").write_text(release)
    for name in ("flash.sh", "tools/l4t_create_default_user.sh", "tools/kernel_flash/l4t_initrd_flash.sh"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >>"{folder}/called"\n')
        (folder / name).chmod(0o755)
    images.write_bundle(tmp_path / "orin.bundle", "jetson-agx-orin")
    (tmp_path / "id.pub").write_text(KEY + "\n")
    return folder


def command(l4t: Path, *more: str) -> list[str]:
    desk = l4t.parent
    words = {"--l4t": l4t, "--bundle": desk / "orin.bundle", "--ssh-key": desk / "id.pub", "--user": "ann"}
    return ["flash", "jetson-agx-orin", *(str(word) for pair in words.items() for word in pair), *more]


def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, str]) -> None:
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_dry_run_prints_the_commands_and_writes_nothing(l4t: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(l4t.rglob("*"))
    assert run(command(l4t, "--hostname", "orin-a", "--dry-run")) == 0
    out = capfd.readouterr().out
    assert "Jetson Linux 36.4.3 for jetson-agx-orin" in out
    for line in (
        "sudo tar -xpf splitboard-rootfs.tar -C rootfs --numeric-owner",
        "sudo ./tools/l4t_create_default_user.sh -u ann -n orin-a --accept-license",
        GOLDEN["jetson-agx-orin", (36, 4, 3)],
        "0955:7023",
    ):
        assert line in out
    assert sorted(l4t.rglob("*")) == before
    assert run(command(l4t, "--dry-run", "--json")) == 0
    plan = json.loads(capfd.readouterr().out)
    assert shlex.join(plan["commands"][-1]["argv"]) == GOLDEN["jetson-agx-orin", (36, 4, 3)]


def test_the_commands_are_run_in_order_once_the_board_waits(
    l4t: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sudo = '#!/bin/sh\nexec "$@"\n'  # rights are not what is tested
    on_path(tmp_path, monkeypatch, {"lsusb": f"#!/bin/sh\ncat <<'E'\n{LSUSB.format('7523')}E\n", "sudo": sudo})
    assert run(command(l4t, "--hostname", "orin-a", "--yes")) == 3
    assert "in recovery mode" in capfd.readouterr().err
    assert not (l4t / "called").exists()
    on_path(tmp_path, monkeypatch, {"lsusb": f"#!/bin/sh\ncat <<'E'\n{LSUSB.format('7023')}E\n"})
    assert run(command(l4t, "--hostname", "orin-a", "--yes")) == 0
    assert (l4t / "called").read_text().splitlines() == [
        "tools/l4t_create_default_user.sh -u ann -n orin-a --accept-license",
        "tools/kernel_flash/l4t_initrd_flash.sh --showlogs --network usb0 jetson-agx-orin-devkit internal",
    ]
    rootfs = l4t / "rootfs"
    assert (rootfs / "usr/local/lib/splitboard/authorized_keys").read_text() == KEY + "\n"
    assert "account=ann\n" in (rootfs / "usr/local/lib/splitboard/setup.sh").read_text()
    unit = rootfs / "etc/systemd/system/multi-user.target.wants/splitboard-setup.service"
    assert unit.resolve().is_file()
    (l4t / "tools/l4t_create_default_user.sh").write_text("#!/bin/sh\nexit 7\n")
    assert run(command(l4t, "--hostname", "orin-a", "--yes")) == 3
    assert "ended with exit code 7" in capfd.readouterr().err


def test_what_goes_over_rootfs_belongs_to_root(
    l4t: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    on_path(tmp_path, monkeypatch, {"lsusb": "#!/bin/sh\n"})
    assert run(command(l4t, "--yes")) == 3  # no board, but the archive is there to be used by hand
    with tarfile.open(l4t / "splitboard-rootfs.tar") as archive:
        members = {member.name: member for member in archive.getmembers()}
    assert {(member.uid, member.gid) for member in members.values()} == {(0, 0)}
    assert members["etc/systemd/system/splitboard-setup.service"].mode == 0o644
    listed = subprocess.run(["tar", "-tf", str(l4t / "splitboard-rootfs.tar")], capture_output=True, text=True)
    assert all(not line.startswith(("/", "..")) for line in listed.stdout.splitlines())


def test_a_folder_that_is_not_ready_is_refused(tmp_path: Path, l4t: Path) -> None:
    with pytest.raises(UserError, match=r"has no flash\.sh"):
        read_release(tmp_path)
    assert read_release(l4t) == (36, 4, 3)
    (l4t / "rootfs/etc/nv_tegra_release").unlink()
    with pytest.raises(UserError, match="is not filled") as refused:
        read_release(l4t)
    assert "sudo ./apply_binaries.sh" in refused.value.tries


def test_image_and_l4t_exclude_each_other(l4t: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(command(l4t, "--image", "x.img")) == 3
    assert "takes the place of --image, --device and --wheelhouse" in capfd.readouterr().err
    words = command(l4t)
    assert run([word for word in words if word not in ("--l4t", str(l4t))]) == 3
    assert "needs --image and --device" in capfd.readouterr().err
