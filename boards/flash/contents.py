"""What is inside an image: which system, for which processor and boards, and how it is told who it shall be.

Nothing is guessed from the file's name: the partitions are opened (`Fat`, `Ext4`) and asked.
"""

from __future__ import annotations

import enum
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from boards.flash.ext4 import Ext4
from boards.flash.fat import Fat
from boards.flash.partitions import Partition, read_partitions
from splitboard.contract.errors import UserError

_EXT_MAGIC = (1024 + 56, b"\x53\xef")
_FAT_MAGICS = ((82, b"FAT32"), (54, b"FAT16"), (54, b"FAT12"))
_MACHINES = {40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
"""By ``e_machine`` of the ELF header, as ``uname -m`` has it."""
_PROGRAMS = ("/usr/bin/dpkg", "/usr/bin/bash", "/bin/bash", "/bin/busybox", "/usr/bin/env")
_IMAGER_CUSTOM = "/usr/lib/raspberrypi-sys-mods/imager_custom"


class FirstBootForm(enum.Enum):
    """How an image is told who it shall be.

    rpi-imager's ``doc/os_customisation_formats.md`` names them ``systemd``, ``cloudinit`` (and ``cloudinit-rpi``) and
    ``rpi-preseed``. An image of a Jetson asks at its first boot instead.
    """

    FIRSTRUN = "firstrun.sh"
    CLOUD_INIT = "cloud-init"
    PRESEED = "rpi-preseed"
    ASKS = "asks"


@dataclass(frozen=True)
class Contents:
    """What an image holds.

    Attributes:
        system: as it calls itself, e.g. ``Debian GNU/Linux 12 (bookworm)``.
        machine: of its programs, as ``uname -m`` says; empty where none was recognised.
        form: how its first boot is told who it shall be.
        boot: the FAT partition that the firmware reads; ``None`` where there is none, as on a Jetson.
        root: the root file system.
        boot_mount: where the running system has the boot partition.
        device_trees: names of the boards' device trees on it, without ``.dtb``.
        l4t: release of Jetson Linux, e.g. ``(36, "4.3")``; ``None`` where it is another system.
        python: its Python, e.g. ``3.11``; ``None`` where that is not to be seen.
        cmdline: the kernel's command line from the boot partition; ``None`` where there is no such file.
    """

    system: str
    machine: str
    form: FirstBootForm
    boot: Fat | None
    root: Ext4
    boot_mount: str
    device_trees: tuple[str, ...]
    l4t: tuple[int, str] | None
    python: str | None
    cmdline: str | None


def look_inside(image: Path) -> Contents:
    """Opens an unpacked image.

    Raises:
        UserError: it is no system for a Raspberry Pi or a Jetson, or one that cannot be told who it shall be.
    """
    partitions = read_partitions(image)
    boot, root = _find(image, partitions)
    release = _os_release(root)
    boot_names = boot.names() if boot is not None else ()
    l4t = _l4t(root.read("/etc/nv_tegra_release"))
    cmdline = boot.read("cmdline.txt") if boot is not None and l4t is None else None
    system = release.get("PRETTY_NAME", "Linux")
    link = root.link("/usr/bin/python3")
    python = re.search(r"python(3\.\d+)$", link or "")
    return Contents(
        system=system,
        machine=_machine(root),
        form=_form(root, boot, boot_names, l4t is not None, image, system),
        boot=None if l4t is not None else boot,
        root=root,
        boot_mount=_boot_mount(root),
        device_trees=_device_trees(root, boot, boot_names, l4t is not None),
        l4t=l4t,
        python=python[1] if python else None,
        cmdline=cmdline.decode(errors="replace") if cmdline is not None else None,
    )


def _find(image: Path, partitions: tuple[Partition, ...]) -> tuple[Fat | None, Ext4]:
    """The boot and the root partition, told by what is on them."""
    boot: Fat | None = None
    roots = []
    with open(image, "rb") as file:
        for partition in partitions:
            file.seek(partition.start_bytes)
            head = file.read(2048)
            if any(head[at : at + len(magic)] == magic for at, magic in _FAT_MAGICS):
                boot = boot or Fat(image, partition.start_bytes)
            elif head[_EXT_MAGIC[0] : _EXT_MAGIC[0] + 2] == _EXT_MAGIC[1]:
                roots.append(Ext4(image, partition.start_bytes))
    for root in roots:
        if root.exists("/usr/lib/os-release") or root.exists("/etc/os-release"):
            return boot, root
    raise UserError(
        f'"{image.name}" holds no system: none of its {len(partitions)} partitions is an ext4 root file system',
        ["give an image of Raspberry Pi OS, Ubuntu for Raspberry Pi, or Jetson Linux"],
    )


def _os_release(root: Ext4) -> dict[str, str]:
    text = (root.read("/usr/lib/os-release") or root.read("/etc/os-release") or b"").decode(errors="replace")
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip().strip("\"'") for key, value in pairs}


def _machine(root: Ext4) -> str:
    for program in _PROGRAMS:
        head = (root.read(program) or b"")[:20]
        if head.startswith(b"\x7fELF") and len(head) == 20:
            return _MACHINES.get(struct.unpack("<H", head[18:20])[0], "")
    return ""


def _l4t(text: bytes | None) -> tuple[int, str] | None:
    """Release of Jetson Linux from ``# R36 (release), REVISION: 4.3, GCID: ...``."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", (text or b"").decode(errors="replace"))
    return (int(found[1]), found[2]) if found else None


def _form(
    root: Ext4, boot: Fat | None, boot_names: tuple[str, ...], is_jetson: bool, image: Path, system: str
) -> FirstBootForm:
    if is_jetson:
        return FirstBootForm.ASKS
    if boot is None or "config.txt" not in boot_names:
        raise UserError(
            f'"{image.name}" ({system}) is no image for a Raspberry Pi or a Jetson',
            ["give an image of Raspberry Pi OS, Ubuntu for Raspberry Pi, or Jetson Linux"],
        )
    # Later images of Raspberry Pi OS carry the tools of the earlier ones too, so the newest is asked for first.
    if root.exists("/usr/bin/rpi-preseed"):
        return FirstBootForm.PRESEED
    if root.exists("/usr/bin/cloud-init"):
        return FirstBootForm.CLOUD_INIT
    if root.exists(_IMAGER_CUSTOM):
        return FirstBootForm.FIRSTRUN
    raise UserError(
        f'"{image.name}" ({system}) has no first boot that can be told a user and a key',
        ["use Raspberry Pi OS 12 (Bookworm) or later", "set the board up by hand, then splitboard deploy"],
    )


def _boot_mount(root: Ext4) -> str:
    """Where ``fstab`` has the FAT partition: ``/boot/firmware`` since Debian 12, ``/boot`` before."""
    table = (root.read("/etc/fstab") or b"").decode(errors="replace")
    rows = [line.split() for line in table.splitlines() if not line.startswith("#")]
    return next((row[1] for row in rows if len(row) >= 3 and row[2] == "vfat"), "/boot/firmware")


def _device_trees(root: Ext4, boot: Fat | None, boot_names: tuple[str, ...], is_jetson: bool) -> tuple[str, ...]:
    if is_jetson:
        # The tree that is booted lies in /boot/dtb; /boot has those of all boards.
        names: tuple[str, ...] = root.names("/boot/dtb") or root.names("/boot")
    else:
        names = boot_names
        if boot is not None and "current/" in boot_names:  # Ubuntu 25.10 and later keep two sets of boot files
            names += boot.names("current")
    return tuple(sorted(name.removesuffix(".dtb") for name in names if name.endswith(".dtb")))
