"""Small images of systems for boards, made as plain files: the shape and the telling files of the real ones.

The tools that make them (sfdisk, mkfs.vfat, mkfs.ext4, mcopy) need neither root nor a device. What flashing then finds
and writes is read back with tools of its own: mcopy, debugfs, fsck.vfat, e2fsck.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from splitboard.contract.bundle import (
    SCHEMA_VERSION,
    Artifact,
    Bundle,
    Calibration,
    Quantisation,
    Task,
    TensorSpec,
    write_manifest,
)
from splitboard.contract.preprocess import Preprocessing

MIB = 1 << 20
BOOT_START, BOOT_MIB, ROOT_MIB = 8 * MIB, 40, 40
TOOLS = ("sfdisk", "mkfs.vfat", "mkfs.ext4", "fsck.vfat", "e2fsck", "debugfs", "mcopy")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
AARCH64, ARMV7L, X86_64 = 183, 40, 62
STOCK_CMDLINE = "console=serial0,115200 console=tty1 root=PARTUUID=5e3da3da-02 rootfstype=ext4 fsck.repair=yes rootwait"
PI_TREES = (
    "bcm2710-rpi-3-b",
    "bcm2710-rpi-3-b-plus",
    "bcm2710-rpi-zero-2-w",
    "bcm2711-rpi-4-b",
    "bcm2711-rpi-cm4",
    "bcm2712-rpi-5-b",
    "bcm2712-rpi-cm5-cm5io",
)


@dataclass(frozen=True)
class System:
    """What tells a system.

    Attributes:
        name: for the file.
        release: of os-release.
        machine: ``e_machine`` of its programs.
        boot: names of empty files on the FAT partition.
        root: text by path of the files on the root partition.
        links: target by path.
        cmdline: text of cmdline.txt; ``None`` for no such file.
        has_boot: whether there is a FAT partition; else the table is a GPT, as on a Jetson.
    """

    name: str
    release: str
    machine: int = AARCH64
    boot: tuple[str, ...] = ("config.txt", *(f"{name}.dtb" for name in PI_TREES))
    root: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=lambda: {"usr/bin/python3": "python3.11"})
    cmdline: str | None = STOCK_CMDLINE
    has_boot: bool = True


_FSTAB = "proc /proc proc defaults 0 0\nPARTUUID=5e3da3da-01 {at} vfat defaults 0 2\n"
_PI = {"usr/lib/raspberrypi-sys-mods/imager_custom": "#!/bin/sh\n", "usr/lib/userconf-pi/userconf": "#!/bin/sh\n"}
_FIRMWARE = {"etc/fstab": _FSTAB.format(at="/boot/firmware")}
_PY313 = {"usr/bin/python3": "python3.13"}

BOOKWORM = System("bookworm", "Debian GNU/Linux 12 (bookworm)", root={**_PI, **_FIRMWARE})
TRIXIE_EARLY = System("trixie-early", "Debian GNU/Linux 13 (trixie)", root={**_PI, **_FIRMWARE}, links=_PY313)
_CLOUD = {**_PI, **_FIRMWARE, "usr/bin/cloud-init": "#!/usr/bin/python3\n"}
TRIXIE = System("trixie", "Debian GNU/Linux 13 (trixie)", root=_CLOUD, links=_PY313)
_PRESEED = {**_PI, **_FIRMWARE, "usr/lib/rpi-preseed/rpi-preseed": "#!/bin/sh\n"}
PRESEED = System(
    "preseed",
    "Debian GNU/Linux 13 (trixie)",
    root=_PRESEED,
    links={**_PY313, "usr/bin/rpi-preseed": "/usr/lib/rpi-preseed/rpi-preseed"},
)
UBUNTU = System(
    "ubuntu",
    "Ubuntu 24.04.3 LTS",
    root={"usr/bin/cloud-init": "#!/usr/bin/python3\n", **_FIRMWARE},
    links={"usr/bin/python3": "python3.12"},
    cmdline="console=serial0,115200 multipath=off dwc_otg.lpm_enable=0 console=tty1 root=LABEL=writable rootwait",
)
BULLSEYE = System(
    "bullseye",
    "Debian GNU/Linux 11 (bullseye)",
    boot=("config.txt", *(f"{name}.dtb" for name in PI_TREES if "2712" not in name)),
    root={**_PI, "etc/fstab": _FSTAB.format(at="/boot")},
)
PI_32BIT = System("armhf", "Raspbian GNU/Linux 12 (bookworm)", machine=ARMV7L, root={**_PI, **_FIRMWARE})
PC = System("pc", "Debian GNU/Linux 12 (bookworm)", machine=X86_64, boot=("EFI",), cmdline=None)
DUMB = System("dumb", "LibreELEC 12", root=_FIRMWARE)
ORIN_NANO = System(
    "orin-nano",
    "Ubuntu 22.04.5 LTS",
    root={
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
        "boot/dtb/kernel_tegra234-p3768-0000+p3767-0005-nv.dtb": "",
        "boot/tegra194-p3668-all-p3509-0000.dtb": "",
    },
    links={"usr/bin/python3": "python3.10"},
    has_boot=False,
)
ALL = (BOOKWORM, TRIXIE_EARLY, TRIXIE, PRESEED, UBUNTU, BULLSEYE, PI_32BIT, PC, DUMB, ORIN_NANO)


def missing_tools() -> tuple[str, ...]:
    """Which of the tools that make and read images are not installed."""
    return tuple(tool for tool in TOOLS if shutil.which(tool, path=PATH) is None)


def run(*argv: str, stdin: str = "") -> str:
    """Runs a tool that must succeed; what it printed."""
    environment = {**os.environ, "PATH": PATH, "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C"}
    done = subprocess.run(argv, capture_output=True, text=True, input=stdin, env=environment, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def loop_device(file: Path) -> Iterator[Path]:
    """A real block device whose content is a file; skips where that takes rights which are not there."""
    environment = {**os.environ, "PATH": PATH}
    argv = ["losetup", "--show", "-f", str(file)]
    attached = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    if attached.returncode != 0:
        pytest.skip(f"no loop devices here: {attached.stderr.strip()}")
    device = Path(attached.stdout.strip())
    try:
        yield device
    finally:
        run("losetup", "-d", str(device))


def make_image(system: System, folder: Path) -> Path:
    """Writes ``<name>.img``: MBR, FAT32 at 8 MiB and ext4; or, without a boot partition, GPT and ext4 alone."""
    image, tree = folder / f"{system.name}.img", folder / f"{system.name}-root"
    _fill(tree, system)
    boot_mib = BOOT_MIB if system.has_boot else 0
    root_start = BOOT_START + boot_mib * MIB
    with open(image, "wb") as file:
        file.truncate(root_start + (ROOT_MIB + 1) * MIB)
    if system.has_boot:
        table = f"label: dos\nlabel-id: 0x5e3da3da\nstart=16384, size={boot_mib * 2048}, type=c\n"
        table += f"start={root_start // 512}, size={ROOT_MIB * 2048}, type=83\n"
    else:
        table = f"label: gpt\nstart={root_start // 512}, size={ROOT_MIB * 2048}, type=linux, name=APP\n"
    run("sfdisk", "-q", str(image), stdin=table)
    if system.has_boot:
        run("mkfs.vfat", "-F", "32", "-s", "1", "-n", "bootfs", "--offset", "16384", str(image), str(boot_mib * 1024))
        _fill_boot(image, system, folder)
    run(
        *("mkfs.ext4", "-q", "-F", "-L", "rootfs", "-O", "^64bit,^huge_file", "-d", str(tree)),
        *("-E", f"offset={root_start},root_owner=0:0", str(image), f"{ROOT_MIB}M"),
    )
    shutil.rmtree(tree)
    return image


def root_at(system: System) -> int:
    """Where the root partition begins."""
    return BOOT_START + (BOOT_MIB * MIB if system.has_boot else 0)


def read_boot(image: Path, name: str, folder: Path) -> bytes:
    """A file of the FAT partition, copied out by mcopy."""
    target = folder / f"read-{name}"
    run("mcopy", "-n", "-o", "-i", f"{image}@@{BOOT_START}", f"::/{name}", str(target))
    return target.read_bytes()


def boot_names(image: Path) -> set[str]:
    """Names on the FAT partition."""
    return {line.removeprefix("::/") for line in run("mdir", "-b", "-i", f"{image}@@{BOOT_START}", "::/").split()}


def read_root(image: Path, system: System, path: str, folder: Path) -> bytes:
    """A file of the root partition, dumped by debugfs."""
    target = folder / "read-root"
    target.unlink(missing_ok=True)
    run("debugfs", "-R", f"dump {path} {target}", f"{image}?offset={root_at(system)}")
    return target.read_bytes()


def stat_root(image: Path, system: System, path: str) -> str:
    """What debugfs says of a file of the root partition."""
    return run("debugfs", "-R", f"stat {path}", f"{image}?offset={root_at(system)}")


def check_file_systems(image: Path, system: System, folder: Path) -> None:
    """Fails unless fsck.vfat and e2fsck find nothing wrong."""
    if system.has_boot:
        boot = folder / "boot.fat"
        with open(image, "rb") as file:
            file.seek(BOOT_START)
            boot.write_bytes(file.read(BOOT_MIB * MIB))
        run("fsck.vfat", "-n", str(boot))
        boot.unlink()
    run("e2fsck", "-f", "-n", f"{image}?offset={root_at(system)}")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fill(tree: Path, system: System) -> None:
    elf = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, system.machine) + bytes(44)
    texts = {"usr/lib/os-release": f'PRETTY_NAME="{system.release}"\nID=debian\n', **system.root}
    for path, text in texts.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    (tree / "usr/bin").mkdir(parents=True, exist_ok=True)
    (tree / "usr/bin/dpkg").write_bytes(elf)
    for path in ("etc/systemd/system/multi-user.target.wants", "usr/local/lib", "home"):
        (tree / path).mkdir(parents=True, exist_ok=True)
    (tree / "etc/os-release").symlink_to("../usr/lib/os-release")
    for path, target in system.links.items():
        (tree / path).symlink_to(target)


def _fill_boot(image: Path, system: System, folder: Path) -> None:
    staged = folder / f"{system.name}-boot"
    staged.mkdir()
    for name in system.boot:
        (staged / name).write_text("")
    if system.cmdline is not None:
        (staged / "cmdline.txt").write_text(system.cmdline + "\n")
    run("mcopy", "-o", "-i", f"{image}@@{BOOT_START}", *map(str, sorted(staged.iterdir())), "::/")
    shutil.rmtree(staged)


def write_bundle(folder: Path, board: str) -> Path:
    """A bundle that loads, for a kind of board, a few files in folders; it has no splits and answers nothing."""
    contents = {
        "edge/edge.int8.tflite": b"TFL3" * 5000,
        "golden/golden.npz": b"golden" * 100,
        "calibration/x.json": b"{}",
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    tensor = TensorSpec("image", (1, 3, 8, 8), "float32", "NCHW")
    write_manifest(
        folder,
        Bundle(
            schema_version=SCHEMA_VERSION,
            name="small",
            model_sha256="cd" * 32,
            checkpoint_sha256="ef" * 32,
            board=board,
            tasks=(Task("shape", ("round", "square")),),
            exits=(),
            input=tensor,
            edge_input=tensor,
            preprocessing=Preprocessing(8, 8, 1, (0.5,) * 3, (0.5,) * 3),
            splits=(),
            artifacts=tuple(
                Artifact(name, "text", len(content), hashlib.sha256(content).hexdigest())
                for name, content in contents.items()
            ),
            calibration=Calibration(1, 1, 0, {}, "56" * 32),
            quantisation=Quantisation("int8", "minmax", {}, 0, 0, ()),
            golden="golden/golden.npz",
            golden_tolerance={"shape": 0.1},
            operators={},
            notes=(),
            tool_versions={},
        ),
    )
    return folder
