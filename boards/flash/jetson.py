"""Jetsons that boot from soldered memory or NVMe: NVIDIA's own tool, prepared.

Prepared is: the folder ``rootfs`` of Jetson Linux gets our files, the default user is made there, so that the first
boot asks nothing, and the board must be on USB in recovery mode. Then NVIDIA's tool is run with the exact arguments for
this board and release. All of it needs root; each step is one command, which is printed or run.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from boards.flash.identity import Identity
from boards.flash.payload import NO_LIBRARIES, build_payload, tar_payload
from boards.flash.tools import run_tool
from splitboard.contract.board import BoardKind
from splitboard.contract.errors import UserError

OVERLAY = "splitboard-rootfs.tar"
"""In ``Linux_for_Tegra``: what goes into its ``rootfs``."""
_INITRD = "./tools/kernel_flash/l4t_initrd_flash.sh"
_T234_QSPI = "-c bootloader/{folder}/cfg/flash_t234_qspi.xml"
_LSUSB = re.compile(r"ID ([0-9a-f]{4}:[0-9a-f]{4})")
_RELEASE = re.compile(r"R(\d+) \(release\), REVISION: (\d+)\.(\d+)")

Release = tuple[int, int, int]
"""Of Jetson Linux: 36.4.3 is (36, 4, 3)."""


@dataclass(frozen=True)
class _Row:
    """How a board is flashed from a release on.

    Attributes:
        since: the first release.
        before: the first release that this is not for.
        argv: after ``sudo``, in the folder ``Linux_for_Tegra``.
    """

    since: Release
    before: Release
    argv: tuple[str, ...]


def _nvme(layout: str, folder: str, config: str) -> tuple[str, ...]:
    """Firmware into QSPI, the system onto NVMe."""
    external = ("--external-device", "nvme0n1p1", "-c", f"tools/kernel_flash/{layout}")
    return (
        *(_INITRD, *external, "-p", _T234_QSPI.format(folder=folder)),
        *("--showlogs", "--network", "usb0", config, "internal"),
    )


_ORIN_NANO = (
    # r35 quick start: "Jetson Orin Nano Developer Kit (NVMe)"; Orin NX on the same carrier board takes the same.
    _Row((35, 3, 0), (36, 0, 0), _nvme("flash_l4t_external.xml", "t186ref", "jetson-orin-nano-devkit")),
    _Row((36, 0, 0), (36, 4, 3), _nvme("flash_l4t_t234_nvme.xml", "generic", "jetson-orin-nano-devkit")),
    # r36.4.3 quick start (JetPack 6.2): the configuration "super" knows the larger power modes.
    _Row((36, 4, 3), (37, 0, 0), _nvme("flash_l4t_t234_nvme.xml", "generic", "jetson-orin-nano-devkit-super")),
    # r39.2 developer guide, Flashing Support: one tool at the top, whose board configuration knows the layout.
    _Row((39, 0, 0), (40, 0, 0), ("./l4t_initrd_flash.sh", "--erase-all", "jetson-orin-nano-devkit-super", "internal")),
)
_INITRD_INTERNAL = (_INITRD, "--showlogs", "--network", "usb0")
"""README_initrd_flash.txt, workflow 1: one board, its internal storage, in one step."""

_ROWS: dict[str, tuple[_Row, ...]] = {
    "jetson-nano": (_Row((32, 0, 0), (33, 0, 0), ("./flash.sh", "jetson-nano-devkit-emmc", "mmcblk0p1")),),
    "jetson-tx2": (_Row((32, 0, 0), (33, 0, 0), ("./flash.sh", "jetson-tx2-devkit", "mmcblk0p1")),),
    "jetson-xavier-nx": (
        _Row((32, 0, 0), (33, 0, 0), ("./flash.sh", "jetson-xavier-nx-devkit-emmc", "mmcblk0p1")),
        _Row((35, 1, 0), (36, 0, 0), (*_INITRD_INTERNAL, "jetson-xavier-nx-devkit-emmc", "internal")),
    ),
    "jetson-agx-xavier": (
        _Row((32, 0, 0), (33, 0, 0), ("./flash.sh", "jetson-agx-xavier-devkit", "mmcblk0p1")),
        _Row((35, 1, 0), (36, 0, 0), (*_INITRD_INTERNAL, "jetson-agx-xavier-devkit", "internal")),
    ),
    "jetson-orin-nano": _ORIN_NANO,
    "jetson-orin-nx": (
        # r35.2 has it on the carrier board of the Xavier NX developer kit only.
        _Row((35, 2, 0), (35, 3, 0), _nvme("flash_l4t_external.xml", "t186ref", "p3509-a02+p3767-0000")),
        *_ORIN_NANO,
    ),
    "jetson-agx-orin": (
        _Row((35, 1, 0), (37, 0, 0), (*_INITRD_INTERNAL, "jetson-agx-orin-devkit", "internal")),
        _Row((39, 0, 0), (40, 0, 0), ("./l4t_initrd_flash.sh", "jetson-agx-orin-devkit", "internal")),
    ),
    # r38 developer guide, Flashing Support for Jetson Thor.
    "jetson-thor": (_Row((38, 0, 0), (40, 0, 0), ("./l4t_initrd_flash.sh", "jetson-agx-thor-devkit", "internal")),),
}


@dataclass(frozen=True)
class Command:
    """One step.

    Attributes:
        does: for people.
        argv: to be run in the folder ``Linux_for_Tegra``.
    """

    does: str
    argv: tuple[str, ...]


@dataclass(frozen=True)
class JetsonPlan:
    """What will be run, and where.

    Attributes:
        kind: name of the kind of board.
        release: of Jetson Linux, e.g. ``36.4.3``.
        folder: ``Linux_for_Tegra``.
        commands: in their order.
        recovery: ids on USB of which one must be there.
        warnings: what the user should know first.
    """

    kind: str
    release: str
    folder: str
    commands: tuple[Command, ...]
    recovery: tuple[str, ...]
    warnings: tuple[str, ...]


def read_release(folder: Path) -> Release:
    """The release in a ``Linux_for_Tegra``.

    Raises:
        UserError: it is none, or its ``rootfs`` is not filled yet.
    """
    if not (folder / "flash.sh").is_file() and not (folder / "l4t_initrd_flash.sh").is_file():
        raise UserError(
            f'"{folder}" is no Linux_for_Tegra: it has no flash.sh', ["unpack NVIDIA's driver package (BSP)"]
        )
    marker = folder / "rootfs" / "etc" / "nv_tegra_release"
    found = _RELEASE.search(marker.read_text(encoding="utf-8")) if marker.is_file() else None
    if found is None:
        tries = ["sudo tar xpf Tegra_Linux_Sample-Root-Filesystem_*.tbz2 -C rootfs", "sudo ./apply_binaries.sh"]
        raise UserError(f'"{folder}/rootfs" is not filled: there is no etc/nv_tegra_release', tries)
    return int(found[1]), int(found[2]), int(found[3])


def flash_argv(kind: str, release: Release) -> tuple[str, ...]:
    """NVIDIA's tool with its arguments, for a board and a release.

    Raises:
        UserError: the board has no such release, or is no Jetson.
    """
    rows = _ROWS.get(kind, ())
    for row in rows:
        if row.since <= release < row.before:
            return ("sudo", *row.argv)
    said = ".".join(map(str, release))
    if not rows:
        raise UserError(f'"{kind}" is not flashed with Jetson Linux', [f"--l4t is for: {', '.join(_ROWS)}"])
    spans = ", ".join(f"{'.'.join(map(str, row.since))} to before {'.'.join(map(str, row.before))}" for row in rows)
    raise UserError(f'Jetson Linux "{said}" is not for {kind}', [f"{kind} takes {spans}"])


def user_argv(identity: Identity) -> tuple[str, ...]:
    """NVIDIA's tool that makes the user in ``rootfs``, so that the first boot asks nothing.

    Without ``-p`` it makes up a password and tells nobody: the key logs in. It needs qemu-user-static on this machine.
    """
    who = ("-u", identity.user, "-n", identity.hostname)
    return ("sudo", "./tools/l4t_create_default_user.sh", *who, "--accept-license")


def overlay_argv() -> tuple[str, ...]:
    """Unpacks our files over ``rootfs``; they belong to root. Folders that are there stay as they are."""
    return ("sudo", "tar", "-xpf", OVERLAY, "-C", "rootfs", "--numeric-owner")


def plan_jetson(kind: BoardKind, folder: Path, identity: Identity) -> JetsonPlan:
    """The commands for a board.

    Args:
        kind: of board.
        folder: ``Linux_for_Tegra``, with ``rootfs`` filled.
        identity: who the board shall be.

    Raises:
        UserError: the folder is none, or of a release that is not for this board.
    """
    release = read_release(folder)
    flash = flash_argv(kind.name, release)
    warnings = ["l4t_create_default_user.sh runs programs of the board: sudo apt install qemu-user-static"]
    if identity.wifi is not None:
        warnings.append("Wi-Fi is left out: sudo nmcli device wifi connect NAME --ask, on the board")
    if kind.flash.note:
        warnings.append(kind.flash.note)
    return JetsonPlan(
        kind=kind.name,
        release=".".join(map(str, release)),
        folder=str(folder),
        commands=(
            Command("put bundle, runtime and units into rootfs", overlay_argv()),
            Command("make the user", user_argv(identity)),
            Command("flash", flash),
        ),
        recovery=kind.flash.recovery_usb,
        warnings=tuple(warnings),
    )


def write_overlay(bundle: Path, identity: Identity, folder: Path) -> Path:
    """The archive for ``rootfs``, beside it.

    Raises:
        UserError: the folder may not be written.
    """
    target = folder / OVERLAY
    with tempfile.TemporaryDirectory(prefix="splitboard-flash-") as work:
        payload = build_payload(bundle, NO_LIBRARIES, identity.user, identity.keys, Path(work))
        beside = target.with_name(f".{OVERLAY}.part")
        try:
            tar_payload(payload, beside)
            beside.replace(target)
        except OSError as error:
            raise UserError(f'cannot write "{target}": {error.strerror}', [f"sudo chown $USER {folder}"]) from error
    return target


def in_recovery(listing: str, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Ids among ``wanted`` that ``lsusb`` printed, one for each board that waits."""
    return tuple(found for found in _LSUSB.findall(listing) if found in wanted)


def check_recovery(kind: BoardKind, listing: str) -> None:
    """Refuses to begin unless exactly one board of the kind waits on USB.

    Args:
        kind: of board.
        listing: what ``lsusb`` printed.

    Raises:
        UserError: none, another, or several.
    """
    found = in_recovery(listing, kind.flash.recovery_usb)
    if len(found) == 1:
        return
    if len(found) > 1:
        raise UserError(f'{len(found)} boards are in recovery mode: "{", ".join(found)}"', ["leave only one connected"])
    others = [one for one in _LSUSB.findall(listing) if one.startswith("0955:")]
    also = f', but "{", ".join(others)}" of NVIDIA' if others else ""
    raise UserError(
        f'no {kind.title} in recovery mode on USB ("{", ".join(kind.flash.recovery_usb)}"){also}',
        ["hold FORCE RECOVERY (or bridge FC REC to GND) while it gets power, then lsusb", "a cable that carries data"],
    )


def shown(command: Command) -> str:
    """A command as one types it."""
    return shlex.join(command.argv)


def run_plan(plan: JetsonPlan, kind: BoardKind, say: Callable[[str], None]) -> None:
    """Runs the commands one after the other, on the terminal.

    Raises:
        UserError: the board is not in recovery mode, or a command failed.
    """
    check_recovery(kind, run_tool(["lsusb"]).stdout.decode(errors="replace"))
    for command in plan.commands:
        say(f"{command.does}: {shown(command)}")
        done = subprocess.run(command.argv, cwd=plan.folder, check=False)
        if done.returncode != 0:
            raise UserError(
                f'"{shown(command)}" ended with exit code {done.returncode}',
                ["read what it printed above", f"run it by hand in {plan.folder}"],
            )
