"""Boards that are virtual machines: Debian's own arm64 kernel, a disk that survives, and a power cord."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from interpreters import succeed
from sshd import free_port, write_keys

from boards.emulated.userland import Userland, cached, prepare, unpack_debian
from boards.stations import Station

EMULATOR = "qemu-system-aarch64"
HOST = "10.0.2.2"
"""This machine, as the guest reaches it; QEMU's user network."""

MERGED = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"
NEEDED = {EMULATOR: "qemu-system-arm", "mmdebstrap": "mmdebstrap", "cpio": "cpio", "depmod": "kmod"}
"""Programs, and Debian's packages that have them."""

BOOT_S = 180.0
_RELEASE = "bookworm"
_PACKAGES = (
    *("bash", "coreutils", "dash", "findutils", "grep", "gzip", "iproute2", "libstdc++6", "mount", "openssh-server"),
    *("procps", "python3", "python3-venv", "sed", "tar", "util-linux", "zlib1g"),
)
# Of bookworm too: its modules are not compressed, which busybox could not undo.
_KERNEL_PACKAGES = ("busybox-static", "kmod", "linux-image-arm64")
_MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "ext4"),
    *("vfat", "nls_cp437", "nls_ascii", "af_packet", "autofs4"),  # a boot partition, DHCP, systemd's mount points
)
_DISK_MIB = 1024
_RAMDISK_INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
for module in $(/bin/busybox cat /modules); do /bin/busybox insmod /$module; done
for word in $(/bin/busybox cat /proc/cmdline); do
    case $word in root=*) root=${word#*=} ;; init=*) init=${word#*=} ;; esac
done
until /bin/busybox mount -t ext4 $root /root; do /bin/busybox sleep 0.1; done
/bin/busybox umount /proc
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root $init
"""
_INIT = """#!/bin/sh
export PATH=/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm /run/sshd
mount -t devpts pts /dev/pts
mount -t tmpfs none /dev/shm
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
exec /usr/sbin/sshd -D -e
"""
_FILES = {
    "init": _INIT,
    "etc/passwd": "root:x:0:0::/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
    "board:x:1000:1000::/home/board:/bin/bash\n",
    "etc/shadow": "root:*:1::::::\nboard:*:1::::::\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\nboard:x:1000:\n",
    "etc/nsswitch.conf": "passwd: files\nshadow: files\ngroup: files\n",
    "etc/ssh/sshd_config": "UsePAM no\nSubsystem sftp internal-sftp\n",
    "etc/hosts": "127.0.0.1 localhost\n",
}


def missing_programs() -> list[str]:
    """What has to be installed first, as apt calls it."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return [package for program, package in NEEDED.items() if shutil.which(program, path=path) is None]


def kernel() -> Path:
    """A folder with Debian's kernel and a ramdisk that brings it to a disk; made once."""
    content = [*_KERNEL_PACKAGES, *_MODULES, _RAMDISK_INIT]
    return cached("kernel-" + _RELEASE, content, _make_kernel, None)


def base() -> Path:
    """A folder with disk image and keys; made once, needs root."""
    userland = prepare("rpi4", _RELEASE, "ai-edge-litert")
    packages = userland.site
    if packages is None:
        raise RuntimeError("a userland was prepared without its runtime")
    content = [*_PACKAGES, *_FILES.values(), packages.parent.name, userland.root.parent.name]
    return cached("vm-" + _RELEASE, content, lambda target: _make(target, packages, userland), None)


def copy_bytecode(userland: Userland, root: Path) -> None:
    """Python's own modules as an emulated board of the same release has them: imported once.

    Debian compiles them when it configures its packages, which nothing does here; an emulated processor would do it
    again at every start, and take twice the time of everything else.
    """
    (folder,) = (userland.root / "usr/lib").glob("python3.*")
    for compiled in folder.rglob("__pycache__"):
        place = root / "usr/lib" / folder.name / compiled.relative_to(folder)
        shutil.copytree(compiled, place, dirs_exist_ok=True)


def _make_kernel(target: Path) -> None:
    root = target.with_name("tree")
    unpack_debian(root, _RELEASE, _KERNEL_PACKAGES, ["--exclude=./dev/*"], ["--arch=arm64", MERGED])
    target.mkdir()
    (image,) = (root / "boot").glob("vmlinuz-*")
    shutil.copy(image, target / "kernel")
    _ramdisk(target, root, image.name.removeprefix("vmlinuz-"))
    shutil.rmtree(root)


def _make(target: Path, packages: Path, userland: Userland) -> None:
    root = target.with_name("tree")
    unpack_debian(root, _RELEASE, _PACKAGES, ["--exclude=./dev/*"], ["--arch=arm64", MERGED])
    copy_bytecode(userland, root)
    target.mkdir()
    write_keys(target)
    for name, text in _FILES.items():
        (root / name).write_text(text)
    (root / "init").chmod(0o755)
    shutil.copytree(packages, root / "usr/local/lib/python3.11/dist-packages", dirs_exist_ok=True)
    shutil.copy(target / "host_key", root / "etc/ssh/ssh_host_ed25519_key")
    home = root / "home/board"
    (home / ".ssh").mkdir(parents=True)
    shutil.copy(target / "user_key.pub", home / ".ssh/authorized_keys")
    for path in (home, home / ".ssh", home / ".ssh/authorized_keys"):
        os.chown(path, 1000, 1000)
    succeed("mkfs.ext4", "-q", "-F", "-d", root, target / "disk", f"{_DISK_MIB}M")
    shutil.rmtree(root)


def _ramdisk(target: Path, root: Path, version: str) -> None:
    """What brings the disk's driver and file system; written as one archive of the kernel's format."""
    tree = target / "ramdisk"
    for folder in ("bin", "dev", "proc", "root"):
        (tree / folder).mkdir(parents=True)
    shutil.copy(root / "usr/bin/busybox", tree / "bin/busybox")
    succeed("depmod", "-b", root, version)
    shown = succeed("modprobe", "-d", root, "-S", version, "--show-depends", "-a", *_MODULES)
    files = dict.fromkeys(Path(line.split()[1]) for line in shown.splitlines() if line.startswith("insmod"))
    for path in files:
        shutil.copy(path, tree / path.name)
    (tree / "modules").write_text(" ".join(path.name for path in files))
    (tree / "init").write_text(_RAMDISK_INIT)
    (tree / "init").chmod(0o755)
    names = "\n".join(["."] + [path.relative_to(tree).as_posix() for path in sorted(tree.rglob("*"))])
    with open(target / "initrd", "wb") as file:
        argv = ["cpio", "--quiet", "--create", "--format=newc"]
        subprocess.run(argv, cwd=tree, input=names.encode(), stdout=file, check=True)


class Guest:
    """A virtual machine around a disk of its own, which power cuts do not touch."""

    def __init__(self, disk: Path, words: str, boot_s: float = BOOT_S) -> None:
        """Nothing is switched on yet.

        Args:
            disk: file that the machine reads and writes; its console is written beside it.
            words: the kernel's command line; ``root=`` and ``init=`` are the ramdisk's.
            boot_s: how long its sshd may take to greet.
        """
        self._disk = disk
        self._words = words
        self._boot_s = boot_s
        self._console = disk.with_name("console")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def console(self) -> str:
        """What it said since it was last switched on."""
        return self._console.read_text(errors="replace")

    @contextlib.contextmanager
    def on(self) -> Iterator[int]:
        """Switches it on; with the block its power is cut.

        Yields:
            The port of this machine that is its ssh's; it has greeted there.
        """
        port, files = free_port(), kernel()
        machine = ["-M", "virt", "-cpu", "cortex-a72", "-smp", "2", "-m", "1024", "-accel", "tcg,thread=multi"]
        quiet = ["-display", "none", "-monitor", "none", "-no-reboot", "-serial", f"file:{self._console}"]
        boot = ["-kernel", str(files / "kernel"), "-initrd", str(files / "initrd"), "-append", self._words]
        disk = ["-drive", f"if=none,id=disk,file={self._disk},format=raw"]
        network = ["-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22"]
        devices = ["virtio-blk-pci,drive=disk", "virtio-net-pci,netdev=net,romfile=", "virtio-rng-pci"]
        devices = [argument for device in devices for argument in ("-device", device)]
        self._process = subprocess.Popen([EMULATOR, *machine, *quiet, *boot, *disk, *network, *devices])
        try:
            self._wait(port)
            yield port
        finally:
            self.cut()

    def cut(self) -> None:
        """Cuts the power: nothing is told, nothing is written back."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait_for(self, said: str) -> re.Match[str]:
        """Until the console has said what a pattern matches."""
        end = time.monotonic() + self._boot_s
        while time.monotonic() < end:
            found = re.search(said, self.console)
            if found is not None:
                return found
            time.sleep(0.5)
        raise RuntimeError(f"the machine did not say {said}:\n{self.console}")

    def _wait(self, port: int) -> None:
        """Until its sshd greets; QEMU itself accepts at once."""
        end = time.monotonic() + self._boot_s
        while time.monotonic() < end and self._process is not None and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as connection:
                if connection.recv(4) == b"SSH-":
                    return
            time.sleep(0.2)
        raise RuntimeError(f"the machine did not come up:\n{self.console}")


class Machine:
    """A board that somebody has set up: a user, a runtime beside Debian's Python, nothing of ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._base = base()
        succeed("cp", "--sparse=always", self._base / "disk", folder / "disk")
        self._guest = Guest(folder / "disk", "console=ttyAMA0 quiet panic=1 root=/dev/vda init=/init")

    @contextlib.contextmanager
    def on(self) -> Iterator[Station]:
        """Switches it on; with the block its power is cut."""
        with self._guest.on() as port:
            key = (self._base / "host_key.pub").read_text()
            (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}")
            yield Station(
                name="vm",
                user="board",
                host="127.0.0.1",
                port=port,
                kind="rpi4",
                key=str(self._base / "user_key"),
                known_hosts=str(self.folder / "known_hosts"),
            )

    def cut(self) -> None:
        """Cuts the power: nothing is told, nothing is written back."""
        self._guest.cut()
